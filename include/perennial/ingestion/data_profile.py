"""The data profile: Evidently's summary of a sample of published rows, as an HTML page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import duckdb

from perennial.charts import page as page_frame
from perennial.core import html, patches
from perennial.core.partitions import PartitionRange
from perennial.core.settings import settings
from perennial.core.sql import SQL_TYPES, quote_identifier
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session, object_store, pages

if TYPE_CHECKING:
    import pandas as pd

os.environ.setdefault("DO_NOT_TRACK", "true")
#: Rows in the sample: enough for a plot of each column.
MAX_ROWS = 2000
#: Columns in the profile; with more, the page is not readable.
MAX_COLUMNS = 60
#: Text columns with more different values are counted, not plotted: Evidently makes an object of each value.
MAX_CATEGORIES = 100
_MAX_TEXT_LENGTH = 80
#: Dates before and after these are shown as these.
_EARLIEST, _LATEST = "0001-01-01", "9999-12-31"


def profile_uri(model: str, partitions: str, extension: str) -> str:
    """The file of the profile of a date or a range ``start..end``."""
    return f"{settings().lake}/reports/{model}/profile/{partitions}.{extension}"


def write_profile(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    start: str,
    end: str,
    version: int,
    undeclared: Mapping[str, str] | None = None,
) -> str:
    """Write the data profile of published partitions as a page and as JSON, without personal data.

    Args:
        con: DuckDB connection.
        spec: the model.
        start: first partition date.
        end: last partition date.
        version: version of the table of published rows.
        undeclared: type of each column that the landed files have and the spec does not declare.

    Returns:
        The URI of the page. If the profile cannot be drawn, the page says why.
    """
    partitions = PartitionRange.between(start, end).compact
    uris = [profile_uri(spec.name, partitions, extension) for extension in ("json", "html")]

    def draw() -> tuple[str, str]:
        rows = _sample(con, spec, start, end, version)
        page, content = summarise(rows, {c: spec.data.columns[c] for c in rows.columns}, spec.data.key)
        content["perennial"] |= {
            "model": spec.name,
            "partitions": partitions,
            "version": version,
            "rows_sampled": len(rows),
            "undeclared_columns": dict(undeclared or {}),
        }
        title = f"{spec.name}, data profile of {partitions}"
        undeclared_list = pages.list_of_omissions("Columns that the spec does not declare", undeclared or {})
        heading = (
            f"<h1>{html.escape(title)}</h1>"
            f'<p class="soft">{len(rows):,} rows, sampled from version {version} of the published rows.</p>'
        )
        page = page_frame.embed(page, title, heading + undeclared_list)
        return json.dumps(content, indent=1), _compress_library(page)

    pages.write(f"data profile of {spec.name}, {partitions}", uris, draw)
    return uris[1]


def summarise(rows: pd.DataFrame, types: Mapping[str, str], key: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Summarise rows with Evidently; columns on which it fails are left out, and the page names them.

    Args:
        rows: the rows; changed in place.
        types: declared type of each column.
        key: columns that identify a row; they are counted, not plotted.

    Returns:
        The page, and the summary's numbers as Evidently's JSON.
    """
    rows = _convert_values(rows, types)
    omitted: dict[str, str] = {}
    try:
        page, content = _run_evidently(rows, types, key)
    except Exception as error:  # it raises whatever pandas and numpy raise
        omitted = _failing_columns(rows, types, key, error)
        page, content = _run_evidently(rows, {c: t for c, t in types.items() if c not in omitted}, key)
    content["perennial"] = {"omitted_columns": omitted}
    head, body, rest = page.partition("<body>")
    return head + body + pages.list_of_omissions("Columns without a summary", omitted) + rest, content


def _failing_columns(
    rows: pd.DataFrame, types: Mapping[str, str], key: Sequence[str], error: Exception
) -> dict[str, str]:
    """The columns on which Evidently fails, by halves, with the reason; ``error`` is that of all of them together."""
    if len(types) == 1:
        return dict.fromkeys(types, f"Evidently failed on it: {pages.why(error)}")
    failing: dict[str, str] = {}
    names = list(types)
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        selected = {c: types[c] for c in half}
        try:
            _run_evidently(rows, selected, key)
        except Exception as failure:
            failing |= _failing_columns(rows, selected, key, failure)
    return failing


