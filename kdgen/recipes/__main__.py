"""`python -m kdgen.recipes`."""

from kdgen.recipes import main

main()
