"""`python -m obuilder`."""

from obuilder.cli.main import main

if __name__ == "__main__":
    main()
