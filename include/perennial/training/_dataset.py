"""The rows of a training, encoded once into a file on disk and read from there in batches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from perennial.core.errors import DataError
from perennial.core.progress import Progress
from perennial.core.settings import settings
from perennial.core.sql import batch_rows
from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import BATCH_ROWS, count_labelled_rows, read_labelled_rows
from perennial.features.targets import ListNumbering, encode_targets, order_classes, read_classes
from perennial.modeling.encoding import Encoding, distinct_categories, hash_categories
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training import _boosting, _gpu_monitor
from perennial.training._category_order import LabelSums, order_categories
from perennial.training._gpu_monitor import GpuReport
from perennial.training.checkpoint import Checkpoint
from perennial.training.windows import Windows

if TYPE_CHECKING:
    import xgboost

log = logging.getLogger("perennial")
#: Measured memory of in-memory training, in bytes per cell (row by column). If this exceeds half of the step's memory,
#: the binned matrix is on disk.
BYTES_PER_CELL = 6
#: Rows on which `FeatureQuery.check_rowwise` is run before a training.
ROWWISE_CHECK_ROWS = 2000


@dataclass(frozen=True)
class Binning:
    """How rows become XGBoost's binned matrix.

    Attributes:
        max_bin: most bins of a column.
        threads: number of threads.
        external: whether the matrix is on disk rather than in memory.
        group_categories: whether trees divide categories into any two groups, rather than by their order.
    """

    max_bin: int
    threads: int
    external: bool
    group_categories: bool = False

    def feature_types(self, encoding: Encoding) -> list[str] | None:
        """XGBoost's types of the features: ``c`` for categories, if they are grouped."""
        if not self.group_categories:
            return None
        return ["c" if name in encoding.categories else "float" for name in encoding.columns]


