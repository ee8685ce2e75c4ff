"""``python -m bench [--quick] [--part score,train] [--out file] [--work folder]``: measure, show a table, write JSON.

Each figure is a ratio or a bound and is measured beside what it is compared with, in one run, because seconds do not
travel from one machine to another. Every measured thing runs in a process of its own; memory is the peak resident
memory that the kernel saw of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import live, parts, world
from bench.figures import Figure
from perennial.core.settings import settings

PARTS = {
    "parse": parts.parse,
    "score": parts.score,
    "validate": parts.validate,
    "drift": parts.drift,
    "verdict": parts.verdict,
    "train": parts.train,
    "loop": live.loop,
}
#: How often the flights are repeated: 13.1 million rows, or 1.3 million with --quick.
COPIES, QUICK_COPIES = 39, 4


def main() -> int:
    """Measure; returns 0 when every target is met, 1 when one is missed or a part failed."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")))
    parser.add_argument("--part", default=os.environ.get("PART", ""), help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=settings().home / "bench.json")
    parser.add_argument("--work", type=Path, help="a folder that is kept: a later run finds its data there")
    asked = parser.parse_args()
    wanted = [p for p in asked.part.replace(",", " ").split() if p] or list(PARTS)
    if unknown := [p for p in wanted if p not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; the parts are: {', '.join(PARTS)}")
    settings().home.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are ended, the work folder is removed
    with tempfile.TemporaryDirectory(prefix="bench-", dir=settings().home) as scratch:
        work = (asked.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        return run(work, wanted, QUICK_COPIES if asked.quick else COPIES, asked.out)


def run(work: Path, wanted: list[str], copies: int, out: Path) -> int:
    """Run some parts in a work folder and report."""
    console = Console(highlight=False)
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    began = time.monotonic()
    with world.World(work, copies, console) as here:
        for part in wanted:
            console.print(f"{time.monotonic() - began:5.0f} s  {part}")
            try:
                figures += PARTS[part](here)
            except Exception as error:  # the other parts are still worth having
                failed[part] = f"{type(error).__name__}: {error}"
                console.print(f"{part} failed: {error}", markup=False)
    show(console, figures)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
    content = {
        "rows": copies * world.FLIGHTS,
        "machine": machine,
        "seconds": round(time.monotonic() - began, 1),
        "figures": [f.as_dict() for f in figures],
        "failed": failed,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"Written to {out}", soft_wrap=True)
    return 1 if failed or any(f.met is False for f in figures) else 0


def show(console: Console, figures: list[Figure]) -> None:
    """The table."""
    table = Table(title="make bench")
    for name in ("Part", "What", "Measured", "Target", "", "How"):
        table.add_column(name, justify="right" if name in ("Measured", "Target") else "left")
    for f in figures:
        mark = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[f.met]
        table.add_row(f.part, f.what, f.shown, f.wanted, mark, f.detail)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
