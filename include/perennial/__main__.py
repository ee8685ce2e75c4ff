"""``python -m perennial``, or ``perennial`` in the environment that ``make setup`` makes."""

from __future__ import annotations

from perennial.cli import main

if __name__ == "__main__":
    main()
