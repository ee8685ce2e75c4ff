"""Files as feeds write them: text, Excel sheets, compressed files, and the SQL that reads cells as declared types.

Light tasks and DAG files import it, so DuckDB, PyArrow and openpyxl are imported inside the functions that use them.
"""

__all__ = [
    "column_casts",
    "column_names",
    "compressed_files",
    "excel_files",
    "feed_schema",
    "parquet_columns",
    "text_casts",
    "text_files",
]
