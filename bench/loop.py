"""`make bench-loop`: the value of monitoring and retraining, on streams with known changes and on real ones."""

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

from bench import real_streams, replay
from bench.real_streams import LIVE_START, RealStream
from bench.streams import HISTORY, KINDS, LIVE, Stream

_Result = dict[str, Any]
MODEL = "flight_late"
#: Partitions within which a harmful change should be detected, and within which an alarm is still attributed to it.
GOAL_DELAY, MAX_DELAY = 3, 30
#: Goals on real streams: least share of nightly's AUC, and of the better one of never's and monthly's.
GOAL_OF_NIGHTLY, GOAL_OF_SIMPLE = 0.99, 0.995


def main() -> int:
    """Replay the policies, and print the results; returns 0 if all goals are met."""
    parser = argparse.ArgumentParser(prog="bench-loop", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="streams of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of streams, separated by commas")
    parser.add_argument("--no-flights", action="store_true", help="leave out the replay of all flights")
    parser.add_argument(
        "--no-real", action="store_true", help="leave out the real streams, and that of all flights"
    )
    parser.add_argument("--no-generated", action="store_true", help="leave out the generated streams")
    parser.add_argument("--quick", action="store_true", help="one stream of each kind, without all flights")
    parser.add_argument("--out", type=Path, help="JSON file to write the numbers to")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console(width=max(120, Console().width))
    seeds = 0 if options.no_generated else 1 if options.quick else options.seeds
    jobs = [(kind, seed) for seed in range(seeds) for kind in options.kinds.split(",")]
    streams = () if options.no_real else real_streams.QUICK if options.quick else real_streams.STREAMS
    with_flights = not (options.no_flights or options.no_real or options.quick)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        flights = pool.submit(_replay_flights) if with_flights else None
        real = pool.map(_replay_real_stream, streams)
        results = []
        for i, result in enumerate(pool.map(_replay_stream, jobs), 1):
            results.append(result)
            console.print(f"{i} of {len(jobs)}: {result['kind']}, seed {result['seed']}", style="dim")
        on_real = list(real)
        on_flights = flights.result() if flights else None
    met = []
    for replayed, tables in ((results, _generated_tables), (on_real, _real_tables)):
        if replayed:
            of_streams, goals, all_met = tables(replayed)
            console.print(of_streams)
            console.print(goals)
            met.append(all_met)
    if on_flights:
        console.print(_flights_table(on_flights))
    if options.out:
        numbers = {"streams": results, "real": on_real, "flights": on_flights}
        options.out.write_text(json.dumps(numbers, indent=1))
    return 0 if all(met) else 1


def _replay_stream(job: tuple[str, int]) -> _Result:
    return replay.replay_stream(Stream(*job), replay.sample_spec(MODEL))


def _replay_real_stream(stream: RealStream) -> _Result:
    scenario = stream.scenario()
    return {
        "name": stream.name,
        "policies": {p: replay.to_json(replay.replay_policy(scenario, p)) for p in replay.POLICIES},
    }


def delays(result: _Result) -> list[int | None]:
    """Detection delay of each harmful change.

    Returns:
        For each, the number of partitions with the change whose labels were known at the alarm; None: not detected.
    """
    numbers = result["policies"]["perennial"]
    raised = sorted({*numbers["alarms"], *numbers["trained"]})
    delays: list[int | None] = []
    harmful = [night for night, harm in result["harms"] if harm > replay.HARM]
    for i, night in enumerate(harmful):
        end = min([night + MAX_DELAY, *harmful[i + 1 : i + 2]])
        # A gradual change may be detected before it does harm.
        hits = [alarm - night for alarm in raised if (result["change"] if not i else night) < alarm <= end]
        delays.append(max(hits[0], 0) if hits else None)
    return delays


def is_harmless(result: _Result) -> bool:
    """Whether no change of a stream makes a difference to the model."""
    return all(harm < replay.HARMLESS for _, harm in result["harms"])


def false_alarms(result: _Result) -> tuple[int, int]:
    """False alarms of a stream, and the number of partitions on which an alarm would be false.

    These are the partitions before the first change, or all of them if no change makes a difference.
    """
    end = HISTORY + LIVE if is_harmless(result) else result["change"]
    numbers = result["policies"]["perennial"]
    raised = {*numbers["alarms"], *numbers["trained"]}
    return sum(alarm < end for alarm in raised), end - HISTORY


def needless_promotions(result: _Result) -> tuple[int, int]:
    """Number of regular challengers on the partitions on which an alarm would be false, and of those promoted."""
    end = HISTORY + LIVE if is_harmless(result) else result["change"]
    numbers = result["policies"]["perennial"]
    regular = {night for night in numbers["regular"] if night < end}
    return len(regular), len(regular.intersection(numbers["promoted"]))


