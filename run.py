"""Compose an experiment from the command line, check it and run it: `python run.py [overrides]`."""

from framework.app import main

if __name__ == "__main__":
    main()
