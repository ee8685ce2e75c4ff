"""`make bench-loop`: what monitoring and retraining are worth, on streams whose truth is known and on the flights."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

from bench import replay
from bench.streams import HISTORY, KINDS, LIVE, Stream
from perennial.spec import catalog

_Result = dict[str, Any]
MODEL = "flight_late"
#: Partitions within which a harmful change has to be found, and within which an alarm still counts as its.
SOON, LATE = 3, 30


def main() -> int:
    """Play, print, and say whether the goals are met."""
    parser = argparse.ArgumentParser(prog="bench-loop", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="streams of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of streams, by comma")
    parser.add_argument("--no-flights", action="store_true", help="generated streams alone")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console(width=max(120, Console().width))
    jobs = [(kind, seed) for seed in range(chosen.seeds) for kind in chosen.kinds.split(",")]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        flights = None if chosen.no_flights else pool.submit(_flights)
        found = []
        for i, result in enumerate(pool.map(_stream, jobs), 1):
            found.append(result)
            console.print(f"{i} of {len(jobs)}: {result['kind']}, seed {result['seed']}", style="dim")
        year = flights.result() if flights else None
    console.print(_by_kind(found))
    goals, met = _goals(found)
    console.print(goals)
    if year:
        console.print(_year(year))
    if chosen.out:
        chosen.out.write_text(json.dumps({"streams": found, "flights": year}, indent=1))
    return 0 if met else 1


def _stream(job: tuple[str, int]) -> _Result:
    return replay.results(Stream(*job), catalog.load_model_by_name(MODEL))


def delays(result: _Result) -> list[int | None]:
    """For each harmful change, the number of its partitions whose labels were known at the alarm; None: not found."""
    numbers = result["policies"]["ours"]
    raised = sorted({*numbers["alarms"], *numbers["trained"]})
    found: list[int | None] = []
    harmful = [night for night, gap in result["harms"] if gap > replay.HARM]
    for i, night in enumerate(harmful):
        end = min([night + LATE, *harmful[i + 1 : i + 2]])
        # A gradual change may be found before it does harm.
        hits = [a - night for a in raised if (result["change"] if not i else night) < a <= end]
        found.append(max(hits[0], 0) if hits else None)
    return found


def harmless(result: _Result) -> bool:
    """Whether nothing that happens in a stream makes a difference to the model."""
    return all(gap < replay.HARMLESS for _, gap in result["harms"])


def quiet(result: _Result) -> tuple[int, int]:
    """False alarms, and quiet nights: those before a change that makes a difference, or all where there is none."""
    end = HISTORY + LIVE if harmless(result) else result["change"]
    numbers = result["policies"]["ours"]
    raised = {*numbers["alarms"], *numbers["trained"]}
    return sum(a < end for a in raised), end - HISTORY


def _interval(values: Sequence[float], how: Callable[..., Any] = np.mean) -> str:
    """A statistic over streams, with its 95% confidence interval (percentile bootstrap over streams)."""
    data = np.asarray(values, dtype=np.float64)
    middle = float(how(data))
    if len(data) < 2 or np.ptp(data) == 0:
        return f"{middle:.3g}"
    low, high = bootstrap((data,), how, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def _shares(results: Sequence[_Result], policy: str, what: str) -> list[float]:
    return [r["policies"][policy][what] / r["oracle"][what] for r in results]


def _by_kind(found: Sequence[_Result]) -> Table:
    table = Table(title=f"{LIVE} nights a stream; share of the oracle's AUC, and retrainings")
    for head in (
        "stream",
        "changes found",
        "most harm",
        "delay",
        "false alarms a 100 nights",
        *replay.POLICIES,
        "nightly",
        "ours",
    ):
        table.add_column(head)
    for kind in dict.fromkeys(r["kind"] for r in found):
        mine = [r for r in found if r["kind"] == kind]
        late = [d for r in mine for d in delays(r)]
        hits = [d for d in late if d is not None]
        counts = np.array([quiet(r) for r in mine]).sum(axis=0)
        worst = max((gap for r in mine for _, gap in r["harms"]), default=0.0)
        cells = [
            f"{len(hits)} of {len(late)}" if late else "",
            f"{max(worst, 0.0):.0%}",
            _interval(hits) if hits else "",
        ]
        cells.append(f"{100 * counts[0] / counts[1]:.2g}")
        cells += [_interval(_shares(mine, p, "auc")) for p in replay.POLICIES]
        cells += [_interval([len(r["policies"][p]["trained"]) for r in mine]) for p in ("nightly", "ours")]
        table.add_row(kind, *cells)
    return table


def _goals(found: Sequence[_Result]) -> tuple[Table, bool]:
    late = [d for r in found for d in delays(r)]
    alarms = np.array([quiet(r) for r in found])
    calm = [r for r in found if harmless(r) and r["kind"] != "none"]
    trainings = sum(len(r["policies"]["ours"]["trained"]) for r in found)
    nightly = sum(len(r["policies"]["nightly"]["trained"]) for r in found)
    auc, skill = _shares(found, "ours", "auc"), _shares(found, "ours", "skill")
    soon = [float(d is not None and d <= SOON) for d in late]
    rate = [100 * a / n for a, n in alarms]
    vain = [float(len(r["policies"]["ours"]["trained"])) for r in calm]
    rows = [
        ("share of the oracle's AUC", _interval(auc), "≥ 0.95", np.mean(auc) >= 0.95),
        ("share of nightly's retrainings", f"{trainings / nightly:.3f}", "≤ 0.25", trainings <= 0.25 * nightly),
        ("false alarms a hundred quiet nights", _interval(rate), "≤ 1", np.mean(rate) <= 1),
        (f"harmful changes found within {SOON} partitions", _interval(soon) if soon else "none", "≥ 0.95",
         not soon or np.mean(soon) >= 0.95),
        ("as a count", f"{sum(soon):.0f} of {len(soon)}", "", None),
        ("retrainings of a stream whose change does no harm", _interval(vain) if vain else "none", "0",
         not vain or max(vain) == 0),
        ("share of the oracle's skill (1 - log loss / log 2)", _interval(skill), "", None),
    ]  # fmt: skip
    table = Table(title=f"{len(found)} streams")
    for head in ("", "measured, with 95% interval", "goal", ""):
        table.add_column(head)
    for what, measured, goal, met in rows:
        table.add_row(what, measured, goal, "" if met is None else "met" if met else "MISSED")
    return table, all(met is not False for *_, met in rows)


def _flights() -> _Result:
    """All policies on the nights of 2013, from the second quarter on."""
    from perennial.core.settings import settings
    from perennial.features.engine import FeatureQuery
    from perennial.features.labelled_rows import read_labelled_rows
    from perennial.features.targets import encode_targets
    from perennial.local_stack.sample import landing
    from perennial.modeling.encoding import Encoding, categories

    spec = catalog.load_model_by_name(MODEL)
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as folder:
        os.environ |= {
            "PERENNIAL_HOME": folder,
            "PERENNIAL_LAKE": f"{folder}/lake",
            "PERENNIAL_LANDING": f"{folder}/landing",
        }
        from perennial.core import dates
        from perennial.steps import data
        from perennial.storage import delta_tables

        landing.land_sample(settings().landing)
        data.data(spec, start="2013-01-01", end="2013-12-31")
        features = FeatureQuery(spec)
        days = dates.dates("2013-01-01", "2013-12-30")
        known: dict[str, list[str]] = {}
        nights = []
        versions = [
            delta_tables.version(delta_tables.table_uri(kind, spec.name)) for kind in ("published", "labels")
        ]
        for day in days:
            table = next(read_labelled_rows(spec, (day,), *versions))
            rows = features.compute(table)
            for column in features.categorical:  # those of the first quarter; later ones are unseen
                if day < "2013-04-01":
                    seen = known.setdefault(column, [])
                    seen += [c for c in categories(rows.column(column)) if c not in seen]
            nights.append((rows, encode_targets(spec, table.column("__label"), ()).astype(np.float64)))
        encoding = Encoding(tuple(features.columns), {c: sorted(v) for c, v in known.items()})
    world = replay.World(spec, [(encoding.encode(x), y) for x, y in nights], days.index("2013-04-01"))
    return {p: replay.numbers(replay.play(world, p)) for p in replay.POLICIES}


def _year(year: _Result) -> Table:
    table = Table(title="Flights, April to December 2013")
    for head in ("policy", "AUC", "skill", "retrainings", "promoted"):
        table.add_column(head)
    for policy, n in year.items():
        table.add_row(
            policy, f"{n['auc']:.4f}", f"{n['skill']:.4f}", str(len(n["trained"])), str(len(n["promoted"]))
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
