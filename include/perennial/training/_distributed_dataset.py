"""The rows of a training, distributed over Dask workers and boosted with XGBoost's Dask interface.

Each worker reads its partitions of the pinned dataset version from the lake. Categories and classes, which must be the
same on all workers, are collected once and sent to all. A worker holds its rows in memory, as float32 and binned.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perennial.core.errors import PerennialError
from perennial.core.progress import Progress
from perennial.core.redaction import redact_errors
from perennial.core.settings import settings
from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import GROUP_ROWS, read_labelled_rows
from perennial.features.targets import order_classes, read_classes
from perennial.modeling.encoding import Encoding
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training import _gpu_monitor
from perennial.training._boosting import describe_loss, ran_on, should_stop_early
from perennial.training._category_order import LabelSums, order_categories
from perennial.training._dataset import (
    BYTES_PER_CELL,
    ROWWISE_CHECK_ROWS,
    Binning,
    Encoder,
    category_ranks,
    category_salt,
    check_trainable,
    hashed_features,
    recode_categories,
    sampled_share,
)
from perennial.training._gpu_monitor import GpuReport
from perennial.training.checkpoint import Checkpoint
from perennial.training.dask_cluster import WorkerPool
from perennial.training.windows import Windows

if TYPE_CHECKING:
    import xgboost
    from distributed import Future

log = logging.getLogger("perennial")
#: Fewest blocks of each worker, if there are enough dates, so that workers get similar numbers of rows.
MIN_BLOCKS_PER_WORKER = 4
_METRIC, _RAN_ON = "valid", "perennial_ran_on"


@dataclass(frozen=True)
class DatasetRef:
    """The data that workers read: the labelled rows of a model at pinned versions.

    Attributes:
        spec: the model.
        reference_versions: version of each reference table, by name.
        version: version of the published rows.
        labels_version: version of the labels; None if the rows contain them.
        classes: multiclass only: the label values by class index.
        share: about which share of the rows is read.
    """

    spec: ModelSpec
    reference_versions: dict[str, int]
    version: int | None
    labels_version: int | None
    classes: tuple[str, ...] = ()
    share: float = 1.0


class BlockSummary(NamedTuple):
    """The properties of a block that the trainer needs.

    Attributes:
        rows: number of rows.
        labels: distinct labels, at most two of them.
        lists: ranking only: number of lists; otherwise 0.
        categories: categories by column, in the order of their provisional codes.
        label_sums: labels of these categories in rows to fit on, by column.
    """

    rows: int
    labels: set[float]
    lists: int
    categories: dict[str, list[str]]
    label_sums: dict[str, LabelSums]


@dataclass(frozen=True)
class WorkerBlock:
    """Some adjacent partitions on one worker, with provisional category codes.

    Attributes:
        matrix: encoded rows, float32 of shape (rows, columns).
        y: labels, shape (rows,).
        lists: ranking only: number of each row's list, shape (rows,).
        categories: categories by column, in the order of their provisional codes.
        label_sums: labels of these categories in rows to fit on, by column.
    """

    matrix: np.ndarray
    y: np.ndarray
    lists: np.ndarray | None
    categories: dict[str, list[str]]
    label_sums: dict[str, LabelSums]

    def summarise(self) -> BlockSummary:
        """Summarise the block for the trainer."""
        lists = int(self.lists[-1]) if self.lists is not None and len(self.lists) else 0
        labels = set(np.unique(self.y)[:2].tolist())
        return BlockSummary(len(self.y), labels, lists, self.categories, self.label_sums)


@dataclass(frozen=True)
class WorkerPartition:
    """The rows ``first`` to ``first + rows`` of the dataset, on one worker, as futures.

    Attributes:
        first: position of the first row.
        rows: number of rows.
        worker: address of the worker.
        x: encoded rows, float32 of shape (rows, columns).
        y: labels, shape (rows,).
        lists: ranking only: number of each row's list, shape (rows,).
    """

    first: int
    rows: int
    worker: str
    x: Future
    y: Future
    lists: Future | None


@dataclass(frozen=True)
class DistributedDataset:
    """The rows of a training on workers (`TrainingData`); usable while its worker pool is open.

    Attributes:
        pool: the workers.
        parts: the rows, in order.
        fit_rows: number of rows to fit on; the others, up to ``rows``, are for early stopping.
        rows: number of rows.
        encoding: how feature columns are encoded as the matrix.
        classes: multiclass only: the label values by class index.
        share: about which share of the rows of their dates they are.
    """

    pool: WorkerPool
    parts: tuple[WorkerPartition, ...]
    fit_rows: int
    rows: int
    encoding: Encoding
    classes: tuple[str, ...]
    share: float = 1.0

    def run_everywhere(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function on each worker; returns the results in the order of the workers' ranks."""
        results = self.pool.client.run(function, *args)
        return [results[address] for address in self.pool.addresses]

    @contextmanager
    def monitor_gpus(self, enabled: bool) -> Iterator[list[GpuReport]]:
        """Monitor the workers' GPUs while the block runs; the list has their reports when it ends."""
        reports: list[GpuReport] = []
        if not enabled:
            yield reports
            return
        self.run_everywhere(_gpu_monitor.start_on_worker)
        try:
            yield reports
        finally:
            reports += [report for report in self.run_everywhere(_gpu_monitor.stop_on_worker) if report]

    def head(self, count: int) -> np.ndarray:
        """The first encoded rows, at most ``count``, shape (rows, columns)."""
        part = self.parts[0]
        rows: np.ndarray = self.pool.client.submit(
            operator.getitem, part.x, slice(count), workers=[part.worker]
        ).result()
        return rows

    def sample(self, max_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """About ``max_rows`` evenly spaced rows, shape (rows, columns), and their labels, shape (rows,)."""
        step = max(1, self.rows // max_rows)
        slices = [slice((-p.first) % step, None, step) for p in self.parts]
        x = self._gather(operator.getitem, [(p.x, s) for p, s in zip(self.parts, slices, strict=True)])
        y = self._gather(operator.getitem, [(p.y, s) for p, s in zip(self.parts, slices, strict=True)])
        return np.concatenate(x), np.concatenate(y)

    def boundary(self, row: int) -> int:
        """The first position from ``row`` on at which rows can be divided: where a part begins."""
        return min((part.first for part in self.parts if part.first >= row), default=self.rows)

    def dmatrix(
        self, start: int, stop: int, binning: Binning, ref: xgboost.dask.DaskDMatrix | None = None
    ) -> xgboost.dask.DaskDMatrix:
        """Rows ``start`` to ``stop`` (boundaries of parts) as XGBoost's binned matrix on the workers."""
        import dask.array as da
        from xgboost.dask import DaskQuantileDMatrix

        parts = [p for p in self.parts if start <= p.first < stop]
        width = len(self.encoding.columns)

        def array(name: str, *columns: int, dtype: str = "float32") -> da.Array:
            return da.concatenate(
                [da.from_delayed(getattr(p, name), (p.rows, *columns), dtype) for p in parts]
            )

        return DaskQuantileDMatrix(
            self.pool.client,
            array("x", width),
            array("y"),
            qid=None if parts[0].lists is None else array("lists", dtype="int64"),
            feature_names=list(self.encoding.columns),
            feature_types=binning.feature_types(self.encoding),
            max_bin=binning.max_bin,
            ref=ref,
        )

    def boost(
        self,
        name: str,
        params: dict[str, Any],
        train: xgboost.dask.DaskDMatrix,
        rounds: int,
        checkpoint: Checkpoint,
        *,
        valid: xgboost.dask.DaskDMatrix | None = None,
        patience: int = 0,
        maximize: bool = False,
        train_losses: dict[int, float] | None = None,
    ) -> tuple[xgboost.Booster, list[float]]:
        """Boost with ``xgboost.dask.train``; the worker of rank 0 writes the checkpoint.

        ``train_losses`` stays empty, because the workers would compute the metric of all rows in every round. Other
        arguments and result are those of `_boosting.boost`.

        Raises:
            PerennialError: several workers of one machine would share its GPU.
        """
        import xgboost
        import xgboost.dask

        raw, losses = checkpoint.load_booster(name)
        unfinished = xgboost.Booster(model_file=raw) if raw else None
        rounds_left = rounds - (unfinished.num_boosted_rounds() if unfinished else 0)
        if unfinished and should_stop_early(losses, patience, maximize):
            return unfinished, losses
        if self.pool.same_machine and len(self.pool.addresses) > 1 and params["device"] == "cuda":
            raise PerennialError(
                "workers of one machine share its GPU, which XGBoost refuses",
                "remove workers from the compute profile, or use a profile of pods with a GPU each",
            )
        result = xgboost.dask.train(
            self.pool.client,
            params | {"nthread": self.pool.threads},
            train,
            rounds_left,
            evals=[] if valid is None else [(valid, _METRIC)],
            xgb_model=unfinished,
            verbose_eval=False,
            callbacks=[_checkpoint_callback(name, checkpoint.uri, losses, patience, maximize)],
        )
        new = [float(loss) for history in result["history"].get(_METRIC, {}).values() for loss in history]
        return result["booster"], losses + new

    def fits_in_memory(self) -> bool:
        """True, with a warning if a worker's rows may not fit: with Dask the matrix cannot be on disk."""
        largest = max(sum(p.rows for p in self.parts if p.worker == w) for w in self.pool.addresses)
        needed = largest * len(self.encoding.columns) * (4 + BYTES_PER_CELL) // 2**20
        if needed > settings().memory_mb:
            log.warning(
                "%d rows of one worker need about %d MiB, its limit is %d MiB: give the workers more memory, or use "
                "more workers", largest, needed, settings().memory_mb,
            )  # fmt: skip
        return True

    def max_parallel_trials(self, trials: int, max_bin: int) -> int:
        """1, because each search trial uses all workers."""
        return 1

    def ran_on(self, booster: xgboost.Booster) -> str:
        """The device that the workers recorded in a booster; removes the record from the booster."""
        device = booster.attr(_RAN_ON) or ""
        booster.set_attr(**{_RAN_ON: None})
        return device

    def _gather(self, function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
        """Call a function for each part on its worker, and gather the results."""
        client = self.pool.client
        return list(
            client.gather([
                client.submit(function, *call, workers=[p.worker], pure=False)
                for call, p in zip(calls, self.parts, strict=True)
            ])
        )  # fmt: skip


def _checkpoint_callback(
    name: str, uri: str | None, losses: list[float], patience: int, maximize: bool
) -> Any:
    """XGBoost's callback on each worker: early stopping over all rounds, and the checkpoint."""
    import xgboost

    class CheckpointCallback(xgboost.callback.TrainingCallback):
        def before_training(self, model: xgboost.Booster) -> xgboost.Booster:
            self._losses = list(losses)
            first = xgboost.collective.get_rank() == 0
            self._checkpoint = Checkpoint(uri if first else None)
            self._progress = Progress() if first else None
            return model

        def after_iteration(self, model: xgboost.Booster, epoch: int, evals_log: dict[str, Any]) -> bool:
            for history in evals_log.get(_METRIC, {}).values():
                self._losses.append(float(history[-1]))  # the same on all workers
            self._checkpoint.save_booster(name, model, self._losses)
            if self._progress and self._progress.due():
                metric = next(iter(evals_log.get(_METRIC, {})), "")
                loss_text = describe_loss(metric, self._losses, maximize)
                self._progress.report("%s: round %d%s", name, model.num_boosted_rounds(), loss_text)
            return should_stop_early(self._losses, patience, maximize)

        def after_training(self, model: xgboost.Booster) -> xgboost.Booster:
            # The trainer has no GPU: when loaded there, the booster's configuration would contain cpu.
            model.set_attr(**{_RAN_ON: ran_on(model)})
            return model

    return CheckpointCallback()


@dataclass(frozen=True)
class _Assignment:
    """Adjacent dates of one window that a worker reads."""

    window: str
    days: tuple[str, ...]
    worker: str


def build_distributed_dataset(
    pool: WorkerPool, source: DatasetRef, windows: Windows, columns: tuple[str, ...]
) -> DistributedDataset:
    """Have each worker read, join and encode its rows to fit on and for early stopping.

    Args:
        pool: the workers.
        source: what they read.
        windows: dates of the rows.
        columns: names of the features.

    Raises:
        DataError: no labelled rows, or one class only.
    """
    client, spec = pool.client, source.spec
    share = sampled_share(spec, windows, source.version, source.labels_version, len(pool.addresses))
    source = replace(source, share=share)
    assignments = [
        _Assignment(window, days, worker)
        for window, dates in (("fit", windows.fit), ("valid", windows.valid))
        for days, worker in _assign_partitions(source, dates, pool.addresses)
    ]

    def each(function: Callable[..., Any], *arguments: list[Any]) -> list[Future]:
        """Call a function for each assignment, on its worker."""
        return [
            client.submit(function, *row, workers=[assignment.worker], pure=False)
            for assignment, *row in zip(assignments, *arguments, strict=True)
        ]

    days = [a.days for a in assignments]
    if spec.task == "multiclass":
        classes = client.gather(each(_read_classes, [source] * len(days), days))
        source = replace(source, classes=order_classes(spec, set().union(*classes)))
    blocks = each(_read_block, [source] * len(days), assignments, [i == 0 for i in range(len(days))])
    summaries: list[BlockSummary] = client.gather(each(WorkerBlock.summarise, blocks))
    fitted = [s for s, a in zip(summaries, assignments, strict=True) if a.window == "fit"]
    fit_rows, rows = sum(s.rows for s in fitted), sum(s.rows for s in summaries)
    check_trainable(spec, windows, fit_rows, rows, set().union(*(s.labels for s in fitted)))

    final = _merge_categories(summaries)
    earlier_lists = [sum(s.lists for s in summaries[:i]) for i in range(len(summaries))]
    lookups = [category_ranks(columns, s.categories, final) for s in summaries]
    recoded = each(_recode_block, blocks, lookups, earlier_lists)
    del blocks  # otherwise workers would hold their rows twice
    x, y, lists = (each(operator.itemgetter(i), recoded) for i in range(3))
    parts, first = [], 0
    for i, summary in enumerate(summaries):
        if summary.rows:
            worker, part_lists = assignments[i].worker, lists[i] if spec.group else None
            parts.append(WorkerPartition(first, summary.rows, worker, x[i], y[i], part_lists))
        first += summary.rows
    worker_rows = [sum(p.rows for p in parts if p.worker == w) for w in pool.addresses]
    log.info("Rows of the workers: %s", ", ".join(map(str, worker_rows)))
    salt = category_salt(spec)
    encoding = Encoding(columns, final, spec.features.unseen, hashed_features(spec), salt)
    return DistributedDataset(pool, tuple(parts), fit_rows, rows, encoding, source.classes, share)


def _assign_partitions(
    source: DatasetRef, days: tuple[str, ...], workers: tuple[str, ...]
) -> list[tuple[tuple[str, ...], str]]:
    """Assign groups of adjacent dates, each to the worker with the fewest rows so far."""
    uri = delta_tables.table_uri("published", source.spec.name)
    rows = delta_tables.rows_by_partition(uri, source.version)
    sizes = {day: rows.get(day, 0) for day in days}
    max_rows = min(GROUP_ROWS, max(1, sum(sizes.values()) // (MIN_BLOCKS_PER_WORKER * len(workers))))
    assigned_rows, assignments = dict.fromkeys(workers, 0), []
    for group in delta_tables.group_by_rows(sizes, max_rows):
        worker = min(workers, key=lambda w: assigned_rows[w])
        assigned_rows[worker] += group.rows
        assignments.append((tuple(d for d in days if group.start <= d <= group.end), worker))
    return assignments


def _merge_categories(summaries: list[BlockSummary]) -> dict[str, list[str]]:
    """The categories of all blocks by column, in the order of their final codes."""
    return {
        name: order_categories([(s.categories[name], s.label_sums[name]) for s in summaries])
        for name in summaries[0].categories
    }


@redact_errors(lambda source, days: source.spec.hides_values)
def _read_classes(source: DatasetRef, days: tuple[str, ...]) -> set[str]:
    """The classes of the labels on some dates; runs on a worker."""
    return read_classes(source.spec, days, source.version, source.labels_version)


@redact_errors(lambda source, assignment, check_rowwise: source.spec.hides_values)
def _read_block(source: DatasetRef, assignment: _Assignment, check_rowwise: bool) -> WorkerBlock:
    """Read and encode the rows of an assignment; runs on a worker."""
    features = FeatureQuery(source.spec, source.reference_versions)
    salt = category_salt(source.spec)
    encoder = Encoder(source.spec, features, source.classes, salt)
    encoded, read = [], (source.version, source.labels_version, source.share)
    for i, table in enumerate(read_labelled_rows(source.spec, assignment.days, *read)):
        if check_rowwise and i == 0:
            features.check_rowwise(table.slice(0, ROWWISE_CHECK_ROWS))
        encoded.append(encoder.encode(table, fit=assignment.window == "fit"))
    if not encoded:
        empty = np.zeros((0, len(features.columns)), np.float32)
        return WorkerBlock(empty, np.zeros(0, np.float32), None, encoder.categories, encoder.label_sums)
    x, y, lists = zip(*encoded, strict=True)
    return WorkerBlock(
        np.concatenate(x),
        np.concatenate(y),
        np.concatenate(lists) if source.spec.group else None,
        encoder.categories,
        encoder.label_sums,
    )


def _recode_block(
    block: WorkerBlock, lookup: dict[int, np.ndarray], earlier_lists: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Matrix, labels and lists with final category codes and list numbers; runs on a worker."""
    matrix = block.matrix.copy()  # Dask's tasks must not change their arguments
    recode_categories(matrix, lookup)
    return matrix, block.y, None if block.lists is None else block.lists + earlier_lists
