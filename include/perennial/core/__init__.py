"""Shared foundations: errors, settings, dates, SQL and HTML text, patches, the process."""

__all__ = ["dates", "errors", "html", "patches", "runtime", "settings", "sql"]
