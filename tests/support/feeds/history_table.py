"""A feature table over the toy model's rows: what was seen at a place before, and how often its label was 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from perennial.spec import catalog
from perennial.spec.feature_table import FeatureTable

SQL = """-- each row of the history, with what was seen at its place in the day before, itself included
SELECT place, seen_at AS valid_from,
       count(*) OVER last_day AS seen_24h,
       avg(x) OVER last_day AS mean_x,
       avg(y) OVER four_days AS share_y
FROM history
WINDOW last_day AS (PARTITION BY place ORDER BY seen_at RANGE BETWEEN INTERVAL 24 HOURS PRECEDING AND CURRENT ROW),
       four_days AS (PARTITION BY place ORDER BY seen_at RANGE BETWEEN INTERVAL 4 DAYS PRECEDING AND CURRENT ROW)
"""
#: Features of a model that reads the table.
MODEL_SQL = "SELECT id, x, z, k, seen_24h, mean_x, share_y FROM rows"
COLUMNS = ("seen_24h", "mean_x", "share_y")


def write(
    root: Path, name: str = "place_history", *, source: str = "toy", sql: str = SQL, **changes: Any
) -> Path:
    """Write the folder of a table below ``root``, whose source must be a model there; returns it."""
    content: dict[str, Any] = {
        "name": name, "owner": "tests", "description": "What was seen at a place before.",
        "sources": [{"model": source, "label": "y"}],
        "entity": {"place": "string"},
        "features": {"seen_24h": "integer", "mean_x": "number", "share_y": "number"},
        "lookback": "4 days",
    }  # fmt: skip
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "feature_table.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))
    (folder / "features.sql").write_text(sql)
    return folder


def load(root: Path, name: str = "place_history", **changes: Any) -> FeatureTable:
    """Write a table and load it."""
    write(root, name, **changes)
    return catalog.load_feature_table(name)
