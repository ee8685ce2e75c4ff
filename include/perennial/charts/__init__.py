"""Charts as SVG, made on the server, and the frame of pages. No script, no other library.

There are lines, bars, histograms, values with intervals, confusion matrices, sparklines and calendars of partitions.
Each chart is a value with the methods ``svg`` (the picture, with title and description), ``table`` (the same numbers as
an HTML table) and ``figure`` (both, with a legend). All text is escaped. A page shows charts with
`stylesheet.stylesheet`, which has the colours for light and dark.
"""

__all__ = [
    "bar_chart",
    "confusion_chart",
    "histogram_chart",
    "interval_chart",
    "line_chart",
    "markup",
    "page",
    "partition_calendar",
    "sparkline",
    "stylesheet",
]
