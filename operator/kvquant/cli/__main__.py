"""`python -m kvquant.cli`."""

from kvquant.cli import main

main()
