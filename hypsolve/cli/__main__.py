"""`python -m hypsolve.cli`."""

from hypsolve.cli import main

main()
