"""Shared foundations: errors, settings, keys, dates, partitions, durations, SQL and HTML text, patches, the process."""

__all__ = [
    "dates",
    "durations",
    "errors",
    "file_formats",
    "html",
    "partitions",
    "patches",
    "progress",
    "query_text",
    "redaction",
    "runtime",
    "settings",
    "signing_keys",
    "sql",
    "unexpected_errors",
]
