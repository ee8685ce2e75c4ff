"""The suite of a new model: normal data of later partitions passes it, and it means what the validator makes of it."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.cli.new import expectations, partition_statistics, partitioning, templates
from perennial.cli.new._learned_checks import (
    ClassSet,
    LearnedCheck,
    NotNull,
    Range,
    RowCount,
    Rule,
    TextLength,
    ValueSet,
)
from perennial.cli.new.expectations import Holdout
from perennial.cli.new.partition_statistics import ColumnStatistics, PartitionStatistics
from perennial.cli.new.samples import event_times, sample_reader
from perennial.cli.new.samples.sample_reader import Sample
from perennial.cli.new.templates import ModelDraft
from perennial.core.partitions import Cadence, nominal_start
from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion import typed_rows
from perennial.storage import duckdb_session, landing
from perennial.validation import check_builder, validator
from perennial.validation.suite import MAX_EXPECTATIONS, parse_suite
from support import scaffolds

FIRST = dt.date(2024, 1, 1)
LIMIT = 0.05


def column(name: str, kind: str, low: Any, high: Any, filled: Any, **more: Any) -> ColumnStatistics:
    values = {"identifies": False, "values": {}} | more
    return ColumnStatistics(
        name,
        kind,
        filled=np.asarray(filled),
        low=np.asarray(low, float),
        high=np.asarray(high, float),
        **values,
    )


def statistics(rows: Any, *columns: ColumnStatistics) -> PartitionStatistics:
    rows = np.asarray(rows, np.int64)
    days = tuple(str(FIRST + dt.timedelta(days=i)) for i in range(len(rows)))
    return PartitionStatistics(days, rows, np.zeros(len(rows), np.int64), {c.name: c for c in columns})


def numbers(*values: float, name: str = "x", kind: str = "number", **more: Any) -> PartitionStatistics:
    """One column with one value in each partition."""
    return statistics(
        np.full(len(values), 10), column(name, kind, values, values, np.full(len(values), 10), **more)
    )


def bounds(rule: Rule, partitions: PartitionStatistics, level: int = 0) -> tuple[float, float] | None:
    check = rule.learn(partitions, level)
    return None if check is None else (check.low, check.high)


# --- the kinds of checks


def test_zero_is_no_bound() -> None:
    low, high = bounds(Range("x"), numbers(0, 3, 1, 2, 0, 3)) or (0, 0)
    assert low < -2 < 5 < high


@pytest.mark.parametrize("kind", ["integer", "number"])
@pytest.mark.parametrize("value", [0, 1, -7, 1e6])
def test_a_constant_column_may_change(value: float, kind: str) -> None:
    low, high = bounds(Range("x"), numbers(*[value] * 6, kind=kind)) or (0, 0)
    assert low <= value - 10
    assert high >= value + 10


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (range(100, 120), 71, math.inf),
        (range(120, 100, -1), -math.inf, 149),
        ([100, 103, 101, 106, 104, 109, 108, 113, 111, 118], 64, math.inf),
        ([5, 1, 4, 2, 5, 1, 3, 5, 2, 1], -7, 13),
    ],
)
def test_what_grows_has_no_upper_bound(values: list[float], low: float, high: float) -> None:
    assert bounds(Range("x"), numbers(*values, kind="integer")) == (low, high)


@pytest.mark.parametrize(
    ("name", "values", "low", "high"),
    [
        ("month", (1, 1, 2), 1, 12), ("order_month", (3, 3, 3), 1, 12), ("day", (5, 6, 7), 1, 31),
        ("dayofyear", (5, 6, 7), 1, 366), ("year", (2013, 2013, 2013), 1950, 2100), ("hour", (3, 4, 5), 0, 23),
        ("saleYear", (2013, 2014, 2014), 1950, 2100), ("week", (1, 1, 1), 1, 53), ("weekday", (2, 3, 4), 0, 7),
    ],
)  # fmt: skip
def test_the_calendar_goes_on(name: str, values: tuple[float, ...], low: float, high: float) -> None:
    learned = bounds(Range(name), numbers(*values, name=name, kind="integer"))
    assert learned is not None
    assert learned[0] <= low
    assert learned[1] >= high
    # a column that is called so and is none has a range as any other
    other = bounds(Range(name), numbers(0.5, 900_000, 4000, name=name)) or (0, 0)
    assert other[1] >= 900_000


def test_ids_have_no_range() -> None:
    assert Range("x").learn(numbers(1, 2, 3, 4, kind="integer", identifies=True), 0) is None


@pytest.mark.parametrize("values", [(-1e308, 1e308, 0), (1e-300, 2e-300, 0), (math.nan, math.nan, math.nan)])
def test_bounds_of_extreme_numbers_are_numbers(values: tuple[float, ...]) -> None:
    check = Range("x").learn(numbers(*values), 1)
    if check is None:
        assert np.isnan(values).all()
    else:
        json.dumps(check.entry, allow_nan=False)
        assert not check.fails(numbers(*values)).any()


def test_a_partition_stops_for_far_too_few_rows_only() -> None:
    rng = np.random.default_rng(1)
    weekly = np.where(np.arange(60) % 7 < 5, 1000, 200) + rng.integers(0, 50, 60)
    check = RowCount(critical=True).learn(statistics(weekly), 0)
    assert check is not None
    assert check.critical
    assert not check.fails(statistics([10**9, 200, 100])).any()
    assert check.fails(statistics([0, 1])).all()
    assert RowCount(critical=True).learn(statistics(weekly[:10]), 0) is None, "too few partitions"
    assert RowCount(critical=True).learn(statistics([1, 2, 1, 1] * 10), 0) is None, "no bound below one row"
    growing = RowCount(critical=False).learn(statistics(np.arange(100, 700, 10)), 0)
    assert growing is not None
    assert not growing.critical
    assert not growing.fails(statistics([700, 1000, 2000])).any()
    shrinking = RowCount(critical=True).learn(statistics(np.arange(1000, 100, -15)), 0)
    assert shrinking is None or not shrinking.fails(statistics([60])).any()


def classes(rows: int, partitions: int, *counts: int) -> PartitionStatistics:
    values = {f"c{i}": np.full(partitions, n) for i, n in enumerate(counts)}
    return statistics(
        np.full(partitions, rows), column("y", "string", [1] * partitions, [1] * partitions, [rows] * partitions,
                                          values=values)
    )  # fmt: skip


def test_a_new_class_is_an_error_only_if_all_are_known() -> None:
    def severity(rule: Rule, partitions: PartitionStatistics, level: int = 0) -> str:
        check = rule.learn(partitions, level)
        return "none" if check is None else "critical" if check.critical else "warning"

    assert severity(ClassSet("y"), classes(100, 10, 60, 40)) == "critical"
    assert severity(ClassSet("y"), classes(100, 10, 60, 40), 1) == "warning"
    assert severity(ClassSet("y"), classes(10, 10, 6, 4)) == "warning", "few rows"
    assert severity(ClassSet("y"), classes(100, 4, 60, 40)) == "warning", "few partitions"
    assert severity(ValueSet("y"), classes(100, 10, 60, 40)) == "warning", "not the label"
    assert severity(ValueSet("y"), classes(1, 1, 1, 0)) == "none", "rare values"
    zeros = statistics([9] * 5, column("y", "integer", [0] * 5, [0] * 5, [9] * 5, values={0: np.full(5, 9)}))
    check = ClassSet("y", (0, 1)).learn(zeros, 0)
    assert check is not None
    assert check.entry["kwargs"]["value_set"] == [0, 1], "a sample of one class"


def test_from_few_partitions_nothing_is_learned() -> None:
    rules: list[Rule] = [RowCount(critical=True), RowCount(critical=False), NotNull("x"), Range("x")]
    for n in (1, 2, 4):
        checks, holdout = expectations.learn(rules, numbers(*range(n)), LIMIT)
        assert checks == []
        assert holdout == Holdout(0, 0, 0)
    checks, holdout = expectations.learn(rules, numbers(1, 2, 3, 1, 2), LIMIT)
    assert len(checks) == 3
    assert holdout.partitions == 3


# --- normal data passes


def feed(seed: int, partitions: int) -> PartitionStatistics:
    """A feed whose distribution does not change, or moves as calendars, counters and growing shops do."""
    rng = np.random.default_rng(seed)
    mean = 10 ** rng.uniform(0, 3.5)
    weekly = np.where(np.arange(partitions) % 7 < 5, 1.0, rng.uniform(0.05, 1))
    growth = np.exp(rng.choice([0, 0, rng.uniform(-0.004, 0.01)]) * np.arange(partitions))
    spread = np.exp(rng.normal(size=partitions) * rng.choice([0, 0.1, 0.5, 1.0]))
    rows = np.maximum(1, rng.poisson(mean * weekly * growth * spread))
    columns: list[ColumnStatistics] = []
    draws = [
        lambda n: rng.normal(size=n), lambda n: rng.lognormal(0, 1.5, n), lambda n: rng.pareto(1.5, n),
        lambda n: rng.integers(0, 5, n), lambda n: np.zeros(n), lambda n: (rng.random(n) < 0.002) * 1.0,
        lambda n: np.abs(rng.standard_t(2, n)),
    ]  # fmt: skip
    for j, draw in enumerate(draws):
        extremes = np.array([(v.min(), v.max()) for v in (draw(n) for n in rows)], float)
        missing = rng.binomial(rows, rng.choice([0, 0, 0.0005, 0.2]))
        columns.append(column(f"n{j}", "number", *extremes.T, rows - missing))
    total = np.cumsum(rows)
    columns.append(column("counter", "integer", total - rows + 1, total, rows, identifies=True))
    columns.append(column("stock", "number", total - rows, total * 1.1, rows))
    shares = rng.dirichlet(np.full(int(rng.integers(2, 30)), rng.choice([0.2, 1, 10])))
    for name in ("text", "label"):
        counted = rng.multinomial(rows, shares)
        values = {f"v{k:02}": counted[:, k] for k in range(len(shares)) if counted[:, k].sum()}
        columns.append(
            column(name, "string", np.full(partitions, 3), np.full(partitions, 3), rows, values=values)
        )
    lengths = 1 + np.array([rng.geometric(0.1, n).max() for n in rows])
    columns.append(column("note", "string", np.ones(partitions), lengths, rows))
    return statistics(rows, *columns)


def rules_of(partitions: PartitionStatistics) -> list[Rule]:
    rules: list[Rule] = [RowCount(critical=True), RowCount(critical=False)]
    for c in partitions.columns.values():
        rules.append(NotNull(c.name))
        if c.kind != "string":
            rules.append(Range(c.name))
        elif c.name == "label":
            rules.append(ClassSet(c.name))
        else:
            rules.append(ValueSet(c.name) if c.values else TextLength(c.name))
    return rules


def later_shares(feeds: range, partitions: int, later: int) -> tuple[float, float, int]:
    """Of feeds' later partitions, the share that is stopped and that has a warning; and the number of checks."""
    stopped = warned = checks_count = 0
    for seed in feeds:
        whole = feed(seed, partitions + later)
        known, unknown = whole.select(slice(partitions)), whole.select(slice(partitions, None))
        checks, _ = expectations.learn(rules_of(known), known, LIMIT)
        checks_count += len(checks)
        stopped += int(expectations.stops(checks, unknown, LIMIT).sum())
        warned += int(np.any([c.fails(unknown) for c in checks if not c.critical], axis=0).sum())
    return stopped / len(feeds) / later, warned / len(feeds) / later, checks_count


