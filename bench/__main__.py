"""``python -m bench [--quick] [--part score,train] [--out file] [--work folder]``: measure, show a table, write JSON.

Each figure is a bound, or a ratio of two measurements of the same run, because seconds measured on one machine mean
nothing on another. Each measurement runs in a separate process; memory is its peak resident memory as the kernel
reports it.
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

from bench import console_pages, files, history, live, parts, workspace
from bench.figures import Figure
from bench.governance import ledger_queries
from perennial.core.settings import settings

PARTS = {
    "parse": parts.parse,
    "score": parts.score,
    "validate": parts.validate,
    "drift": parts.drift,
    "columns": parts.columns,
    "wide": parts.wide,
    "verdict": parts.verdict,
    "train": parts.train,
    "features": history.figures,
    "files": files.figures,
    "console": console_pages.figures,
    "ledger": ledger_queries.figures,
    "loop": live.loop,
}
#: Number of copies of the flights: 13.1 million rows, or 1.3 million with --quick.
COPIES, QUICK_COPIES = 39, 4


def main() -> int:
    """Measure; returns 0 if all targets are met, 1 if one is missed or a part failed."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")))
    parser.add_argument(
        "--scale", type=int, default=os.environ.get("SCALE") or 0, help="rows of the large tables instead"
    )
    parser.add_argument("--part", default=os.environ.get("PART", ""), help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=settings().home / "bench.json")
    parser.add_argument(
        "--work", type=Path, help="work folder to keep, so that a later run can reuse its data"
    )
    options = parser.parse_args()
    names = [p for p in options.part.replace(",", " ").split() if p] or list(PARTS)
    if unknown := [p for p in names if p not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; the parts are: {', '.join(PARTS)}")
    settings().home.mkdir(parents=True, exist_ok=True)
    # so that servers are stopped and the work folder is removed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=settings().home) as scratch:
        work = (options.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        return run(work, names, copies_of(options.scale, quick=options.quick), options.out)


def copies_of(rows: int, *, quick: bool = False) -> int:
    """The copies of the flights that have so many rows at least; the usual number if 0."""
    return -(-rows // workspace.FLIGHTS) if rows > 0 else QUICK_COPIES if quick else COPIES


def run(work: Path, names: list[str], copies: int, out: Path) -> int:
    """Measure some parts in a work folder, print the table and write the JSON file."""
    console = Console(highlight=False)
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    began = time.monotonic()
    with workspace.Workspace(work, copies, console) as bench_workspace:
        for part in names:
            console.print(f"{time.monotonic() - began:5.0f} s  {part}")
            try:
                figures += PARTS[part](bench_workspace)
            except Exception as error:  # the other parts are still measured
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
        "rows": copies * workspace.FLIGHTS,
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
    """Print the table."""
    table = Table(title="make bench")
    for name in ("Part", "What", "Measured", "Target", "", "How"):
        table.add_column(name, justify="right" if name in ("Measured", "Target") else "left")
    for f in figures:
        mark = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[f.met]
        table.add_row(f.part, f.what, f.shown, f.target_text, mark, f.detail)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
