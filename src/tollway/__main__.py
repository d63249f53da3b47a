"""`python -m tollway` is the command `tollway`."""

from tollway.cli import main

main()