@pytest.mark.parametrize("partitions", [5, 7, 14, 30, 60, 120])
def test_later_partitions_of_a_stationary_feed_are_not_stopped(partitions: int) -> None:
    stopped, warned, checks = later_shares(range(partitions, partitions + 40), partitions, 30)
    print(f"{partitions} partitions: stopped {stopped:.2%}, warned {warned:.2%}, {checks / 40:.0f} checks")
    assert stopped < 0.01
    assert warned < 0.25
    assert checks > 40 * 10, "not by having no checks"


def test_the_simulated_holdout_counts_what_would_have_been_stopped() -> None:
    rows = np.full(40, 100)
    partitions = statistics(rows, column("x", "number", np.zeros(40), np.ones(40), rows))
    object.__setattr__(partitions, "quarantined", np.where(np.arange(40) % 4 == 0, 10, 0))
    checks, holdout = expectations.learn(rules_of(partitions), partitions, LIMIT)
    later = [i for n in (20, 24, 28, 32, 36) for i in range(n, 40)]
    assert holdout.partitions == len(later) == 60
    assert holdout.stopped == sum(i % 4 == 0 for i in later) == 15
    assert "15 of 60 later ones (25.0%)" in holdout.text
    assert not any(check.critical for check in checks), "they do not add to it"


