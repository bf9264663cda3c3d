"""`python -m kvps` is the command `kvps`."""
from kvps.cli import main

if __name__ == "__main__":
    main()
