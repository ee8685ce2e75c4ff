"""The data profile: what Evidently's summary of a sample shows."""

from __future__ import annotations

import json
import re
from typing import Any

import pandas as pd
import pytest

from perennial.ingestion import data_profile

HOSTILE = "</script><b>&"


def test_names_and_values_are_text_in_the_page_and_whole_in_the_numbers() -> None:
    rows = pd.DataFrame({HOSTILE: ["a", HOSTILE, None], "x": [1.0, 2.0, 3.0]})
    page, content = data_profile.summarise(rows, {HOSTILE: "string", "x": "number"}, ())
    assert HOSTILE not in page and "\\u2039/script\\u203a\\u2039b\\u203a\\uff06" in page
    assert HOSTILE in {m["config"].get("column") for m in content["metrics"]}
    assert not [c for c in json.dumps(content, ensure_ascii=False) if "\ue000" <= c <= "\uf8ff"]


def test_names_that_differ_in_unprintable_characters_stay_apart() -> None:
    names = ["net\u00a0price", "net\u200bprice"]
    rows = pd.DataFrame({name: [1.0, 2.0, 3.0] for name in names})
    _, content = data_profile.summarise(rows, dict.fromkeys(names, "number"), ())
    assert set(names) <= {m["config"].get("column") for m in content["metrics"]}


@pytest.mark.data_profile
def test_the_profile_has_no_personal_data_and_its_library_is_compressed(
    small_model: Any, make_rows: Any
) -> None:
    small_model.land(make_rows())
    small_model.run()
    page = small_model.report(kind="profile")
    content = json.loads(small_model.report(kind="profile", ending="json"))
    columns = {m["config"].get("column") for m in content["metrics"]}
    assert "amount" in columns and "phone" not in columns
    assert re.search(r"<head><title>[^<]+, data profile of ", page)
    assert "DecompressionStream" in page and len(page) < 2_000_000
