"""`python -m gemcut` is the command `gemcut`."""

from gemcut.cli import main

if __name__ == "__main__":
    main()
