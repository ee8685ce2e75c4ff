"""``python -m perennial``, or the command ``perennial`` of an installed library."""

from __future__ import annotations

from perennial.cli.app import main
from perennial.core.runtime import flush_and_exit


def run() -> None:
    """Run the command line and end the process with its status."""
    try:
        main()
    except SystemExit as end:
        flush_and_exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    flush_and_exit(0)


if __name__ == "__main__":
    run()
