"""Land the sample in the landing area: ``python -m perennial.local_stack.sample``, behind `make sample`."""

from __future__ import annotations

import sys

from rich.console import Console

from perennial.core.errors import PerennialError
from perennial.core.runtime import flush_and_exit
from perennial.core.settings import settings
from perennial.local_stack.sample.landing import land_sample


def main() -> int:
    """Land what is missing; returns the exit status: 0, or 1 after an error."""
    landing = settings().landing
    try:
        done = land_sample(landing)
    except PerennialError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    sys.stdout.write(
        f"{landing}: {f'{done.rows:,} rows in {done.files} files' if done.files else 'the sample had landed before'}\n"
    )
    return 0


if __name__ == "__main__":
    flush_and_exit(main())
