"""`python -m codec.cli` is the command `codec`."""

from codec.cli import main

main()
