"""`python -m fedgraft`: the command."""

from fedgraft.cli import main

main()
