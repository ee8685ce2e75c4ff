"""Charts: what they show, for eyes and for screen readers, and that no text of a user becomes markup."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from perennial.charts import page as page_frame
from perennial.charts.histogram_chart import HistogramChart
from perennial.charts.interval_chart import Interval, IntervalChart, IntervalRow
from perennial.charts.line_chart import Event, LineChart, Series
from perennial.charts.markup import Markup, number
from perennial.charts.partition_calendar import PartitionCalendar, Square
from perennial.charts.sparkline import Sparkline
from perennial.charts.stylesheet import stylesheet
from perennial.core.partitions import Cadence, Unit

HOSTILE = "</title><script>alert('x')</script>\"&\x00"
SVG = "{http://www.w3.org/2000/svg}"
KEYS = [f"2024-01-{day:02}" for day in range(1, 11)]


def parsed(svg: str) -> ElementTree.Element:
    """The picture as XML: it is well-formed."""
    return ElementTree.fromstring(svg)


def lengths(chart: LineChart) -> list[float]:
    """Height of each point of the first line."""
    path = next(e for e in parsed(chart.svg()).iter(f"{SVG}path") if e.get("class") == "chart-path")
    return [float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d", ""))]


def chart() -> LineChart:
    values = [0.2, 0.21, None, 0.25, 0.22, 0.22, 0.3, 0.31, 0.2, 0.19]
    return LineChart(
        "log loss",
        [
            Series("served", list(zip(KEYS, values, strict=True)), states={KEYS[6]: "bad"}),
            Series("limit", [(key, 0.28) for key in KEYS], role="limit"),
        ],
        [Event(KEYS[8], "version 2 promoted", "v2")],
    )


def test_a_line_rises_with_its_values_and_has_a_gap_where_there_is_none() -> None:
    heights = lengths(chart())
    assert len(heights) == 9
    assert heights[0] > heights[1] > heights[2] > heights[6]
    path = next(iter(parsed(chart().svg()).iter(f"{SVG}path"))).get("d", "")
    assert path.count("M") == 2


def test_a_chart_says_in_words_what_it_shows() -> None:
    svg = parsed(chart().svg())
    title, desc = svg.find(f"{SVG}title"), svg.find(f"{SVG}desc")
    assert svg.get("role") == "img"
    assert title is not None and title.text == "log loss"
    assert desc is not None and desc.text == "served: 0.19 at 2024-01-10; limit: 0.28 at 2024-01-10"
    titles = [t.text for t in svg.iter(f"{SVG}title")]
    assert "version 2 promoted" in titles
    assert "2024-01-09\nserved: 0.2\nlimit: 0.28\nversion 2 promoted" in titles


def test_the_table_has_every_number_and_event_the_latest_first() -> None:
    rows = re.findall(r"<tr>(.*?)</tr>", chart().table())
    assert re.findall(r">([^<]+)<", rows[0]) == ["partition", "served", "limit", "event"]
    assert re.findall(r">([^<]*)</t[dh]>", rows[1]) == ["2024-01-10", "0.19", "0.28", ""]
    assert re.findall(r">([^<]*)</t[dh]>", rows[2])[3] == "version 2 promoted"
    assert re.findall(r">([^<]*)</t[dh]>", rows[8])[1] == "–"


def test_a_point_that_is_bad_is_emphasised() -> None:
    dots = [e.get("class") for e in parsed(chart().svg()).iter(f"{SVG}circle")]
    assert dots == ["chart-dot chart-bad"]


def test_a_chart_without_values_says_so() -> None:
    empty = LineChart("drift", [Series("psi", [(KEYS[0], None)])])
    assert empty.is_empty and "no values yet" in empty.svg()
    assert "no values yet" not in chart().svg()
    assert Sparkline("drift", [None]).svg() == ""


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [-1.0, 0.0], [1e-12, 2e-12], [1e9, 2e9]])
def test_every_value_lies_inside_the_picture(values: list[float]) -> None:
    line = LineChart("x", [Series("y", [(float(i), v) for i, v in enumerate(values)])])
    assert all(0 < y < 190 for y in lengths(line))
    assert all(-1e-6 <= float(e.get("y1", "0")) <= 190 for e in parsed(line.svg()).iter(f"{SVG}line"))


def test_the_axis_of_numbers_keeps_distances() -> None:
    curve = LineChart(
        "calibration", [Series("model", [(0.0, 0.0), (0.1, 0.1), (1.0, 1.0)])], x_name="predicted"
    )
    path = next(iter(parsed(curve.svg()).iter(f"{SVG}path"))).get("d", "")
    xs = [float(x) for x, _ in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(0.1, abs=0.01)
    assert ">predicted<" in curve.table()


def slices() -> IntervalChart:
    rows = [
        IntervalRow(
            "AA", {"new": Interval(0.3, 0.2, 0.4), "old": Interval(0.5, 0.4, 0.7)}, "300 rows", "bad"
        ),
        IntervalRow(HOSTILE, {"new": Interval(0.1, 0.05, 0.15)}),
        IntervalRow("UA", note="too few rows"),
    ]
    return IntervalChart("log loss by carrier", ["new", "old"], rows, "carrier", 0.25, "all rows")


def test_intervals_lie_along_one_axis_with_what_they_are_compared_with() -> None:
    svg = parsed(slices().svg())
    dots = [
        (float(e.get("cx", "")), float(e.get("cy", "")), e.get("class")) for e in svg.iter(f"{SVG}circle")
    ]
    (new, new_y, new_class), (old, old_y, _), (other, other_y, _) = dots
    assert other < new < old and (old - new) / (new - other) == pytest.approx(1.0, abs=0.01)
    assert new_y < old_y < other_y and new_class == "chart-dot chart-bad"
    lines = [e.findall(f"{SVG}line")[0] for e in svg.iter(f"{SVG}g") if "interval" in e.get("class", "")]
    ends = [(float(e.get("x1", "")), float(e.get("x2", ""))) for e in lines]
    assert len(ends) == 3 and all(low < x < high for (low, high), (x, *_) in zip(ends, dots, strict=True))
    (reference,) = svg.iter(f"{SVG}path")
    at = float(re.findall(r"M([\d.]+)", reference.get("d", ""))[0])
    assert (at - other) / (new - other) == pytest.approx(0.75, abs=0.01)
    desc = svg.find(f"{SVG}desc")
    assert desc is not None and (desc.text or "").startswith("AA: 0.3; ")
    assert (desc.text or "").endswith("all rows: 0.25")


def test_the_table_of_intervals_has_every_number() -> None:
    rows = [re.findall(r">([^<]*)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", slices().table())]
    assert rows[0] == ["carrier", "new", "old", "note"]
    assert rows[1] == ["AA", "0.3 (0.2 to 0.4)", "0.5 (0.4 to 0.7)", "300 rows"]
    assert rows[3] == ["UA", "–", "–", "too few rows"] and rows[4] == ["all rows", "0.25", "", ""]
    assert "no values yet" in IntervalChart("x", ["new"], [IntervalRow("a")]).svg()


def test_text_of_users_never_becomes_markup() -> None:
    hostile = [
        LineChart(
            HOSTILE, [Series(HOSTILE, [(KEYS[0], 1.0)])], [Event(KEYS[0], HOSTILE, HOSTILE)], HOSTILE
        ).figure(),
        Sparkline(HOSTILE, [1.0]).svg(),
        PartitionCalendar(
            HOSTILE,
            Cadence(),
            [Square(KEYS[0], "none", HOSTILE, href=f"{HOSTILE}")],
            {"none": HOSTILE},
            HOSTILE,
        ).figure(),
        slices().figure(),
        IntervalChart(
            HOSTILE, [HOSTILE], [IntervalRow(HOSTILE, note=HOSTILE)], HOSTILE, 1.0, HOSTILE
        ).figure(),
    ]
    for page in hostile:
        assert "<script" not in page and "\x00" not in page
        assert "&lt;script&gt;" in page
        assert all(
            "'" not in tag and "alert" not in re.sub(r'"[^"]*"', "", tag)
            for tag in re.findall(r"<[^>]+>", page)
        )


def test_a_template_engine_does_not_escape_a_chart_again() -> None:
    svg = chart().svg()
    assert isinstance(svg, Markup) and svg.__html__() == svg


def test_a_sparkline_names_its_last_value_and_limit() -> None:
    svg = parsed(Sparkline("drift", [0.1, None, 0.3], limit=0.2, state="bad").svg())
    assert svg.get("aria-label") == "drift: 0.3, limit 0.2"
    assert [e.get("class") for e in svg.iter(f"{SVG}circle")] == ["chart-dot chart-bad"]


@pytest.mark.parametrize(
    ("unit", "first", "expected"),
    [
        ("day", "2024-01-01", [(0, 0), (0, 1), (0, 2)]),
        ("hour", "2024-01-01T22", [(22, 0), (23, 0), (0, 1)]),
        ("week", "2024-01-01", [(0, 0), (1, 0), (2, 0)]),
        ("month", "2024-01", [(0, 0), (1, 0), (2, 0)]),
    ],
)
def test_a_calendar_lays_out_each_cadence(unit: Unit, first: str, expected: list[tuple[int, int]]) -> None:
    """Column and row of the first three partitions."""
    cadence = Cadence(unit)
    squares = [Square(cadence.shift(first, i), "scored") for i in range(3)]
    svg = parsed(PartitionCalendar("partitions", cadence, squares, {"scored": "scored"}).svg())
    rects = [(int(e.get("x", "")), int(e.get("y", ""))) for e in svg.iter(f"{SVG}rect")]
    step = 14
    left = 52 if unit == "hour" else 34
    assert [((x - left) // step, (y - 16) // step) for x, y in rects] == expected


def test_a_calendar_links_to_partitions_and_counts_its_states() -> None:
    squares = [
        Square("2024-12-31", "scored", "60 rows", href="p/2024-12-31"),
        Square("2025-01-01", "missing", is_flagged=True),
    ]
    states = {"scored": "scored", "missing": "due, not published", "none": "not due"}
    page = PartitionCalendar("partitions", Cadence(), squares, states, "rows in quarantine").figure()
    assert 'href="p/2024-12-31"' in page and "2024-12-31: scored; 60 rows" in page
    assert '<th scope="row"><a href="p/2024-12-31">2024-12-31</a></th>' in page, (
        "keyboards reach it by the table"
    )
    assert "scored: 1; due, not published: 1</desc>" in page
    assert page.count("cal-corner") == 1
    assert ">2024<" in page and ">2025<" in page


def test_numbers_are_short() -> None:
    shown = [number(v) for v in (None, 0.0, 0.123456, 1234.5, 1234567.0, 1e-7)]
    assert shown == ["–", "0", "0.1235", "1234", "1,234,567", "1e-7"]


def test_every_class_of_a_chart_has_a_style_or_is_a_name() -> None:
    used = {
        name
        for match in re.findall(
            r'class="([^"]+)"', chart().figure() + Sparkline("s", [1.0], 2.0).svg() + slices().figure()
        )
        for name in match.split()
    }
    assert {name for name in used if f".{name}" not in stylesheet()} <= {"chart-line", "chart-tick"}


def test_a_histogram_of_two_sides_with_their_shares() -> None:
    chart = HistogramChart(HOSTILE, ["a", HOSTILE], [3, 1], [1, 1], ("before", "after"))
    page = chart.figure()
    assert "<script" not in page and page.count("<rect") == 4
    assert "a: before 75.0%, after 50.0%" in page
    assert "the largest change is in bin a: 75.0% to 50.0% of the rows" in page
    assert "no values yet" in HistogramChart("x", ["a"], [0], [0]).svg()


def test_dates_below_a_chart_do_not_cover_each_other() -> None:
    keys = ["2024-01-01", "2024-01-02", "2024-01-29", "2024-01-30"]
    picture = LineChart("x", [Series("s", [(key, 1.0) for key in keys])]).svg()
    assert [key for key in keys if f">{key}</text>" in picture] == [keys[0], keys[-1]]


def test_a_page_of_another_library_gets_a_title_and_content_of_ours_on_a_light_ground() -> None:
    library = "<html lang='en'><head><meta charset='utf-8'></head><body><div id='plots'></div></body></html>"
    page = page_frame.embed(library, HOSTILE, "<h1>Ours</h1>")
    assert page.startswith("<html data-theme=\"light\" lang='en'><head><title>&lt;/title&gt;&lt;script&gt;")
    assert page.count("<head>") == 1 and page.index("<h1>Ours</h1>") < page.index("id='plots'")
