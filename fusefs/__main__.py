"""`python -m fusefs` is the command `fusefs`."""

from fusefs.cli import main

main()
