"""`python -m contaccum_lite`: the command line."""

import sys

from contaccum_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
