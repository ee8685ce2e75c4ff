"""The rows a model is trained on, encoded once into a file on disk and read from there in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core.errors import DataError
from perennial.core.settings import settings
from perennial.features.engine import BATCH_ROWS, FeatureQuery
from perennial.features.labelled_rows import read_labelled_rows
from perennial.features.targets import ListNumbering, encode_targets, order_classes, read_classes
from perennial.modeling.encoding import Encoding, categories
from perennial.spec.model_spec import ModelSpec
from perennial.training import _boosting
from perennial.training.windows import Windows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import xgboost

#: Bytes that in-memory training was seen to need for each cell (row by column); above half of the step's memory the
#: binned matrix stays on disk.
BYTES_PER_CELL = 6


@dataclass(frozen=True)
class Binning:
    """How rows become XGBoost's binned matrix.

    Attributes:
        max_bin: bins that a column has at most. external: on disk rather than in memory.
    """

    max_bin: int
    threads: int
    external: bool


class Encoder:
    """Turns labelled tables, one after another, into matrices.

    Attributes:
        known: categories of each categorical column, in order of appearance: provisional codes, since what the tables
            to come hold is not known yet.
        lists: numbers the lists of a ranking task.
    """

    def __init__(self, spec: ModelSpec, features: FeatureQuery, classes: tuple[str, ...]) -> None:
        self.known: dict[str, list[str]] = {c: [] for c in features.categorical}
        self.lists = ListNumbering(spec)
        self._spec, self._features, self._classes = spec, features, classes

    def encode(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Features (float32, shape (rows, columns)), labels and, where the task has lists, their numbers."""
        found = self._features.apply(table)
        for name, listed in self.known.items():
            seen = set(listed)
            listed += [c for c in categories(found.column(name)) if c not in seen]
        matrix = Encoding(tuple(self._features.columns), self.known).matrix(found)
        group = self.lists.number(table) if self._spec.group else None
        return matrix, encode_targets(self._spec, table.column("__label"), self._classes), group


def category_ranks(
    columns: tuple[str, ...], known: dict[str, list[str]], order: dict[str, list[str]]
) -> dict[int, np.ndarray]:
    """The final code of each provisional one, by the column's place: its category's rank in ``order``; NaN is last."""
    import numpy as np

    found = {}
    for j, name in enumerate(columns):
        if name in order:
            rank = {c: r for r, c in enumerate(order[name])}
            found[j] = np.array([rank[c] for c in known[name]] + [np.nan], dtype=np.float32)
    return found


def recode_categories(matrix: np.ndarray, lookup: dict[int, np.ndarray]) -> None:
    """Replace provisional category codes by those of `ranks`, in place."""
    import numpy as np

    for j, found in lookup.items():
        matrix[:, j] = found[np.nan_to_num(matrix[:, j], nan=len(found) - 1).astype(np.int64)]


@dataclass
class EncodedRowFile:
    """Encoded rows on disk: float32, row by row, beside labels and groups in memory."""

    path: Path
    columns: int
    y: list[Any] = field(default_factory=list)
    groups: list[Any] = field(default_factory=list)
    rows: int = 0
    #: Provisional category codes, in order of appearance, become ranks when they are read.
    lookup: dict[int, Any] = field(default_factory=dict)

    def append(self, matrix: np.ndarray, y: np.ndarray, group: np.ndarray | None) -> None:
        """Add rows."""
        with self.path.open("ab") as file:
            matrix.tofile(file)
        self.y.append(y)
        if group is not None:
            self.groups.append(group)
        self.rows += len(y)

    def batches(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, slice]]:
        """Matrices of at most `BATCH` rows between two rows, each with the rows it holds."""
        import numpy as np

        for first in range(start, stop, BATCH_ROWS):
            last = min(first + BATCH_ROWS, stop)
            matrix = np.fromfile(
                self.path, np.float32, (last - first) * self.columns, offset=first * self.columns * 4
            )
            matrix = matrix.reshape(-1, self.columns)
            recode_categories(matrix, self.lookup)
            yield matrix, slice(first, last)


