"""`python -m kdgen.recipes`."""

from kdgen.recipes import main

if __name__ == "__main__":
    main()
