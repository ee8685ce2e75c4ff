"""Columns, features, keys, labels, lists and reference tables with unlucky names give the numbers of plain names."""

from __future__ import annotations

import datetime as dt
import json
import string
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import yaml

from perennial.cli.check import preflight
from perennial.core import dates
from perennial.core.sql import quote_identifier
from perennial.lifecycle.ab_trial import ABSplit
from perennial.modeling import registry
from perennial.spec.catalog import load_model
from perennial.spec.constraints import feature_name_fault
from perennial.spec.model_spec import ModelSpec
from perennial.steps.data import data
from perennial.steps.decide import decide
from perennial.steps.monitor import monitor
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import landing
from sql_names import AUTHORS, LAKE_COLUMNS, sql_names
from support import lake, toys

DAYS, ROWS = 7, 36
LAST = dates.add_days(toys.FIRST, DAYS - 1)
#: Columns of the rows that mean something, by role; those that follow are the values of more features.
KEY = ("key_text", "key_number", "key_date")
ROLES = (*KEY, "at", "list", "place", "kind", "x", "z", "own_label")
REFERENCE_ROLES = ("reference_place", "known_at", "size")
ALIASES = ("hour", "joined", "key", "sum")
#: Number of more features by task: of CSV files, which multiclass reads, more would not fit in the tests' memory. The
#: two models of ranking have all names between them.
EXTRAS = {"multiclass": 12, "ranking": 75}
#: The key columns of each model are called like columns that the lake's tables have beside the key.
CASES = [
    ("multiclass", 0, ("label", "prediction", "run_id")),
    ("ranking", 0, ("arrived", "model_version", "scored_at")),
    ("ranking", 1, ("feed", "reasons", "scored_from")),
]
#: Names that the library's SQL had before its names had a prefix, and those that a join, an ORDER BY, pandas or Arrow
#: could mistake for something else.
NAMES = """
c n r l m g p d d0 t first last label grp day scores published labels scored known_labels groups log logged source_rows
window_rows served of_version reference monitoring sample files features count_star() count file_index file_row_number
filename rowid index level_0 column target values items table_name main temp é ß 日本 e\u0301 ä \" \"\" ' a.b a . ` $x
{x} %s ; -- /* \\ / ? * = , 0 1e5 NaN None null true _ _x # & °C (x) :x
""".split()  # noqa: SIM905
NAMES += ["a b", " ", " a", "x" * 128]


def names(keywords: Sequence[str] = ()) -> list[str]:
    """The names that are worth a try, each once for SQL."""
    ours = [name.lstrip("_") for name in sql_names()]
    tried = [*NAMES, *LAKE_COLUMNS, *AUTHORS, *ours, *string.ascii_lowercase, *keywords]
    unique = {n.lower(): n for n in reversed(tried) if n and n != "partition_date"}
    return sorted(unique.values())


def sql_keywords() -> list[str]:
    with duckdb.connect() as con:
        return [
            str(k) for (k,) in con.execute("SELECT keyword_name FROM duckdb_keywords() ORDER BY 1").fetchall()
        ]


class Naming:
    """The names of one model: of its columns by role, of its features, and of its reference table and feature set."""

    def __init__(
        self,
        task: str,
        drawn: Sequence[str],
        feed: str,
        reference: Sequence[str],
        table: str,
        feature_set: str,
    ) -> None:
        extras = EXTRAS[task]
        self.columns = list(drawn[: len(ROLES) + extras])
        self.by_role = dict(zip(ROLES, drawn, strict=False)) | {"feed_label": feed}
        self.by_role |= dict(zip(REFERENCE_ROLES, reference, strict=True))
        self.extras = list(drawn[len(ROLES) : len(ROLES) + extras])
        self.aliases = dict(zip(ALIASES, drawn[len(ROLES) + extras :], strict=False))
        self.table, self.feature_set = table, feature_set

    def __repr__(self) -> str:
        return f"Naming({self.columns}, {self.by_role}, {self.aliases}, {self.table}, {self.feature_set})"

    def __call__(self, role: str) -> str:
        return self.by_role[role]

    @property
    def key(self) -> list[str]:
        return [self(role) for role in KEY]


def plain(task: str) -> Naming:
    extras = [f"extra_{i}" for i in range(EXTRAS[task])]
    return Naming(task, [*ROLES, *extras, *ALIASES], "feed_label", REFERENCE_ROLES, "places", "sums")


