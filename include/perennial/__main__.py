"""``python -m perennial``, or ``perennial`` in the environment that ``make setup`` makes."""

from __future__ import annotations

from perennial.cli.app import main
from perennial.core.runtime import leave

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    leave(0)
