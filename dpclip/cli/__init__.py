"""The command line: one file a verb, imported only when the verb is called."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of `dpclip`; exit codes 0 ok, 2 bad input, 3 budget exhausted, 1 internal."""
    from dpclip.cli.app import app

    sys.exit(app(standalone_mode=True))