def model(root: Path, naming: Naming, task: str) -> ModelSpec:
    """Write and load a model; multiclass has its label in the rows, of CSV files; ranking has a label feed."""
    name, own = toys.unique("names"), task == "multiclass"
    types = {"key_text": "string", "key_number": "integer", "key_date": "date", "at": "timestamp", "list": "integer",
             "place": "string", "kind": "string", "x": "number", "z": "number", "own_label": "integer"}  # fmt: skip
    columns = {naming(role): kind for role, kind in types.items()} | dict.fromkeys(naming.extras, "number")
    content = toys.content(name, task) | {
        "data": {"source": f"{{landing}}/{name}/env=prod/{{date}}.{'csv' if own else 'parquet'}", "key": naming.key,
                 "event_time": naming("at"), "columns": columns, "quarantine_limit": 0.5},
        "label": {"expression": naming("own_label")} if own else {
            "source": f"{{landing}}/{name}_labels/{{date}}.parquet",
            "columns": {naming(r): types[r] for r in KEY} | {naming("feed_label"): toys.LABEL_TYPES[task]},
            "expression": quote_identifier(naming("feed_label")), "arrives_after": "1 day"},
        "features": {"categorical": [naming("kind")], "sets": [naming.feature_set],
                     "references": [{"name": naming.table, "source": f"{{landing}}/{name}_places.parquet"}]},
        "gate": {"bootstrap_samples": 100, "beat_baseline": False},
        "training": {"holdout": "2 days", "rounds": 3, "params": {"max_depth": 3}},
        "monitoring": {"window": "3 days", "min_rows": 20, "report_rows": 100, "slices": [naming("kind")]},
    }  # fmt: skip
    if task == "ranking":
        content["group"] = naming("list")
    else:
        content.pop("group", None)
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), "utf-8")
    (folder / "features.sql").write_text(features_sql(naming), "utf-8")
    (folder / "expectations.json").write_text(json.dumps(suite(naming)), "utf-8")
    (folder / "README.md").write_text("Names.\n")
    feature_set = root / naming.feature_set
    feature_set.mkdir()
    (feature_set / "feature_set.yaml").write_text(
        f"name: {json.dumps(naming.feature_set)}\nowner: tests\ndescription: A sum.\n"
    )
    x, z, total = (quote_identifier(n) for n in (naming("x"), naming("z"), naming.aliases["sum"]))
    (feature_set / "features.sql").write_text(f"SELECT *, rows.{x} + rows.{z} AS {total} FROM rows", "utf-8")
    return load_model(folder)


def features_sql(naming: Naming) -> str:
    """The key and the features: columns, expressions, and a value of the reference table.

    No feature may be called ``prediction``: a column of the key is a feature under another name.
    """
    q: Callable[[str], str] = lambda role: quote_identifier(naming(role))  # noqa: E731
    table = quote_identifier(naming.table)
    columns = [f"rows.{quote_identifier(c)}" for c in (*naming.key, naming("kind"), naming("x"), naming("z"))]
    columns += [f"rows.{quote_identifier(c)}" for c in naming.extras]
    alias = {of: quote_identifier(name) for of, name in naming.aliases.items()}
    columns += [f"hour(rows.{q('at')}) AS {alias['hour']}", f"{table}.{q('size')} AS {alias['joined']}",
                f"rows.{q('key_number')} AS {alias['key']}", f"rows.{alias['sum']}"]  # fmt: skip
    return (
        f"SELECT {', '.join(columns)} FROM rows ASOF LEFT JOIN {table} ON rows.{q('place')} = "
        f"{table}.{q('reference_place')} AND {table}.{q('known_at')} <= rows.{q('at')}"
    )


def suite(naming: Naming) -> dict[str, Any]:
    """Expectations that put rows into quarantine: by range, by two uniqueness checks, one of them conditional."""
    condition = {"type": "comparison", "column": {"name": naming("z")}, "operator": ">", "parameter": -1000.0}

    def expect(kind: str, **kwargs: Any) -> dict[str, Any]:
        return {"type": kind, "kwargs": kwargs, "meta": {}}

    return {
        "name": "names",
        "expectations": [
            expect("expect_column_values_to_be_between", column=naming("x"), max_value=50),
            expect("expect_column_values_to_be_unique", column=naming("z"), mostly=0.5),
            expect(
                "expect_compound_columns_to_be_unique",
                column_list=[naming("x"), naming("place")],
                row_condition=condition,
                mostly=0.5,
            ),
            expect("expect_column_max_to_be_between", column=naming("at"), min_value="2020-01-01"),
            expect("expect_column_values_to_be_in_set", column=naming("kind"), value_set=["a", "b", "c"]),
        ],
    }