class TrainingData(Protocol):
    """Encoded rows to fit on: in this process (`Dataset`) or on workers (`DistributedDataset`).

    Rows from ``fit_rows`` up to ``rows`` are for early stopping. Matrices are XGBoost's: a ``DMatrix`` here, a
    ``DaskDMatrix`` on workers.
    """

    @property
    def fit_rows(self) -> int:
        """Number of rows to fit on during the search."""

    @property
    def rows(self) -> int:
        """Number of rows, those for early stopping included."""

    @property
    def share(self) -> float:
        """About which share of the rows of their dates they are."""

    @property
    def encoding(self) -> Encoding:
        """How feature columns are encoded as the matrix."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Multiclass only: the label values by class index."""

    def fits_in_memory(self) -> bool:
        """Whether the binned matrix fits in memory."""

    def max_parallel_trials(self, trials: int, max_bin: int) -> int:
        """The number of search trials to boost in parallel, at most ``trials``, with so many bins of a column."""

    def run_everywhere(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in each process that boosts these rows; returns the results."""

    def monitor_gpus(self, enabled: bool) -> AbstractContextManager[list[GpuReport]]:
        """Monitor the GPUs while a block runs; the list has their reports when the block ends."""

    def head(self, count: int) -> np.ndarray:
        """The first encoded rows, at most ``count``, shape (rows, columns)."""

    def sample(self, max_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """About ``max_rows`` evenly spaced rows, shape (rows, columns), and their labels, shape (rows,)."""

    def dmatrix(self, start: int, stop: int, binning: Binning, ref: Any = None) -> Any:
        """Rows ``start`` to ``stop`` as XGBoost's binned matrix, with the bins of ``ref``."""

    def boundary(self, row: int) -> int:
        """The first position from ``row`` on at which rows can be divided."""

    def boost(
        self,
        name: str,
        params: dict[str, Any],
        train: Any,
        rounds: int,
        checkpoint: Checkpoint,
        *,
        valid: Any = None,
        patience: int = 0,
        maximize: bool = False,
        train_losses: dict[int, float] | None = None,
    ) -> tuple[xgboost.Booster, list[float]]:
        """Boost as `_boosting.boost` does."""

    def ran_on(self, booster: xgboost.Booster) -> str:
        """The device that a booster of these rows was trained on."""


class Encoder:
    """Encodes labelled tables, one after another, with provisional category codes.

    A provisional code is the position of the category in order of appearance, because later tables are not known yet.

    Args:
        spec: the model.
        features: its features.
        classes: multiclass only: the label values by class index.
        salt: salt of hashed categories.

    Attributes:
        categories: categories of each categorical column so far, in order of appearance; hashed where personal.
        label_sums: labels of these categories in the rows to fit on, by column; none where categories are ordered by
            name. Classes have no order, so this is always so for multiclass.
    """

    def __init__(self, spec: ModelSpec, features: FeatureQuery, classes: tuple[str, ...], salt: str) -> None:
        self.categories: dict[str, list[str]] = {c: [] for c in features.categorical}
        self.label_sums = {c: LabelSums() for c in features.categorical}
        self._hashed, self._salt = hashed_features(spec), salt
        self._numbering = ListNumbering(spec)
        self._spec, self._features, self._classes = spec, features, classes

    def encode(self, table: pa.Table, *, fit: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Encode one table.

        Args:
            table: the rows.
            fit: whether they are rows to fit on, whose labels order the categories.

        Returns:
            Features (float32, shape (rows, columns)), labels (shape (rows,)) and, for ranking, the lists' numbers
            (shape (rows,)).
        """
        features = self._features.compute(table)
        for name in self._hashed:
            hashes = hash_categories(features.column(name), self._salt)
            features = features.set_column(features.column_names.index(name), name, hashes)
        for name, known in self.categories.items():
            known_set = set(known)
            known += [c for c in distinct_categories(features.column(name)) if c not in known_set]
        matrix = Encoding(tuple(self._features.columns), self.categories).encode(features)
        y = encode_targets(self._spec, table.column("__label"), self._classes)
        if fit and self._spec.features.category_order != "name" and self._spec.task != "multiclass":
            for name, label_sums in self.label_sums.items():
                label_sums.add(matrix[:, self._features.columns.index(name)], y)
        lists = self._numbering.number(table) if self._spec.group else None
        return matrix, y, lists


def hashed_features(spec: ModelSpec) -> tuple[str, ...]:
    """The categorical features of personal data, whose categories the model file has only as hashes."""
    return tuple(c for c in spec.features.categorical if c in spec.features.personal)


def category_salt(spec: ModelSpec) -> str:
    """The salt of a model's hashed categories; empty if it has none.

    It is the same whenever the same rows are trained on, so that the model is.
    """
    if not hashed_features(spec):
        return ""
    return hashlib.sha256(f"categories {spec.name} {spec.digest}".encode()).hexdigest()


def category_ranks(
    columns: tuple[str, ...], provisional: dict[str, list[str]], final: dict[str, list[str]]
) -> dict[int, np.ndarray]:
    """Map provisional category codes to final ones.

    Args:
        columns: names of the features.
        provisional: categories by column, in the order of their provisional codes.
        final: categories by column, in the order of their final codes.

    Returns:
        By position of the column, an array of final codes, indexed by provisional code; the last one is NaN.
    """
    lookup = {}
    for j, name in enumerate(columns):
        if name in final:
            rank = {c: r for r, c in enumerate(final[name])}
            lookup[j] = np.array([rank[c] for c in provisional[name]] + [np.nan], dtype=np.float32)
    return lookup


def recode_categories(matrix: np.ndarray, lookup: dict[int, np.ndarray]) -> None:
    """Replace provisional category codes by final ones, in place.

    Args:
        matrix: encoded rows, shape (rows, columns).
        lookup: as `category_ranks` returns it.
    """
    for j, codes in lookup.items():
        matrix[:, j] = codes[np.nan_to_num(matrix[:, j], nan=len(codes) - 1).astype(np.int64)]


@dataclass
class EncodedRowFile:
    """Encoded rows on disk (float32, row by row), with labels and lists in memory.

    Attributes:
        path: the file.
        columns: number of columns.
        y: labels, an array for each appended block, until they are joined.
        lists: ranking only: numbers of the lists, an array for each appended block.
        rows: number of rows.
        lookup: final category codes (`category_ranks`), which replace the provisional ones when rows are read.
        omitted: positions of columns that are left out when rows are read.
    """

    path: Path
    columns: int
    y: list[np.ndarray] = field(default_factory=list)
    lists: list[np.ndarray] = field(default_factory=list)
    rows: int = 0
    lookup: dict[int, np.ndarray] = field(default_factory=dict)
    omitted: tuple[int, ...] = ()

    def append(self, matrix: np.ndarray, y: np.ndarray, lists: np.ndarray | None) -> None:
        """Append rows, as `Encoder.encode` returns them."""
        with self.path.open("ab") as file:
            matrix.tofile(file)
        self.y.append(y)
        if lists is not None:
            self.lists.append(lists)
        self.rows += len(y)

    def batches(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, slice]]:
        """Read rows ``start`` to ``stop`` in matrices of at most `BATCH_ROWS` rows, with their positions."""
        rows = batch_rows(BATCH_ROWS, self.columns)
        for first in range(start, stop, rows):
            last = min(first + rows, stop)
            matrix = np.fromfile(
                self.path, np.float32, (last - first) * self.columns, offset=first * self.columns * 4
            )
            matrix = matrix.reshape(-1, self.columns)
            recode_categories(matrix, self.lookup)
            yield (
                np.delete(matrix, self.omitted, axis=1) if self.omitted else matrix,
                slice(first, last),
            )


@dataclass(frozen=True)
class Dataset:
    """The rows of a training in one process (`TrainingData`).

    Attributes:
        file: the encoded rows.
        fit_rows: number of rows to fit on; the others, up to ``rows``, are for early stopping.
        encoding: how feature columns are encoded as the matrix.
        classes: multiclass only: the label values by class index.
        y: labels, shape (rows,).
        lists: ranking only: number of each row's list, shape (rows,).
        share: about which share of the rows of these dates they are.
    """

    file: EncodedRowFile
    fit_rows: int
    encoding: Encoding
    classes: tuple[str, ...]
    y: np.ndarray
    lists: np.ndarray | None
    share: float = 1.0

    boost, ran_on = staticmethod(_boosting.boost), staticmethod(_boosting.ran_on)
    monitor_gpus = staticmethod(_gpu_monitor.monitor_gpus)

    @property
    def rows(self) -> int:
        """Number of rows, those for early stopping included."""
        return self.file.rows

    def without(self, columns: Collection[str]) -> Dataset:
        """The same rows without some columns."""
        names, encoding = self.encoding.columns, self.encoding
        remaining = tuple(name for name in names if name not in columns)
        categories = {name: listed for name, listed in encoding.categories.items() if name in remaining}
        return replace(
            self,
            file=replace(self.file, omitted=tuple(j for j, name in enumerate(names) if name in columns)),
            encoding=replace(encoding, columns=remaining, categories=categories),
        )

    def fits_in_memory(self, copies: int = 1, more: int = 0) -> bool:
        """Whether ``copies`` binned matrices, with so many more bytes each, fit into half of the step's memory."""
        each = self.rows * self.file.columns * BYTES_PER_CELL + more
        return copies * each <= settings().memory_mb * 2**20 // 2

    def max_parallel_trials(self, trials: int, max_bin: int = _boosting.DEFAULT_BINS) -> int:
        """The number of search trials to boost in parallel, each with its own matrix and share of threads.

        Two threads boost a hundred thousand rows less than twice as fast as one, because they synchronise at each level
        of each tree. Separate trials do not.
        """
        limit = min(trials, settings().threads)
        histograms = _boosting.histogram_bytes(self.file.columns, max_bin)
        return next((n for n in range(limit, 1, -1) if self.fits_in_memory(n, histograms)), 1)

    def run_everywhere(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function in this process; returns a list with its result."""
        return [function(*args)]

    def head(self, count: int) -> np.ndarray:
        """The first encoded rows, at most ``count``, shape (rows, columns)."""
        return next(self.file.batches(0, min(count, self.rows)))[0]

    def sample(self, max_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """About ``max_rows`` evenly spaced rows, shape (rows, columns), and their labels, shape (rows,)."""
        step = max(1, self.rows // max_rows)
        blocks = [
            (m[(-rows.start) % step :: step], self.y[rows][(-rows.start) % step :: step])
            for m, rows in self.file.batches(0, self.rows)
        ]
        return np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])

    def boundary(self, row: int) -> int:
        """The first position from ``row`` on at which rows can be divided: of lists, where one begins."""
        if self.lists is None or not 0 < row < self.rows:
            return min(row, self.rows)
        return int(np.searchsorted(self.lists, self.lists[row - 1], side="right"))

    def dmatrix(
        self, start: int, stop: int, binning: Binning, ref: xgboost.DMatrix | None = None
    ) -> xgboost.DMatrix:
        """Rows ``start`` to ``stop`` as XGBoost's binned matrix, with the same bins in memory and on disk."""
        import xgboost

        iterator = _batch_iterator(self, start, stop, binning)
        matrix = xgboost.ExtMemQuantileDMatrix if binning.external else xgboost.QuantileDMatrix
        return matrix(iterator, max_bin=binning.max_bin, ref=ref, nthread=binning.threads)


def _batch_iterator(data: Dataset, start: int, stop: int, binning: Binning) -> xgboost.DataIter:
    import xgboost

    names, types = list(data.encoding.columns), binning.feature_types(data.encoding)

    class BatchIterator(xgboost.DataIter):
        """Feeds encoded rows to XGBoost, which reads them several times."""

        def __init__(self) -> None:
            self._batches = data.file.batches(start, stop)
            super().__init__(
                cache_prefix=f"{data.file.path}.{start}" if binning.external else None, release_data=True
            )

        def next(self, input_data: Callable[..., Any]) -> bool:
            for matrix, rows in self._batches:
                qid = None if data.lists is None else data.lists[rows]
                input_data(data=matrix, label=data.y[rows], qid=qid, feature_names=names, feature_types=types)
                return True
            return False

        def reset(self) -> None:
            self._batches = data.file.batches(start, stop)

    return BatchIterator()


def build_dataset(
    spec: ModelSpec,
    features: FeatureQuery,
    windows: Windows,
    folder: Path,
    version: int | None,
    labels_version: int | None,
) -> Dataset:
    """Read, join, compute features of and encode the rows to fit on and those for early stopping.

    Args:
        spec: the model.
        features: its features.
        windows: dates of the rows.
        folder: where the encoded rows are written.
        version: version of the published rows.
        labels_version: version of the labels; None if the rows contain them.

    Raises:
        DataError: no labelled rows, or one class only.
    """
    classes = order_classes(spec, read_classes(spec, windows.fit + windows.valid, version, labels_version))
    salt = category_salt(spec)
    encoder = Encoder(spec, features, classes, salt)
    file, progress = EncodedRowFile(folder / "rows.f32", len(features.columns)), Progress()
    share = sampled_share(spec, windows, version, labels_version)
    for i, table in enumerate(read_labelled_rows(spec, windows.fit, version, labels_version, share)):
        if i == 0:
            features.check_rowwise(table.slice(0, ROWWISE_CHECK_ROWS))
        file.append(*encoder.encode(table, fit=True))
        progress.report("Read %d labelled rows to fit on", file.rows)
    fit_rows = file.rows
    for table in read_labelled_rows(spec, windows.valid, version, labels_version, share):
        file.append(*encoder.encode(table, fit=False))
        progress.report("Read %d labelled rows, %d of them to fit on", file.rows, fit_rows)
    y = np.concatenate(file.y) if file.rows else np.zeros(0, np.float32)
    file.y.clear()
    labels = {float(y[:fit_rows].min()), float(y[:fit_rows].max())} if fit_rows else set()
    check_trainable(spec, windows, fit_rows, file.rows, labels)
    final = {
        name: order_categories([(known, encoder.label_sums[name])])
        for name, known in encoder.categories.items()
    }
    columns = tuple(features.columns)
    file.lookup = category_ranks(columns, encoder.categories, final)
    encoding = Encoding(columns, final, spec.features.unseen, hashed_features(spec), salt)
    lists = np.concatenate(file.lists) if file.lists else None
    return Dataset(file, fit_rows, encoding, classes, y, lists, share)


def sampled_share(
    spec: ModelSpec, windows: Windows, version: int | None, labels_version: int | None, processes: int = 1
) -> float:
    """About which share of the labelled rows is learned: ``training.max_rows`` in each process, or all.

    Args:
        spec: the model.
        windows: dates of the rows.
        version: version of the published rows.
        labels_version: version of the labels; None if the rows contain them.
        processes: number of processes that fit the model together.
    """
    days, most = windows.fit + windows.valid, spec.training.max_rows * processes
    published = delta_tables.rows_by_partition(delta_tables.table_uri("published", spec.name), version)
    if sum(published.get(day, 0) for day in days) <= most:
        return 1.0
    count = count_labelled_rows(spec, days, version, labels_version)
    if count <= most:
        return 1.0
    log.info("%d labelled rows are more than training.max_rows: %.3g%% of them are learned, a sample by key",
             count, 100 * most / count)  # fmt: skip
    return most / count


def check_trainable(spec: ModelSpec, windows: Windows, fit_rows: int, rows: int, labels: set[float]) -> None:
    """Refuse rows that a model cannot be trained on.

    Args:
        spec: the model.
        windows: dates of the rows, for the message.
        fit_rows: number of rows to fit on.
        rows: number of rows, those for early stopping included.
        labels: at least two of the distinct labels of the rows to fit on, or all if there are fewer.

    Raises:
        DataError: no labelled rows, or one class only.
    """
    if not fit_rows or fit_rows == rows:
        raise DataError(
            f"{rows} labelled rows from {windows.fit[0]} to {windows.valid[-1]}: too few to train on",
            "check that labels arrive, their keys match those of the rows, and training.max_rows is not too small",
            model=spec.name,
        )
    if spec.task in ("binary", "multiclass") and len(labels) < 2:
        raise DataError(
            f"all {fit_rows} training rows have the same label", "check label.expression", model=spec.name
        )
