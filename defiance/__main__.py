"""`python -m defiance`: the command line."""

from defiance.cli import main

if __name__ == "__main__":
    main()
