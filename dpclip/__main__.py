"""`python -m dpclip`."""

from dpclip.cli import main

if __name__ == "__main__":
    main()