def test_a_check_that_later_partitions_fail_becomes_wider_or_is_left_out() -> None:
    once, always = np.zeros(40), np.zeros(40)
    once[30] = 5
    always[20:] = 10.0 ** np.arange(20)
    rows = np.full(40, 100)
    partitions = statistics(
        rows,
        column("once", "number", np.zeros(40) - 1, once + 1, rows),
        column("jumps", "number", np.zeros(40), always, rows),
    )
    checks, _ = expectations.learn([Range("once"), Range("jumps")], partitions, LIMIT)
    assert [(c.column, c.high > 50) for c in checks if c.column == "once"] == [("once", True)]
    assert not any(c.column == "jumps" and math.isfinite(c.high) for c in checks)


# --- what it says is what the validator does


def table(day: int, n: int, rng: np.random.Generator, *, odd: bool = False) -> pa.Table:
    """One partition; an odd one breaks many checks."""
    when = dt.datetime.combine(FIRST, dt.time(9)) + dt.timedelta(days=day)
    x = rng.normal(size=n)
    cells: dict[str, Any] = {
        "id": [f"{day}-{i}" for i in range(n)],
        "seen at": [when + dt.timedelta(seconds=i) for i in range(n)],
        "x": [None, 1e6, *x[2:]] if odd else x,
        'a "b", [c]': rng.integers(0, 9, n) + (1000 if odd else 0),
        "select": ["other", *rng.choice(["a", "b"], n - 1)] if odd else rng.choice(["a", "b"], n),
        "note": ["z" * 500] * n if odd else [f"some text {i}" for i in range(n)],
        "file_index": pa.array([None] * n if odd else list(range(n)), pa.int64()),
        "y": ["new", *rng.choice(["no", "yes"], n - 1)] if odd else rng.choice(["no", "yes"], n),
    }
    return pa.table(cells)


