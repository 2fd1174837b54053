"""`python -m mffsr` and the `mffsr` command."""

from mffsr.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
