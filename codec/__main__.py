"""`python -m codec`, which is what `torchrun -m codec train ...` needs."""

from codec.cli import main

main()
