"""Labels: published when they are due, whatever their feed delivers."""

from __future__ import annotations

from typing import Any

import pytest

from perennial.core.errors import SpecError
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
    manifest = manifests.read("small", "data", DAY)
    assert manifest is not None and manifest.result["label_state"] == "missing"
    small_model.land(labels(make_rows, value=[None] + [i / 10 for i in range(1, 40)]), DAY, "labels")
    assert small_model.run(NEXT)["labels"] == 40
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


def test_labels_for_keys_never_published_go_to_quarantine(small_model: Any, make_rows: Any) -> None:
    amounts = [float(i) for i in range(40)]
    amounts[3] = -1.0
    small_model.land(make_rows(amount=amounts))
    small_model.land(make_rows(NEXT, amount=[-1.0] + amounts[4:] + [0.0] * 3), NEXT)
    strange = [f"{DAY}-{i}" for i in range(38)] + ["nobody", None]
    small_model.land(labels(make_rows, id=strange), DAY, "labels")
    result = small_model.run(DAY, NEXT)
    assert result["labels"] == 37, "one row was in quarantine, one was never there, one has no key"
    assert result["labels_quarantined"] == 3
    quarantined = [r for r in small_model.table("quarantine") if r["feed"] == "labels"]
    assert {(r["id"], r["partition_date"], r["feed_date"]) for r in quarantined} == {
        (f"{DAY}-3", NEXT, DAY), ("nobody", NEXT, DAY), (None, NEXT, DAY)}  # fmt: skip
    reasons = {r["id"]: r["reasons"] for r in quarantined}
    assert reasons["nobody"] == ["key was never published"]
    assert "expect_column_values_to_not_be_null(id)" in reasons[None]
    quarantined_rows = [
        r for r in small_model.table("quarantine") if r["feed"] == "rows" and r["partition_date"] == NEXT
    ]
    assert len(quarantined_rows) == 1, "bad rows stay in quarantine beside the bad labels that came with them"


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


def test_a_label_expression_reads_no_file(small_model: Any, make_rows: Any, tmp_path: Any) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    small_model.label = small_model.label | {
        "expression": f"(SELECT a FROM read_csv('{tmp_path}/secret.csv'))"
    }
    small_model.land(make_rows())
    with pytest.raises(SpecError, match=r"label\.expression"):
        small_model.run()
