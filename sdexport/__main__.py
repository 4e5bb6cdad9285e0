"""`python -m sdexport` is the command `sdexport`."""

from sdexport.cli import main

main()