@dataclass(frozen=True)
class Dataset:
    """What a training run fits on.

    Attributes:
        fit: rows of the spool that are fitted on; the rest, up to ``spool.rows``, are for early stopping.
    """

    spool: EncodedRowFile
    fit: int
    encoding: Encoding
    classes: tuple[str, ...]
    y: np.ndarray
    group: np.ndarray | None

    boost, ran_on = staticmethod(_boosting.boost), staticmethod(_boosting.ran_on)

    @property
    def rows(self) -> int:
        """Rows in all, those for early stopping included."""
        return self.spool.rows

    def fits(self, times: int = 1) -> bool:
        """Whether so many binned matrices fit into half of the step's memory."""
        return times * self.rows * self.spool.columns * BYTES_PER_CELL <= settings().memory_mb * 2**20 // 2

    def abreast(self, trials: int) -> int:
        """How many trials to boost side by side, each from a matrix of its own and with its share of the threads.

        Two threads boost a hundred thousand rows less than twice as fast as one: they wait for each other at each
        level of each tree. Two trials do not.
        """
        most = min(trials, settings().threads)
        return next((n for n in range(most, 1, -1) if self.fits(n)), 1)

    def ask(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``function`` gives wherever these rows are boosted: here."""
        return [function(*args)]

    def head(self, count: int) -> np.ndarray:
        """The first encoded rows, at most ``count``."""
        return next(self.spool.batches(0, min(count, self.rows)))[0]

    def sample(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Every so-manieth row and its label, so that there are about ``most``."""
        import numpy as np

        step = max(1, self.rows // most)
        picked = [
            (m[(-rows.start) % step :: step], self.y[rows][(-rows.start) % step :: step])
            for m, rows in self.spool.batches(0, self.rows)
        ]
        return np.concatenate([p[0] for p in picked]), np.concatenate([p[1] for p in picked])

    def dmatrix(
        self, start: int, stop: int, how: Binning, ref: xgboost.DMatrix | None = None
    ) -> xgboost.DMatrix:
        """Rows ``start`` to ``stop`` as XGBoost's binned matrix, in memory or on disk; the same bins either way."""
        import xgboost

        iterator = _iterator(self, start, stop, how.external)
        kind = xgboost.ExtMemQuantileDMatrix if how.external else xgboost.QuantileDMatrix
        return kind(iterator, max_bin=how.max_bin, ref=ref, nthread=how.threads)


def _iterator(data: Dataset, start: int, stop: int, external: bool) -> xgboost.DataIter:
    import xgboost

    class Batches(xgboost.DataIter):  # type: ignore[misc]
        """Feeds the spool to XGBoost, which reads it several times."""

        def __init__(self) -> None:
            self._batches = data.spool.batches(start, stop)
            super().__init__(
                cache_prefix=f"{data.spool.path}.{start}" if external else None, release_data=True
            )

        def next(self, input_data: Callable[..., Any]) -> bool:
            for matrix, rows in self._batches:
                qid = None if data.group is None else data.group[rows]
                input_data(
                    data=matrix, label=data.y[rows], qid=qid, feature_names=list(data.encoding.columns)
                )
                return True
            return False

        def reset(self) -> None:
            self._batches = data.spool.batches(start, stop)

    return Batches()


def build_dataset(
    spec: ModelSpec,
    features: FeatureQuery,
    split: Windows,
    folder: Path,
    version: int | None,
    labels_version: int | None,
) -> Dataset:
    """Read, join, compute features and encode the rows of ``split.fit`` and ``split.valid`` into ``folder``.

    Raises:
        DataError: no labelled rows, or one class only.
    """
    import numpy as np

    days = split.fit + split.valid
    classes = order_classes(spec, read_classes(spec, days, version, labels_version))
    encoder = Encoder(spec, features, classes)
    spool = EncodedRowFile(folder / "rows.f32", len(features.columns))
    fit = 0
    for part, days in (("fit", split.fit), ("valid", split.valid)):
        for i, table in enumerate(read_labelled_rows(spec, days, version, labels_version)):
            if part == "fit" and i == 0:
                features.check_rowwise(table.slice(0, 2000))
            spool.append(*encoder.encode(table))
        if part == "fit":
            fit = spool.rows
    y = np.concatenate(spool.y) if spool.rows else np.zeros(0, np.float32)
    check_trainable(spec, split, fit, spool.rows, set(np.unique(y[:fit]).tolist()))
    order = {name: sorted(categories) for name, categories in encoder.known.items()}
    columns = tuple(features.columns)
    spool.lookup = category_ranks(columns, encoder.known, order)
    encoding = Encoding(columns, order, spec.features.unseen)
    return Dataset(spool, fit, encoding, classes, y, np.concatenate(spool.groups) if spool.groups else None)


def check_trainable(spec: ModelSpec, split: Windows, fit: int, rows: int, labels: set[float]) -> None:
    """Stop where there is nothing to learn.

    Args:
        fit: rows that are fitted on, of ``rows`` in all. labels: values, or a few of them, of the rows fitted on.

    Raises:
        DataError: no labelled rows, or one class only.
    """
    if not fit or fit == rows:
        raise DataError(
            f"{rows} labelled rows from {split.fit[0]} to {split.valid[-1]}: nothing to train on",
            "check that labels arrive and that their keys are those of the rows",
            model=spec.name,
        )
    if spec.task in ("binary", "multiclass") and len(labels) < 2:
        raise DataError(
            f"all {fit} training rows have the same label", "check label.expression", model=spec.name
        )
