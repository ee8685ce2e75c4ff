"""Labels: published when they are due, whatever their feed delivers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.errors import DataError, SpecError
from perennial.features import author_sql
from perennial.features.labelled_rows import read_labelled_rows
from perennial.features.targets import POSSIBLE_LABELS, impossible_labels
from perennial.ingestion import _label_values, publishing
from perennial.ingestion.run import labels_feed
from perennial.storage import manifests

DAY, NEXT = "2020-03-01", "2020-03-02"


def labels(make_rows: Any, day: str = DAY, n: int = 40, **changes: Any) -> Any:
    import pyarrow as pa

    columns = {"id": [f"{day}-{i}" for i in range(n)], "value": [i / 10 for i in range(n)]}
    return pa.table(columns | changes)


def test_labels_arrive_a_day_later(small_model: Any, make_rows: Any) -> None:
    small_model.land(make_rows())
    small_model.land(make_rows(NEXT), NEXT)
    assert small_model.run()["labels"] == 0, "the first partition's labels have not landed: no failure"
    small_model.land(labels(make_rows, value=[None] + [i / 10 for i in range(1, 40)]), DAY, "labels")
    assert small_model.run(NEXT)["labels"] == 40
    manifest = manifests.read("small", "labels", DAY)
    assert manifest is not None and (manifest.rows_in, manifest.rows_out) == (40, 40)
    table = small_model.table("labels")
    assert {(r["partition_date"], r["arrived"]) for r in table} == {(DAY, NEXT)}
    values = {r["id"]: r["label"] for r in table}
    assert values[f"{DAY}-0"] is None and values[f"{DAY}-5"] == 0 and values[f"{DAY}-39"] == 1
    # the labels due with the first partition have still not landed: nothing to do
    assert small_model.run()["status"] == "unchanged"


def test_labels_that_come_late_are_published_by_a_rerun(small_model: Any, make_rows: Any) -> None:
    for day in (DAY, NEXT):
        small_model.land(make_rows(day), day)
        small_model.run(day)
    small_model.land(labels(make_rows), DAY, "labels")
    result = small_model.run(NEXT)
    assert result["status"] == "published" and result["labels"] == 40


def test_bad_labels_go_to_the_quarantine_of_the_partition_that_they_arrived_with(
    small_model: Any, make_rows: Any
) -> None:
    small_model.land(make_rows())
    small_model.land(make_rows(NEXT, amount=[-1.0] + [float(i) for i in range(39)]), NEXT)
    small_model.land(labels(make_rows, id=[f"{DAY}-{i}" for i in range(39)] + [None]), DAY, "labels")
    result = small_model.run(DAY, NEXT)
    assert (result["labels"], result["labels_quarantined"]) == (39, 1)
    quarantined = small_model.table("quarantine")
    assert {(r["id"], r["feed"], r["partition_date"], r["feed_date"]) for r in quarantined} == {
        (None, "labels", NEXT, DAY), (f"{NEXT}-0", "rows", NEXT, NEXT)}  # fmt: skip
    reasons = next(r["reasons"] for r in quarantined if r["feed"] == "labels")
    assert reasons == ["expect_column_values_to_not_be_null(id)"]


@pytest.mark.parametrize("order", [(DAY, NEXT), (NEXT, DAY)])
def test_labels_wait_for_their_rows(small_model: Any, make_rows: Any, order: tuple[str, str]) -> None:
    """A label is kept whether its row was published before, is published later, is in quarantine, or never comes."""
    small_model.land(make_rows(amount=[-1.0] + [float(i) for i in range(39)]))
    small_model.land(make_rows(NEXT), NEXT)
    small_model.land(labels(make_rows, id=[f"{DAY}-{i}" for i in range(39)] + ["nobody"]), DAY, "labels")
    for day in order:
        small_model.run(day)
    assert small_model.run(NEXT)["status"] == "unchanged"
    assert {r["id"] for r in small_model.table("labels")} == {f"{DAY}-{i}" for i in range(39)} | {"nobody"}
    assert {r["feed"] for r in small_model.table("quarantine")} == {"rows"}
    (rows,) = read_labelled_rows(small_model.spec, (DAY,), None, None)
    assert rows["id"].to_pylist() == sorted(f"{DAY}-{i}" for i in range(1, 39))


def test_labels_can_be_a_column_of_the_data(small_model: Any, make_rows: Any) -> None:
    small_model.label = {"expression": "ok"}
    small_model.land(make_rows())
    result = small_model.run()
    assert result["labels"] == 40
    assert sum(r["label"] for r in small_model.table("labels")) == 14


def test_a_label_expression_that_fails_names_the_columns(small_model: Any, make_rows: Any) -> None:
    small_model.label = small_model.label | {"expression": "valeu > 1"}
    small_model.land(make_rows())
    with pytest.raises(SpecError, match=r"(?s)label.expression 'valeu > 1' fails.*id, value"):
        small_model.run()


SECRET = "the key that signs tokens"
ATTACKS = [
    "(SELECT a FROM read_csv('{file}'))",
    "(SELECT content FROM read_text('{file}'))",
    "(SELECT Prompt FROM sniff_csv('{file}'))",
    "(SELECT a FROM '{file}')",
    "(SELECT x FROM query(CASE WHEN current_setting('enable_external_access') THEN 'SELECT content AS x FROM "
    "read_text(''{file}'')' ELSE 'SELECT 1 AS x' END))",
    "value) AS label, (SELECT content FROM read_text('{file}')) AS arrived, ('2024-03-01'",
    "value) AS label FROM read_text('{file}') --",
    "random() > 0.5",
    "current_date > DATE '2024-01-01'",
    "getvariable('x')",
    "(SELECT max(value) FROM __labels)",
    "__row > 1",
]


@pytest.mark.parametrize("expression", ATTACKS)
def test_a_label_reads_no_file_and_no_clock_even_if_nobody_checked_the_model(
    small_model: Any, make_rows: Any, tmp_path: Path, expression: str
) -> None:
    (tmp_path / "secret.csv").write_text(f"a\n{SECRET}\n")
    small_model.label = small_model.label | {"expression": expression.format(file=tmp_path / "secret.csv")}
    small_model.land(make_rows())
    with pytest.raises(SpecError, match=r"label\.expression .* is refused") as error:
        small_model.run()
    assert SECRET not in str(error.value)
    assert not small_model.table("published")


@pytest.mark.parametrize("expression", ATTACKS[:5])
def test_the_connection_of_the_data_step_is_locked_even_if_the_checker_fails(
    small_model: Any, make_rows: Any, tmp_path: Path, expression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class may be any text, so that what a file holds could be published as a label."""
    (tmp_path / "secret.csv").write_text(f"a\n{SECRET}\n")
    monkeypatch.setattr(author_sql, "check_expression", lambda *_: None)
    monkeypatch.setattr(publishing, "label_type", lambda *_: "VARCHAR")
    small_model.task = "multiclass"
    small_model.columns.pop("phone")  # without personal columns messages quote what the library says
    small_model.label = small_model.label | {"expression": expression.format(file=tmp_path / "secret.csv")}
    for day in (DAY, NEXT):
        small_model.land(make_rows(day, phone=None), day)
    small_model.land(labels(make_rows), DAY, "labels")
    if "current_setting" in expression:  # which sees that the connection is locked
        assert small_model.run(DAY, NEXT)["labels"] == 40
        assert {row["label"] for row in small_model.table("labels")} == {"1"}
        return
    with pytest.raises(DataError, match="file system operations are disabled by configuration") as error:
        small_model.run(DAY, NEXT)
    assert SECRET not in str(error.value)
    assert SECRET not in str([*small_model.table("labels"), *small_model.table("quarantine")])


