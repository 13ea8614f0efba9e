"""Run the command line: python -m copypipe."""

from copypipe.cli import main

if __name__ == "__main__":
    main()