def _trainings(numbers: _Result) -> str:
    return f"{len(numbers['trained'])} + {len(numbers['regular'])}"


def _interval(values: Sequence[float], statistic: Callable[..., Any] = np.mean) -> str:
    """A statistic over streams, with its 95% confidence interval (percentile bootstrap over streams)."""
    data = np.asarray(values, dtype=np.float64)
    estimate = float(statistic(data))
    if len(data) < 2 or np.ptp(data) == 0:
        return f"{estimate:.3g}"
    interval = bootstrap((data,), statistic, method="percentile", rng=np.random.default_rng(0))
    low, high = interval.confidence_interval
    return f"{estimate:.3g} [{low:.3g}, {high:.3g}]"


def _shares_of_oracle(results: Sequence[_Result], policy: str, score: str) -> list[float]:
    return [r["policies"][policy][score] / r["oracle"][score] for r in results]


def _kinds_table(results: Sequence[_Result]) -> Table:
    table = Table(title=f"{LIVE} partitions a stream; share of the oracle's AUC, and retrainings")
    for head in (
        "stream",
        "changes detected",
        "highest harm",
        "delay",
        "false alarms per 100 partitions",
        *replay.POLICIES,
        "retrainings, nightly",
        "retrainings, perennial",
    ):
        table.add_column(head)
    for kind in dict.fromkeys(r["kind"] for r in results):
        of_kind = [r for r in results if r["kind"] == kind]
        all_delays = [d for r in of_kind for d in delays(r)]
        detected = [d for d in all_delays if d is not None]
        counts = np.array([false_alarms(r) for r in of_kind]).sum(axis=0)
        highest_harm = max((harm for r in of_kind for _, harm in r["harms"]), default=0.0)
        cells = [
            f"{len(detected)} of {len(all_delays)}" if all_delays else "",
            f"{max(highest_harm, 0.0):.0%}",
            _interval(detected) if detected else "",
            f"{100 * counts[0] / counts[1]:.2g}",
        ]
        cells += [_interval(_shares_of_oracle(of_kind, p, "auc")) for p in replay.POLICIES]
        for policy in ("nightly", "perennial"):
            by_stream = [r["policies"][policy] for r in of_kind]
            cells.append(_interval([len(n["trained"]) + len(n["regular"]) for n in by_stream]))
        table.add_row(kind, *cells)
    return table


def _generated_tables(results: Sequence[_Result]) -> tuple[Table, Table, bool]:
    """The policies on the generated streams, the goals, and whether all of them are met."""
    trainings = sum(len(r["policies"]["perennial"][n]) for r in results for n in ("trained", "regular"))
    nightly = sum(len(r["policies"]["nightly"]["trained"]) for r in results)
    auc, skill = (_shares_of_oracle(results, "perennial", score) for score in ("auc", "skill"))
    soon = [float(d is not None and d <= GOAL_DELAY) for r in results for d in delays(r)]
    rates = [100 * alarms / partitions for alarms, partitions in map(false_alarms, results)]
    harmless = [r for r in results if is_harmless(r) and r["kind"] != "none"]
    regular, promoted = np.array([needless_promotions(r) for r in results]).sum(axis=0)
    needless = [float(len(r["policies"]["perennial"]["trained"])) for r in harmless]
    rows = [
        ("share of the oracle's AUC", _interval(auc), "≥ 0.95", np.mean(auc) >= 0.95),
        ("share of nightly's retrainings", f"{trainings / nightly:.3f}", "≤ 0.25", trainings <= 0.25 * nightly),
        ("false alarms per hundred partitions without a change", _interval(rates), "≤ 1", np.mean(rates) <= 1),
        (f"harmful changes detected within {GOAL_DELAY} partitions", _interval(soon) if soon else "none", "≥ 0.95",
         not soon or np.mean(soon) >= 0.95),
        ("as a count", f"{sum(soon):.0f} of {len(soon)}", "", None),
        ("regular challengers promoted, of those without a change", f"{promoted} of {regular}", "", None),
        ("retrainings by signals of a stream whose change does no harm",
         _interval(needless) if needless else "none", "0", not needless or max(needless) == 0),
        ("share of the oracle's skill (1 - log loss / log 2)", _interval(skill), "", None),
    ]  # fmt: skip
    return _kinds_table(results), *_goals_table(f"{len(results)} generated streams", rows)


def _goals_table(title: str, rows: Sequence[tuple[str, str, str, Any]]) -> tuple[Table, bool]:
    """The goals as a table, and whether all of them are met.

    Args:
        title: of the table.
        rows: name, measured value, goal, and whether it is met; None if there is no goal.
    """
    table = Table(title=title)
    for head in ("", "measured, with 95% interval", "goal", ""):
        table.add_column(head)
    for name, measured, goal, met in rows:
        table.add_row(name, measured, goal, "" if met is None else "met" if met else "MISSED")
    return table, all(met is None or bool(met) for *_, met in rows)


