"""`python -m featherweight`: the command line `fw`, where the command itself is not on the path."""

from featherweight.cli import main

if __name__ == "__main__":
    main()
