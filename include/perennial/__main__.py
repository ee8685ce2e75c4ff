"""``python -m perennial``, or ``perennial`` in an environment that holds the library."""

from __future__ import annotations

from perennial.cli.app import main
from perennial.core.runtime import leave


def run() -> None:
    """Run the command line and end the process with its status."""
    try:
        main()
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    leave(0)


if __name__ == "__main__":
    run()