def content(day: str) -> dict[str, Any]:
    """One day's rows by role; the last two go to quarantine."""
    rng = np.random.default_rng(int(day.replace("-", "")))
    x, z = np.round(rng.normal(size=(2, ROWS)), 6)
    x[-1] = 99
    at = np.datetime64(day, "us") + np.arange(ROWS) * np.timedelta64(60_000_000, "us")
    rows: dict[str, Any] = {
        "key_text": [f"{day}-{i // 2}" for i in range(ROWS)], "key_number": [i % 2 for i in range(ROWS)],
        "key_date": pa.array([dt.date.fromisoformat(day)] * ROWS), "at": pa.array(at), "list": np.arange(ROWS) // 6,
        "place": rng.choice(["north", "south"], ROWS).tolist(), "kind": rng.choice(["a", "b", "c"], ROWS).tolist(),
        "x": x, "z": z, "own_label": ((x > 0) == (z > 0)) * 2 + (x > 1),
    }  # fmt: skip
    for role in KEY:  # a key twice
        rows[role] = pa.array([*list(rows[role])[:-2], rows[role][0], rows[role][-1]])
    # Only one kind has values of them, so that a condition on one of them would change what is counted of the kinds.
    missing = np.isin(rows["kind"], ["a", "b"])
    for i in range(max(EXTRAS.values())):
        rows[f"extra {i}"] = pa.array(np.round(x * (i + 1) % 3 + z, 6), mask=missing)
    rows["feed_label"] = rows["own_label"]
    return rows


def land(spec: ModelSpec, naming: Naming) -> None:
    places = toys.places().rename_columns([naming(role) for role in REFERENCE_ROLES])
    toys.write(landing.source_uri(spec.references[0].source), places)
    for day in dates.dates(toys.FIRST, LAST):
        rows = content(day)
        values = [*(rows[role] for role in ROLES), *(rows[f"extra {i}"] for i in range(len(naming.extras)))]
        table = pa.table(values, names=naming.columns)
        uri = landing.source_uri(spec.data.source, day)
        if uri.endswith(".csv"):
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            pyarrow.csv.write_csv(table, uri)
        else:
            toys.write(uri, table)
        if spec.label.source:
            labels = {naming(role): rows[role] for role in (*KEY, "feed_label")}
            toys.write(landing.source_uri(spec.label.source, day), pa.table(labels))


def numbers(root: Path, naming: Naming, task: str) -> dict[str, Any]:
    """What all steps give, without any name."""
    spec = model(root, naming, task)
    land(spec, naming)
    assert preflight.check_model(spec).problems == []
    published = data(spec, start=toys.FIRST, end=LAST)
    trained = cast("dict[str, Any]", train(spec, as_of=LAST))
    promote(spec, as_of=LAST, actor="test")
    scored = score(spec, start=toys.FIRST, end=LAST)
    watched = cast("dict[str, Any]", monitor(spec, as_of=LAST))
    decision = decide(spec, as_of=LAST, actor="test", backfill=True)
    rows = lake.find_table(f"{root.parent}/home/lake/published/{spec.name}")
    assert rows is not None and watched["performance"].get("metrics"), watched["reason"]
    split = ABSplit("m", "2", tuple(naming.key), 0.5, "")
    tables = {kind: stored(root, kind, spec, naming) for kind in ("published", "labels", "quarantine", "predictions",
                                                                  "served", "monitoring")}  # fmt: skip
    return {
        "counts": [published[k] for k in ("rows_in", "rows_out", "quarantined", "labels")]
        + [scored["rows_out"]],
        "metrics": trained["metrics"],
        "reference": reference(spec, trained["version"]),
        "gate": [trained["gate"]["passed"]],
        "split": split.served_by_challenger(rows).tolist(),
        "performance": watched["performance"]["metrics"],
        "signals": {name: (s["state"], s["value"]) for name, s in watched["signals"].items()},
        "decision": [decision["retrain"], decision["proposed"], decision["triggers"]],
        **tables,
    }


def reference(spec: ModelSpec, version: str) -> list[Any]:
    """The bins of all columns that training stored, without names."""
    path = registry.download_artifact(registry.get_version(spec.name, version), "reference.json")
    made = json.loads(path.read_text())
    what = ("kind", "counts", "edges", "categories", "hashed", "personal", "noise_floors")
    return [made["rows"], sorted(([column[w] for w in what] for column in made["columns"].values()), key=str)]


