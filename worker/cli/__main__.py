"""`python -m worker.cli`: the command line without its installed script."""

from worker.cli.main import main

main()
