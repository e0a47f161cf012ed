"""What was measured: runs, their records, the claims that they test, and errors in print.

`records/` comes with the package, so that `contaccum ledger` and notebooks 06 to 08 work anywhere.
"""