def stored(root: Path, kind: str, spec: ModelSpec, naming: Naming) -> list[list[Any]]:
    """The values of a table of the lake in the order of the key; for `monitoring`, of the columns' drift."""
    table = lake.find_table(f"{root.parent}/home/lake/{kind}/{spec.name}")
    assert table is not None or (kind == "labels" and spec.label.source is None), kind
    if table is None:
        return []
    if kind == "monitoring":
        kept = [r for r in table.to_pylist() if r["role"] in ("feature", "prediction")]
        return sorted([r["status"], r["psi"], r["threshold"], round(r["importance"], 9)] for r in kept)
    if kind == "quarantine":
        reasons, values = spec.lake_column("reasons"), spec.lake_column("row_values")
        rows = [
            [*(r[k] for k in naming.key), len(r[reasons]), list(json.loads(r[values]).values())]
            for r in table.to_pylist()
        ]
        return sorted(rows, key=str)
    own = [spec.lake_column(c) for c in ("run_id", "scored_at", "scored_from")] if kind != "published" else []
    order = [*naming.key, *(c for c in table.column_names if c not in naming.key and c not in own)]
    rows = [[r[c] for c in order] for r in table.select(order).to_pylist()]
    if kind == "published":
        order = [*naming.columns, "partition_date"]
        rows = table.select(order).to_pylist()
        rows = [list(r.values()) for r in rows]
    else:
        plain = [c.removeprefix("__") for c in order[len(KEY) :]]
        rows = [r[: len(KEY)] + [v for _, v in sorted(zip(plain, r[len(KEY) :], strict=True))] for r in rows]
    return sorted(([comparable(value) for value in row] for row in rows), key=str)


def comparable(value: Any) -> Any:
    """The value with missing features as None: NaN is not equal to itself."""
    return [None if np.isnan(v) else v for v in value] if isinstance(value, list) else value


def any_case(random: Random, name: str) -> str:
    """The name in upper case, in lower case or as it is, which is one name for SQL."""
    return random.choice([str.upper, str.lower, str.title, str])(name) if name.isascii() else name


def draw(random: Random, task: str, half: int, key: Sequence[str]) -> Naming:
    """Names in random roles. A feature cannot have every name: `tests/unit/spec/broken` has those that are refused."""
    base = [n for n in names() if n not in key]
    of_half = names()[half::2]
    tried = [
        n for n in names(random.sample(sql_keywords(), 25)) if n not in key and not feature_name_fault(n)
    ]
    roles = random.sample(tried, len(ROLES) - len(KEY))
    # Those of this half come first, then what is not used otherwise.
    extras = sorted(
        (n for n in tried if n not in roles),
        key=lambda n: (n not in of_half, n not in base, random.random()),
    )
    others = random.sample([n for n in names() if n not in key], 1 + len(REFERENCE_ROLES))
    drawn = [any_case(random, n) for n in (*random.sample(key, len(KEY)), *roles, *extras)]
    feed, *of_reference = [any_case(random, n) for n in others]
    tables = ["published", "labels", "scored", "order", "select", "file", "m", "reference"]
    return Naming(task, drawn, feed, of_reference, *random.sample(tables, 2))


@pytest.fixture(scope="module")
def measure(
    mlflow_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Naming], dict[str, Any]]:
    """What all steps give for a model with some names, in a lake of its own."""

    def measured(task: str, naming: Naming) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("names")
        with toys.working_folder(folder, mlflow_url) as patch:
            # Pages take most of the time; `tests/unit/cli/test_sample_reader.py` draws them for unlucky names.
            patch.setattr("perennial.ingestion.data_profile.write_profile", lambda *_: "")
            patch.setattr("perennial.validation.data_docs.render_data_doc", lambda _: "")
            patch.setattr("perennial.monitoring.report.MAX_COLUMNS", 8)
            return numbers(folder / "models", naming, task)

    return measured


@pytest.fixture(scope="module")
def expected(measure: Callable[[str, Naming], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    """What all steps give for a model of a task with plain names."""
    return cache(lambda task: measure(task, plain(task)))


@pytest.mark.parametrize(("task", "seed", "key"), CASES)
def test_any_names_give_the_same_numbers(
    measure: Callable[[str, Naming], dict[str, Any]],
    expected: Callable[[str], dict[str, Any]],
    task: str,
    seed: int,
    key: Sequence[str],
) -> None:
    naming = draw(Random(seed), task, seed, key)
    result = measure(task, naming)
    for what, value in expected(task).items():
        assert result[what] == value, (what, naming)
    assert {c for c in LAKE_COLUMNS if c in map(str.lower, naming.key)} == set(key)


def test_the_wide_models_have_all_names() -> None:
    used: set[str] = set()
    for task, seed, key in CASES:
        naming = draw(Random(seed), task, seed, key)
        used |= {n.lower() for n in (*naming.columns, *naming.aliases.values())}
    missing = {n.lower() for n in names() if not feature_name_fault(n)} - used
    assert not missing
