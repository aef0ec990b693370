"""`python -m rigsize`."""

from rigsize.cli import main

if __name__ == "__main__":
    main()
