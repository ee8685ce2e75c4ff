"""A summary of each published version that a person can open: Evidently's, of a sample of the rows."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from perennial.core.settings import settings
from perennial.core.sql import quote_identifier
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session, object_store

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

os.environ.setdefault("DO_NOT_TRACK", "true")
#: Rows that are summarised: enough for a picture of each column.
ROWS = 2000
#: Columns that are drawn; a picture of more is no picture.
COLUMNS = 60
#: Texts of more different values are counted, not drawn: Evidently makes an object of each.
MANY = 100
_TEXT = 80


def profile_uri(model: str, key: str, extension: str) -> str:
    """Where the summary of a date (or ``start..end``) is kept."""
    return f"{settings().lake}/reports/{model}/profile/{key}.{extension}"


def write_profile(con: duckdb.DuckDBPyConnection, spec: ModelSpec, start: str, end: str, version: int) -> str:
    """Summarise the partitions ``start`` to ``end`` of a published version; returns the page's address.

    Columns of personal data are left out.
    """
    rows = _sample(con, spec, start, end, version)
    page, content = summarise(rows, {c: spec.data.columns[c] for c in rows.columns}, spec.data.key)
    key = start if start == end else f"{start}..{end}"
    content["perennial"] = {
        "model": spec.name,
        "partitions": key,
        "version": version,
        "rows_sampled": len(rows),
    }
    object_store.write_text(profile_uri(spec.name, key, "json"), json.dumps(content, indent=1))
    return object_store.write_text(profile_uri(spec.name, key, "html"), _page(page))


def summarise(rows: pd.DataFrame, kinds: Mapping[str, str], key: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Evidently's summary of rows: the page, with stand-ins in it, and the numbers.

    Args:
        kinds: of each column, in the words of the spec. key: columns that tell rows apart: they are not drawn.
    """
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataSummaryPreset

    plain = {c for c, k in kinds.items() if k == "string" and (c in key or rows[c].nunique() > MANY)}
    filled = {c for c in rows.columns if rows[c].notna().any()}
    shown = {c: c.translate(_GUARD) for c in rows.columns}
    definition = DataDefinition(
        numerical_columns=[shown[c] for c, k in kinds.items() if k in ("integer", "number") and c in filled],
        categorical_columns=[
            shown[c]
            for c, k in kinds.items()
            if (k in ("string", "boolean") and c not in plain) or c not in filled
        ],
        datetime_columns=[shown[c] for c, k in kinds.items() if k in ("date", "timestamp") and c in filled],
        text_columns=[shown[c] for c in plain if c in filled],
    )
    with _undrawn():
        data = Dataset.from_pandas(_guarded(rows, kinds).rename(columns=shown), data_definition=definition)
        summary = Report([DataSummaryPreset()]).run(data, None)
    content = json.loads(json.dumps(summary.dict(), default=str).translate(_PLAIN))
    return summary.get_html_str(as_iframe=False), content


def _sample(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, start: str, end: str, version: int
) -> pd.DataFrame:
    """Some of the rows, the same at every run."""
    duckdb_session.create_view(
        con, "summarised", delta_tables.table_uri("published", spec.name), version, start, end
    )
    names = [c for c in spec.data.columns if c not in spec.data.personal][:COLUMNS]
    cut = [
        f"left({quote_identifier(c)}, {_TEXT}) AS {quote_identifier(c)}"
        if spec.data.columns[c] == "string"
        else quote_identifier(c)
        for c in names
    ]
    keys = ", ".join(quote_identifier(k) for k in spec.data.key)
    query = f"SELECT {', '.join(cut)} FROM summarised ORDER BY hash({keys}), {keys} LIMIT {ROWS}"
    found: pd.DataFrame = con.sql(query).df()
    return found


def _guarded(rows: pd.DataFrame, kinds: Mapping[str, str]) -> pd.DataFrame:
    """The rows with characters that mean something in a page replaced by stand-ins, times as Evidently reads them."""
    import pandas as pd

    for column, kind in kinds.items():
        if kind == "string":
            rows[column] = (
                rows[column].map(lambda v: v.translate(_GUARD) if isinstance(v, str) else None).astype(object)
            )
        elif kind in ("date", "timestamp"):
            rows[column] = pd.to_datetime(rows[column], errors="coerce")
        elif kind == "boolean":
            rows[column] = rows[column].map({True: "true", False: "false"}).astype(object)
    return rows


#: Stand-ins from Unicode's private use area: Evidently writes texts into a script as they are, so that ``</script>``
#: in a value would end it. They become JavaScript's escapes in the page.
_GUARDED = "<>&"
_GUARD = {ord(c): 0xE100 + i for i, c in enumerate(_GUARDED)}
_PLAIN = {v: chr(k) for k, v in _GUARD.items()}


def _page(page: str) -> str:
    for char in _GUARDED:
        escape = f"\\u{ord(char):04x}"
        page = page.replace(chr(_GUARD[ord(char)]), escape).replace(f"\\u{_GUARD[ord(char)]:04x}", escape)
    return _packed(page)


_LIBRARY = re.compile(
    r"<script>(var global = globalThis)</script>\s*<script>(.*?\n)</script>\s*<script>(.*?)</script>", re.S
)
_UNPACK = """<script>var global = globalThis; (async () => {{
const packed = Uint8Array.from(atob("{packed}"), c => c.charCodeAt(0));
const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
const library = document.createElement("script");
library.textContent = await new Response(stream).text();
document.head.append(library);
{draw}
}})();</script>"""


def _packed(page: str) -> str:
    """The page with Evidently's own library compressed within it: 1.6 MB instead of 3.7 for each version published.

    A page must hold everything it needs: browsers show reports in a sandbox without an origin. Where the page is not
    built as expected (another Evidently), it stays as it is.
    """
    found = _LIBRARY.search(page)
    if not found:
        return page
    library = found.group(2)
    kept = settings().home / "tmp" / f"evidently-{hashlib.sha256(library.encode()).hexdigest()[:16]}.b64"
    try:
        packed = kept.read_text("ascii")
    except OSError:
        packed = base64.b64encode(gzip.compress(library.encode(), 9, mtime=0)).decode()
        object_store.write_text(str(kept), packed)
    return page[: found.start()] + _UNPACK.format(packed=packed, draw=found.group(3)) + page[found.end() :]


_UNSEEN = ("Maximum value of ", "Mean value of ", "Std value of ", "Median value of ", "Quantile ", "Sum of ")


@contextmanager
def _undrawn() -> Iterator[None]:
    """Draw one picture a column.

    Evidently draws the same distribution for each of a column's statistics and shows that of the minimum alone, which
    is two thirds of the preset's time (0.7.23, ``metrics/column_statistics.py``: ``StatisticsCalculation.calculate``).
    """
    from evidently.metrics import column_statistics as drawn

    original = drawn.distribution

    def once(title: str, current: Any, reference: Any) -> Any:
        return [] if title.startswith(_UNSEEN) else original(title, current, reference)

    drawn.distribution = once
    try:
        yield
    finally:
        drawn.distribution = original