def _real_tables(results: Sequence[_Result]) -> tuple[Table, Table, bool]:
    """The policies on the real streams, the goals, and whether all of them are met."""
    table = Table(title="Real streams, April to December 2013: AUC")
    for head in ("stream", *replay.POLICIES, "of nightly's", "of the better of never's and monthly's",
                 "retrainings by signals + regular ones",
                 "promoted"):  # fmt: skip
        table.add_column(head)
    of_nightly, of_simple, trainings, nightly = [], [], 0, 0
    for result in results:
        by_policy = result["policies"]
        auc = {policy: numbers["auc"] for policy, numbers in by_policy.items()}
        ours = by_policy["perennial"]
        of_nightly.append(auc["perennial"] / auc["nightly"])
        of_simple.append(auc["perennial"] / max(auc["never"], auc["monthly"]))
        trainings, nightly = (
            trainings + len(ours["trained"]) + len(ours["regular"]),
            nightly + len(by_policy["nightly"]["trained"]),
        )
        table.add_row(
            result["name"], *(f"{auc[p]:.4f}" for p in replay.POLICIES), f"{of_nightly[-1]:.3f}",
            f"{of_simple[-1]:.3f}", _trainings(ours), str(len(ours["promoted"])),
        )  # fmt: skip
    rows = [
        ("mean share of nightly's AUC", _interval(of_nightly), f"≥ {GOAL_OF_NIGHTLY}",
         np.mean(of_nightly) >= GOAL_OF_NIGHTLY),
        ("least share of the better of never's and monthly's AUC", f"{min(of_simple):.3f}", f"≥ {GOAL_OF_SIMPLE}",
         min(of_simple) >= GOAL_OF_SIMPLE),
        ("share of nightly's retrainings", f"{trainings / nightly:.3f}", "≤ 0.25", trainings <= 0.25 * nightly),
    ]  # fmt: skip
    return table, *_goals_table(f"{len(results)} real streams", rows)


def _replay_flights() -> _Result:
    """All policies on the partitions of 2013, from the second quarter on."""
    from perennial.core import dates

    spec = replay.sample_spec(MODEL)
    days = dates.dates("2013-01-01", "2013-12-30")
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as folder:
        os.environ |= {
            "PERENNIAL_HOME": folder,
            "PERENNIAL_LAKE": f"{folder}/lake",
            "PERENNIAL_LANDING": f"{folder}/landing",
        }
        nights = _flight_partitions(days)
    scenario = replay.Scenario(spec, nights, days.index(LIVE_START))
    return {p: replay.to_json(replay.replay_policy(scenario, p)) for p in replay.POLICIES}


def _flight_partitions(days: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ingest the flights; returns the encoded features and the labels of each date."""
    from perennial.core.settings import settings
    from perennial.features.engine import FeatureQuery
    from perennial.features.labelled_rows import LABEL, read_labelled_rows
    from perennial.features.targets import encode_targets
    from perennial.local_stack.sample import landing
    from perennial.modeling.encoding import Encoding, distinct_categories
    from perennial.steps import data
    from perennial.storage import delta_tables

    spec = replay.sample_spec(MODEL)
    landing.land_sample(settings().landing)
    data.data(spec, start="2013-01-01", end="2013-12-31")
    features = FeatureQuery(spec)
    by_column: dict[str, list[str]] = {}
    nights = []
    published, labels = (
        delta_tables.version(delta_tables.table_uri(kind, spec.name)) for kind in ("published", "labels")
    )
    for day in days:
        table = next(read_labelled_rows(spec, (day,), published, labels))
        rows = features.compute(table)
        for column in features.categorical if day < LIVE_START else ():
            listed = by_column.setdefault(column, [])
            listed += [c for c in distinct_categories(rows.column(column)) if c not in listed]
        nights.append((rows, encode_targets(spec, table.column(LABEL), ()).astype(np.float64)))
    encoding = Encoding(tuple(features.columns), {c: sorted(v) for c, v in by_column.items()})
    return [(encoding.encode(rows), y) for rows, y in nights]


def _flights_table(by_policy: _Result) -> Table:
    table = Table(title="Flights, April to December 2013")
    for head in ("policy", "AUC", "skill", "retrainings", "promoted"):
        table.add_column(head)
    for policy, n in by_policy.items():
        table.add_row(policy, f"{n['auc']:.4f}", f"{n['skill']:.4f}", _trainings(n), str(len(n["promoted"])))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