def _run_evidently(
    rows: pd.DataFrame, types: Mapping[str, str], key: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Summarise some columns of converted rows; the page, and the numbers."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataSummaryPreset

    rows = rows[list(types)]
    counted = {
        c for c, t in types.items() if t == "string" and (c in key or rows[c].nunique() > MAX_CATEGORIES)
    }
    has_values = {c for c in rows.columns if rows[c].notna().any()}
    # not `html.for_evidently`: two names that differ in characters that cannot be printed would become one
    names: dict[str, str] = {c: html.protect(c) for c in rows.columns}
    definition = DataDefinition(
        numerical_columns=[
            names[c] for c, t in types.items() if t in ("integer", "number") and c in has_values
        ],
        categorical_columns=[
            names[c]
            for c, t in types.items()
            if (t in ("string", "boolean") and c not in counted) or c not in has_values
        ],
        datetime_columns=[
            names[c] for c, t in types.items() if t in ("date", "timestamp") and c in has_values
        ],
        text_columns=[names[c] for c in types if c in counted and c in has_values],
    )
    with patches.evidently_single_summary_plot():
        data = Dataset.from_pandas(rows.rename(columns=names), data_definition=definition)
        summary = Report([DataSummaryPreset()]).run(data, None)
    content = json.loads(json.dumps(summary.dict(), default=str))
    return html.placeholders_to_script(summary.get_html_str(as_iframe=False)), html.restore(content)


def _sample(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, start: str, end: str, version: int
) -> pd.DataFrame:
    """Read a deterministic sample of the published rows."""
    view = "__rows_to_profile"
    duckdb_session.create_view(con, view, delta_tables.table_uri("published", spec.name), version, start, end)
    columns = [c for c in spec.data.columns if c not in spec.personal_columns][:MAX_COLUMNS]
    selected = [f"{_sampled_value(c, spec.data.columns[c])} AS {quote_identifier(c)}" for c in columns]
    keys = ", ".join(quote_identifier(k) for k in spec.data.key)
    query = f"SELECT {', '.join(selected)} FROM {view} ORDER BY hash({keys}), {keys} LIMIT {MAX_ROWS}"
    rows: pd.DataFrame = con.sql(query).df()
    return rows


def _sampled_value(column: str, declared: str) -> str:
    """SQL of a value in the sample: long text cut, times within the years that pandas can represent."""
    name = quote_identifier(column)
    if declared == "string":
        return f"left({name}, {_MAX_TEXT_LENGTH})"
    if declared in ("date", "timestamp"):
        sql_type = SQL_TYPES[declared]
        # CASE, because least and greatest ignore nulls
        return (
            f"CASE WHEN {name} < {sql_type} '{_EARLIEST}' THEN {sql_type} '{_EARLIEST}' "
            f"WHEN {name} > {sql_type} '{_LATEST}' THEN {sql_type} '{_LATEST}' ELSE {name} END"
        )
    return name


def _convert_values(rows: pd.DataFrame, types: Mapping[str, str]) -> pd.DataFrame:
    """Protect texts, and convert other values to types that Evidently supports."""
    import pandas as pd

    for column, declared in types.items():
        if not rows[column].notna().any():
            rows[column] = pd.Series([None] * len(rows), dtype=object, index=rows.index)
        elif declared == "integer" and rows[column].isna().any():
            rows[column] = rows[column].astype("float64")  # its statistics of pandas' own integers may be NA
        elif declared == "string":
            texts = rows[column].map(lambda v: html.protect(v) if isinstance(v, str) else None)
            rows[column] = texts.astype(object)
        elif declared in ("date", "timestamp"):
            rows[column] = pd.to_datetime(rows[column], errors="coerce")
        elif declared == "boolean":
            rows[column] = rows[column].map({True: "true", False: "false"}).astype(object)
    return rows


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


def _compress_library(page: str) -> str:
    """Compress Evidently's JavaScript within the page: 1.6 MB instead of 3.7 for each published version.

    A page must contain everything it needs, because browsers show reports in a sandbox without an origin. A page with
    another structure (of another version of Evidently) is not changed.
    """
    match = _LIBRARY.search(page)
    if not match:
        return page
    library = match.group(2)
    cache = settings().home / "tmp" / f"evidently-{hashlib.sha256(library.encode()).hexdigest()[:16]}.b64"
    try:
        packed = cache.read_text("ascii")
    except OSError:
        packed = base64.b64encode(gzip.compress(library.encode(), 9, mtime=0)).decode()
        object_store.write_text(str(cache), packed)
    return page[: match.start()] + _UNPACK.format(packed=packed, draw=match.group(3)) + page[match.end() :]
