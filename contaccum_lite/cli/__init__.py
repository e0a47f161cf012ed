"""The command line: `contaccum train | evaluate | index | search | ledger`.

`options` reads the words, `commands` and `train` do what they say, `config` is settings as YAML,
`log` is what a training writes down, `terminal` is stdout and stderr, `errors` makes one sentence
of what went wrong.
"""

from contaccum_lite.cli.commands import main

__all__ = ["main"]
