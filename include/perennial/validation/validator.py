"""Validation of partitions of any size: one DuckDB aggregate over the files, judged by Great Expectations.

Great Expectations says which metrics each expectation asks for; the aggregate, grouped by file, answers them, and
``metrics_validate`` judges. So results are Great Expectations' own, and the memory does not grow with the rows. A
second pass is made only where something is broken: for the rows to put aside and for examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.core.sql import quote_identifier
from perennial.validation.checks import EXAMPLES, Check
from perennial.validation.gx_evaluator import ExpectationEvaluator, ValidationOutcome

if TYPE_CHECKING:
    import duckdb

    from perennial.storage.landing import FeedSchema, LandedFile

_TEXT_EXAMPLE = 120


@dataclass
class ValidationFindings:
    """The outcome of each partition, and how to tell its bad rows.

    Attributes:
        source: SQL relation to read rows from: the view, joined to what tells duplicates where there are any.
        reasons: SQL condition of a bad row, by label; no entry: no row is bad.
    """

    outcomes: list[ValidationOutcome]
    source: str
    reasons: dict[str, str]

    @property
    def bad(self) -> str:
        """SQL condition of a row that goes to quarantine."""
        return " OR ".join(f"({sql})" for sql in self.reasons.values()) or "FALSE"


def validate(
    con: duckdb.DuckDBPyConnection, feed: FeedSchema, landed: list[LandedFile], checks: list[Check], limit: float,
    view: str = "rows",
) -> ValidationFindings:  # fmt: skip
    """Validate the files of ``view`` (see `perennial.storage.landing.view`).

    Args:
        limit: share of rows in quarantine above which a partition is stopped.

    Raises:
        duckdb.Error: a file is malformed beyond its footer.
    """
    profiles = _profile(con, landed, checks, view)
    source, twice = _duplicates(con, checks, profiles, view)
    counts = [[_bad(c, i, p, twice) for i, c in enumerate(checks)] for p in profiles]
    reasons: dict[str, str] = {}
    for i, check in enumerate(checks):
        if check.level == "row" and check.critical and any(row[i] for row in counts):
            told = f"__twice_{i}" if check.unique else check.bad_row
            reasons[check.label] = f"{reasons[check.label]} OR {told}" if check.label in reasons else told
    shown = [i for i, c in enumerate(checks) if c.level == "row" and any(row[i] for row in counts)]
    extra = _second_pass(con, feed, checks, shown, reasons, source, len(landed)) if shown else {}
    outcomes = []
    judges = [ExpectationEvaluator(check, feed.personal) for check in checks]
    for f, (file, profile) in enumerate(zip(landed, profiles, strict=True)):
        quarantined, examples = extra.get(f, (0, {}))
        outcome = ValidationOutcome(file.day, profile["count(*)"], quarantined)
        for i, judge in enumerate(judges):
            judge.decide(outcome, profile, file.columns, counts[f][i], examples.get(i, []))
        _decide(outcome, limit)
        outcomes.append(outcome)
    return ValidationFindings(outcomes, source, reasons)


def _profile(
    con: duckdb.DuckDBPyConnection, landed: list[LandedFile], checks: list[Check], view: str
) -> list[dict[str, Any]]:
    """All aggregates of all checks, by their SQL, for each file: one query."""
    wanted = dict.fromkeys(["count(*)", *(sql for c in checks for sql in _needed(c))])
    empty = (
        con.execute(f"SELECT {', '.join(wanted)} FROM {view} WHERE FALSE").fetchall()[0]
        if _has_empty(landed)
        else ()
    )
    if len(landed) == 1:
        found = [(0, *con.execute(f"SELECT {', '.join(wanted)} FROM {view}").fetchall()[0])]
    else:
        found = con.execute(f"SELECT __file, {', '.join(wanted)} FROM {view} GROUP BY __file").fetchall()
    rows = {row[0]: row[1:] for row in found}
    return [dict(zip(wanted, rows.get(i, empty), strict=True)) for i in range(len(landed))]


def _has_empty(landed: list[LandedFile]) -> bool:
    return any(not file.rows for file in landed)


def _needed(check: Check) -> list[str]:
    found = check.aggregates()
    if check.level == "row" and len(check.columns) == 1:
        found = [*found, check.filled_sql]
    return found


def _bad(check: Check, index: int, profile: dict[str, Any], twice: dict[int, dict[int, int]]) -> int:
    """Bad rows of one check in one file."""
    if check.level != "row":
        return 0
    if check.unique:
        return twice.get(index, {}).get(profile["file"], 0)
    return int(profile[check.bad_sql])


def _duplicates(
    con: duckdb.DuckDBPyConnection, checks: list[Check], profiles: list[dict[str, Any]], view: str
) -> tuple[str, dict[int, dict[int, int]]]:
    """Find the rows that stand more than once, exactly, where the counts of hashes say that there may be any.

    Returns:
        The relation with one ``__twice_<i>`` a check, and rows by check and file.
    """
    for f, profile in enumerate(profiles):
        profile["file"] = f
    joins, selected, found = [], [], {}
    for i, check in enumerate(checks):
        suspects = [
            p["file"] for p in profiles if check.unique and p[check.bad_sql] != p[check.considered_sql]
        ]
        if not suspects:
            continue
        names = [quote_identifier(c) for c in check.unique]
        where = " AND ".join(w for w in (check.where, check.considered, f"__file IN {_tuple(suspects)}") if w)
        hashed = f"hash({', '.join(names)})"
        # by hash first: texts as group keys would cost twice as much; then exactly, among the few that share one
        suspect = f"SELECT {hashed} FROM {view} WHERE {where} GROUP BY __file, {hashed} HAVING count(*) > 1"
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE twice_{view}_{i} AS SELECT __file, {', '.join(names)}, count(*) AS n, "
            f"min(__row) AS first FROM {view} WHERE {where} AND {hashed} IN ({suspect}) "
            f"GROUP BY __file, {', '.join(names)} HAVING count(*) > 1"
        )
        found[i] = dict(
            con.execute(f"SELECT __file, sum(n)::BIGINT FROM twice_{view}_{i} GROUP BY 1").fetchall()
        )
        same = " AND ".join(f"{view}.{n} IS NOT DISTINCT FROM d{i}.{n}" for n in names)
        joins.append(f"LEFT JOIN twice_{view}_{i} d{i} ON {view}.__file = d{i}.__file AND {same}")
        looked = f" AND ({check.where})" if check.where else ""
        kept = f" AND {view}.__row <> d{i}.first" if check.keep_first else ""
        selected.append(f"(d{i}.n IS NOT NULL{kept}{looked}) AS __twice_{i}")
    if not joins:
        return view, {}
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {view}_told AS SELECT {view}.*, {', '.join(selected)} "
        f"FROM {view} {' '.join(joins)}"
    )
    return f"{view}_told", found


def _tuple(numbers: list[int]) -> str:
    return f"({', '.join(map(str, numbers))})"


def _second_pass(
    con: duckdb.DuckDBPyConnection, feed: FeedSchema, checks: list[Check], shown: list[int], reasons: dict[str, str],
    source: str, files: int,
) -> dict[int, tuple[int, dict[int, list[Any]]]]:  # fmt: skip
    """Rows to put aside, and examples of what is bad, for each file."""
    bad = " OR ".join(f"({sql})" for sql in reasons.values()) or "FALSE"
    wanted = []
    for i in shown:
        check = checks[i]
        if set(check.columns) & set(feed.personal):
            wanted.append("NULL")
            continue
        condition = f"__twice_{i}" if check.unique else check.bad_row
        texts = check.types
        values = [
            f"left({quote_identifier(c)}, {_TEXT_EXAMPLE})" if texts[c] == "string" else quote_identifier(c)
            for c in check.columns
        ]
        packed = values[0] if len(values) == 1 else f"[{', '.join(f'{v}::VARCHAR' for v in values)}]"
        wanted.append(f"min({packed}, {EXAMPLES}) FILTER (WHERE {condition})")
    rows = con.execute(
        f"SELECT __file, count(*) FILTER (WHERE {bad}), {', '.join(wanted)} FROM {source} GROUP BY __file"
    ).fetchall()
    return {
        r[0]: (r[1], {i: [_plain(v, checks[i]) for v in r[n + 2] or []] for n, i in enumerate(shown)})
        for r in rows
    }


def _plain(value: Any, check: Check) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return dict(zip(check.columns, value, strict=True)) if "column_list" in check.kwargs else tuple(value)
    return value


def _decide(outcome: ValidationOutcome, limit: float) -> None:
    if outcome.evaluated < outcome.declared and not outcome.stopped:
        outcome.stopped.append(f"{outcome.evaluated} of {outcome.declared} expectations were evaluated")
    if outcome.rows and outcome.quarantined / outcome.rows > limit:
        worst = ", ".join(
            f"{n} × {label}" for label, n in sorted(outcome.broken.items(), key=lambda b: -b[1])[:3]
        )
        share = f"{outcome.quarantined / outcome.rows:.1%}"
        outcome.stopped.append(f"{outcome.quarantined} of {outcome.rows} rows ({share}) "
                               f"would go to quarantine, quarantine_limit is {limit:.1%}: {worst}")  # fmt: skip