def test_the_name_of_a_label_column_is_no_sql(small_model: Any, make_rows: Any) -> None:
    small_model.columns["NOT ok"] = "boolean"
    small_model.label = {"expression": "NOT ok"}
    small_model.land(make_rows(**{"NOT ok": [True] * 40}))
    assert small_model.run()["labels"] == 40
    assert sum(r["label"] for r in small_model.table("labels")) == 40


def test_a_label_may_end_in_a_comment(small_model: Any, make_rows: Any) -> None:
    small_model.label = small_model.label | {"expression": "value > 1 -- late"}
    small_model.land(make_rows())
    small_model.land(make_rows(NEXT), NEXT)
    small_model.land(labels(make_rows), DAY, "labels")
    assert small_model.run(DAY, NEXT)["labels"] == 40
    assert sum(r["label"] for r in small_model.table("labels")) == 29


def set_up(small_model: Any, task: str, kind: str, *, own: bool) -> None:
    """A model of a task whose label ``y`` is a column of the rows, or comes from its own feed."""
    small_model.task, small_model.group = task, "kind" if task == "ranking" else ""
    if own:
        small_model.columns["y"] = kind
        small_model.label = {"expression": "y"}
    else:
        small_model.label |= {"columns": {"id": "string", "y": kind}, "expression": "y"}


def publish(small_model: Any, make_rows: Any, values: list[Any], *, own: bool) -> dict[str, Any]:
    y = {"y": pa.array(values)}
    small_model.land(make_rows(**(y if own else {})))
    small_model.land(make_rows(NEXT, **(y if own else {})), NEXT)
    if not own:
        small_model.land(pa.table({"id": [f"{DAY}-{i}" for i in range(len(values))], **y}), DAY, "labels")
    result: dict[str, Any] = small_model.run(*([DAY] if own else [DAY, NEXT]))
    return result


