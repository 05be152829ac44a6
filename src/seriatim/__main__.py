"""`python -m seriatim` is the `seriatim` command."""

from seriatim.cli import main

if __name__ == "__main__":
    main()