@contextmanager
def opened(paths: list[Path], folder: Path, **changes: Any) -> Iterator[tuple[Sample, ModelDraft]]:
    with sample_reader.open_sample(paths, str(folder)) as sample:
        source = next(iter(event_times.time_sources(sample)))
        partitions = partitioning.divide(sample, source=source)
        values: dict[str, Any] = {
            "name": "toy", "task": "multiclass", "label": "y", "key": ["id"], "event_time": "seen at", "owner": "me",
            "description": "A toy.", "source": "{landing}/{date}.parquet", "days": partitions.counts,
        }  # fmt: skip
        yield sample, ModelDraft(**(values | changes))


def learned(sample: Sample, draft: ModelDraft) -> tuple[list[LearnedCheck], PartitionStatistics]:
    without = {*draft.key, draft.event_time or "", *draft.personal}
    partitions = partition_statistics.measure(sample, draft, without, 50)
    checks, _ = expectations.learn(expectations._rules(sample, draft, partitions), partitions, LIMIT)
    return checks, partitions


def test_the_suite_means_what_the_statistics_say(empty_home: Path, tmp_path: Path) -> None:
    """Of normal and odd partitions, the validator fails and stops the same ones."""
    rng = np.random.default_rng(3)
    normal = [table(i, 40, rng) for i in range(24)]
    odd = [table(24 + i, 12, rng, odd=True) for i in range(2)] + [table(26, 2, rng), table(27, 45, rng)]
    sample_path = scaffolds.write(tmp_path / "sample.parquet", pa.concat_tables(normal))
    with opened([sample_path], tmp_path) as (sample, draft):
        suite = expectations.compose(sample, draft)
        checks, _ = learned(sample, draft)
        kinds = {c.name: c.kind for c in sample.columns.values()}
        listed = {c.name: c.values for c in sample.columns.values()}
    assert len(checks) >= 12
    other_path = scaffolds.write(tmp_path / "other.parquet", pa.concat_tables(normal + odd))
    with opened([other_path], tmp_path) as (sample, draft):
        for name in ("select", "y"):  # a value that only some partition has is counted as well
            assert {*listed[name]} < {*sample.columns[name].values}
        statistics_of_all = partition_statistics.measure(sample, draft, {"id", "seen at"}, 50)
    stopped = expectations.stops(checks, statistics_of_all, LIMIT)

    parsed, problems = parse_suite(suite.text, kinds)
    assert problems == []
    schema = FeedSchema("toy", "rows", kinds)
    with duckdb_session.connect() as con:
        files = []
        for i, rows in enumerate(normal + odd):
            path = scaffolds.write(tmp_path / "landed" / f"{i}.parquet", rows)
            day = str(FIRST + dt.timedelta(days=i))
            files.append(landing.fetch_file(schema, day, str(path), tmp_path, con))
        failures = typed_rows.create_landed_view(con, schema, files, "__rows", tmp_path / "typed.parquet")
        built = check_builder.build_checks(parsed, kinds, ["id"], "seen at", failures)
        findings = validator.validate(con, schema, files, built, LIMIT, "__rows", {})
    failed: dict[str, set[int]] = {}
    for i, outcome in enumerate(findings.outcomes):
        for result in outcome.results:
            if not result.success:
                config = result.expectation_config
                entry = (config.type, config.kwargs.get("column"), config.kwargs.get("max_value"))
                failed.setdefault(str(entry), set()).add(i)
    for check in checks:
        kwargs = check.entry["kwargs"]
        said = {*np.flatnonzero(check.fails(statistics_of_all)).tolist()}
        entry = (check.entry["type"], kwargs.get("column"), kwargs.get("max_value"))
        assert said == failed.get(str(entry), set()), check
    assert [bool(o.stopped) for o in findings.outcomes] == stopped.tolist()
    assert stopped.tolist()[:24] == [False] * 24
    assert sum(stopped) == 3, "two odd ones, by their new class; and one with two rows"