@pytest.mark.parametrize(
    ("task", "kind", "good", "bad", "own"),
    [
        ("binary", "integer", 1, 2, False),
        ("binary", "integer", 0, -1, True),
        ("ranking", "integer", 31, 32, False),
        ("ranking", "number", 1.0, 1.5, False),
        ("regression", "number", -1.5, 1e300, False),
        ("regression", "number", 0.0, float("-inf"), True),
        ("multiclass", "string", "a", " \t", False),
        ("multiclass", "string", "a", "", True),
    ],
)
def test_a_label_that_the_task_cannot_have_goes_to_quarantine(
    small_model: Any, make_rows: Any, task: str, kind: str, good: Any, bad: Any, own: bool
) -> None:
    set_up(small_model, task, kind, own=own)
    result = publish(small_model, make_rows, [bad] * 3 + [None] + [good] * 36, own=own)
    assert result["labels"] == 37
    assert (result["quarantined"], result["labels_quarantined"]) == ((3, 0) if own else (0, 3))
    assert sorted({str(r["label"]) for r in small_model.table("labels")}) == sorted({str(good), "None"})
    quarantined = small_model.table("quarantine")
    assert [r["id"] for r in quarantined] == [f"{DAY}-0", f"{DAY}-1", f"{DAY}-2"]
    assert all(f"label is not {POSSIBLE_LABELS[task]}" in r["reasons"] for r in quarantined)
    assert {r["feed"] for r in quarantined} == {"rows" if own else "labels"}
    published = [r["id"] for r in small_model.table() if r["partition_date"] == DAY]
    assert len(published) == (37 if own else 40)


@pytest.mark.parametrize("own", [False, True])
def test_the_quarantine_limit_applies_to_labels(small_model: Any, make_rows: Any, own: bool) -> None:
    set_up(small_model, "binary", "integer", own=own)
    with pytest.raises(
        DataError, match=r"11 of 40 rows \(27\.5%\) would go to quarantine.*11 × label is not 0 or 1"
    ):
        publish(small_model, make_rows, [2] * 11 + [1] * 29, own=own)
    assert small_model.table("labels") == []
    assert manifests.read("small", "data" if own else "labels", DAY) is None


@pytest.mark.parametrize("own", [False, True])
def test_too_many_classes_stop_the_labels(
    small_model: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    monkeypatch.setattr(_label_values, "MAX_CLASSES", 39)
    set_up(small_model, "multiclass", "string", own=own)
    with pytest.raises(DataError, match="the labels have 40 classes, at most 39 are supported"):
        publish(small_model, make_rows, [f"class {i}" for i in range(40)], own=own)
    assert small_model.table("labels") == []


VALUES = {
    "integer": st.integers(-(2**62), 2**62) | st.integers(-3, 33),
    "number": st.floats(allow_nan=False) | st.sampled_from([0.0, 1.0, 0.5, 31.0, 32.0, 3.4e38, 3.5e38]),
    "string": st.text(max_size=3) | st.sampled_from(["", " ", "\t\n", "\u2003", "0", "1"]),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "ranking"])
def test_the_data_step_and_training_agree_on_which_labels_are_possible(
    small_model: Any, task: str, kind: str
) -> None:
    set_up(small_model, task, kind, own=False)
    feed, con = labels_feed(small_model.spec), duckdb.connect()
    (condition,) = _label_values.impossible_label_conditions(small_model.spec, feed).values()

    @settings(max_examples=15)
    @given(st.lists(VALUES[kind], min_size=1, max_size=40))
    def agree(values: list[Any]) -> None:
        y = pa.array(values)
        con.register("labels", pa.table({"i": range(len(y)), "y": y}))
        stopped = [row[0] for row in con.execute(f"SELECT {condition} FROM labels ORDER BY i").fetchall()]
        if task != "multiclass" and kind == "string":
            assert all(stopped), "a text is no number, even if it looks like one"
        else:
            assert stopped == impossible_labels(task, pa.chunked_array([y])).tolist()

    agree()


def test_labels_that_arrive_earlier_leave_the_quarantine_of_other_dates(
    small_model: Any, make_rows: Any
) -> None:
    small_model.label["arrives_after"] = "2 days"
    for day, arrival in ((DAY, "2020-03-03"), (NEXT, "2020-03-04")):
        small_model.land(
            labels(make_rows, day, id=[None, *(f"{day}-{i}" for i in range(1, 40))]), day, "labels"
        )
        small_model.land(make_rows(arrival), arrival)
    small_model.run("2020-03-03")
    # those of NEXT now arrive on the date on which those of DAY did
    small_model.label["arrives_after"] = "1 day"
    small_model.run("2020-03-03")
    quarantined = [r for r in small_model.table("quarantine", "feed_date") if r["feed"] == "labels"]
    assert [(r["feed_date"], r["partition_date"]) for r in quarantined] == [
        (DAY, "2020-03-03"), (NEXT, "2020-03-03"),
    ]  # fmt: skip


def test_a_label_expression_that_fails_is_named_and_not_the_feed(small_model: Any, make_rows: Any) -> None:
    small_model.columns.pop("phone")  # without personal columns
    small_model.label |= {
        "columns": {"id": "string", "value": "string"},
        "expression": "value::DATE > DATE '2020-01-01'",
    }
    for day in (DAY, NEXT):
        small_model.land(make_rows(day, phone=None), day)
    small_model.land(labels(make_rows, value=["soon"] * 40), DAY, "labels")
    with pytest.raises(DataError, match=r"label\.expression fails: .*soon") as error:
        small_model.run(NEXT)
    assert "correct or simplify label.expression" in error.value.remedy
    assert len(small_model.table("published")) == 40
