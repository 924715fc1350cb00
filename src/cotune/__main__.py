"""`python -m cotune` is the command `cotune`."""

from cotune.cli import main

main()