def test_measured_statistics(empty_home: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rows = [table(i, 10 + i, rng, odd=i == 3) for i in range(4)]
    rows[1] = pa.concat_tables([rows[1], rows[1].slice(0, 2)])  # two keys twice
    x = pa.array([math.inf, -math.inf, *([0.5] * 8)])
    rows[0] = rows[0].set_column(2, "x", x)
    path = scaffolds.write(tmp_path / "sample.parquet", pa.concat_tables(rows))
    with opened([path], tmp_path) as (sample, draft):
        measured = partition_statistics.measure(sample, draft, {"id"}, 50)
    assert measured.days == tuple(str(FIRST + dt.timedelta(days=i)) for i in range(4))
    assert measured.rows.tolist() == [10, 13, 12, 13]
    assert measured.quarantined.tolist() == [2, 2, 0, 0]
    assert measured.columns["x"].filled.tolist() == [10, 13, 12, 12]
    assert measured.columns["x"].low[0] == measured.columns["x"].high[0] == 0.5
    assert measured.columns["note"].high.tolist() == [11, 12, 12, 500]
    assert measured.columns["file_index"].filled.tolist() == [10, 13, 12, 0]
    assert np.isnan(measured.columns["file_index"].low[3])
    for i, part in enumerate(rows):
        for value, counts in measured.columns["y"].values.items():
            assert counts[i] == part["y"].to_pylist().count(value)
        assert measured.columns['a "b", [c]'].high[i] == max(part['a "b", [c]'].to_pylist())


@pytest.mark.parametrize(
    ("cadence", "key"),
    [(Cadence("week"), "2024-01-01"), (Cadence("month"), "2024-01"), (Cadence("hour"), "2024-01-01T05")],
)
def test_rows_are_late_after_the_end_of_their_partition_only(
    empty_home: Path, tmp_path: Path, cadence: Cadence, key: str
) -> None:
    end = cadence.event_limit(key)
    times = [nominal_start(key), end - dt.timedelta(seconds=1), end]
    rows = pa.table({"id": ["a", "b", "c"], "seen at": times, "y": ["no", "yes", "no"]})
    path = scaffolds.write(tmp_path / "sample.parquet", rows)
    with opened([path], tmp_path, cadence=cadence) as (sample, draft):
        partitioning._assign(sample, f"SELECT __file, __row, '{key}' AS __day FROM __rows")
        measured = partition_statistics.measure(sample, draft, {"id"}, 50)
    assert measured.days == (key,)
    assert measured.quarantined.tolist() == [1]


def test_one_partition_has_structural_checks_only(empty_home: Path, tmp_path: Path) -> None:
    path = scaffolds.write(tmp_path / "s.parquet", table(0, 50, np.random.default_rng(0)))
    with opened([path], tmp_path, personal=["note"]) as (sample, draft):
        suite = expectations.compose(sample, draft)
    content = json.loads(suite.text)
    assert {e["type"] for e in content["expectations"]} == {
        "expect_table_columns_to_match_set", "expect_column_values_to_not_be_null",
        "expect_column_values_to_be_unique",
    }  # fmt: skip
    assert "of columns and key only" in suite.remarks[0]
    assert "the columns and the key only" in suite.summary


def test_values_of_personal_data_and_of_a_separate_label_are_in_no_check(
    empty_home: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    path = scaffolds.write(tmp_path / "s.parquet", pa.concat_tables([table(i, 30, rng) for i in range(9)]))
    changes = {"personal": ["select"], "task": "binary", "label_sql": "\"y\" = 'yes'", "positive": "yes"}
    with opened([path], tmp_path, **changes) as (sample, draft):
        assert not templates.label_is_column(sample, draft)
        content = json.loads(expectations.compose(sample, draft).text)
    named = {e["kwargs"].get("column") for e in content["expectations"]}
    assert not {"select", "y"} & named
    (columns,) = (e["kwargs"]["column_set"] for e in content["expectations"] if "column_set" in e["kwargs"])
    assert "select" in columns
    assert "y" not in columns


def test_many_columns_have_a_suite_that_is_not_too_long(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 3 * partition_statistics.MAX_COLUMNS < MAX_EXPECTATIONS
    monkeypatch.setattr(partition_statistics, "MAX_COLUMNS", 10)
    n = 30
    cells: dict[str, Any] = {
        "id": [str(i) for i in range(n)],
        "seen at": [dt.datetime(2024, 1, 1 + i % 5, 9) for i in range(n)],
        "y": ["no", "yes"] * (n // 2),
    }
    cells |= {f"c{i}": np.arange(n) * 0.5 for i in range(30)}
    path = tmp_path / "wide.parquet"
    pq.write_table(pa.table(cells), path)
    with opened([path], tmp_path) as (sample, draft):
        suite = expectations.compose(sample, draft)
        kinds = {c.name: c.kind for c in sample.columns.values()}
    parsed, problems = parse_suite(suite.text, kinds)
    assert problems == []
    assert 10 < len(parsed) <= 25
    assert any("21 columns" in remark for remark in suite.remarks)
    assert any(e.columns == ["y"] for e in parsed), "the label is among them"
