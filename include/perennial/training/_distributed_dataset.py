"""The rows a model is trained on, a share on each worker, and XGBoost's Dask interface to boost them.

Each worker reads its share of the pinned dataset version from the lake itself. What all must agree on, categories and
classes, is gathered once and handed to all. A worker keeps its share in memory, as float32 and binned.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import GROUP_ROWS, groups, read_labelled_rows
from perennial.features.targets import order_classes, read_classes
from perennial.modeling.encoding import Encoding
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training._boosting import ran_on, should_stop_early
from perennial.training._dataset import Binning, Encoder
from perennial.training.checkpoint import Checkpoint
from perennial.training.dask_cluster import WorkerPool
from perennial.training.dataset import BYTES_PER_CELL, category_ranks, check_trainable, recode_categories
from perennial.training.windows import Windows

if TYPE_CHECKING:
    import numpy as np
    import xgboost
    from distributed import Future

log = logging.getLogger("perennial")
#: Parts that a worker's share has at least, where there are dates enough: so that shares come out even.
PARTS = 4
_METRIC, _RAN = "valid", "perennial_ran_on"


@dataclass(frozen=True)
class DatasetRef:
    """What workers read: a model's labelled rows, at pinned versions."""

    spec: ModelSpec
    references: dict[str, int]
    version: int | None
    labels_version: int | None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerBlock:
    """Some adjacent partitions as one worker holds them: categories have provisional codes."""

    matrix: np.ndarray
    y: np.ndarray
    group: np.ndarray | None
    known: dict[str, list[str]]

    def facts(self) -> tuple[int, set[float], int, dict[str, list[str]]]:
        """Rows, two of their labels, lists, categories."""
        import numpy as np

        lists = int(self.group[-1]) if self.group is not None and len(self.group) else 0
        return len(self.y), set(np.unique(self.y)[:2].tolist()), lists, self.known


@dataclass(frozen=True)
class WorkerPartition:
    """Rows ``first`` to ``first + rows`` of all, with their worker: matrix, labels and lists, as futures."""

    first: int
    rows: int
    worker: str
    x: Future
    y: Future
    group: Future | None


@dataclass(frozen=True)
class DistributedDataset:
    """What a training run fits on, as `perennial.training._dataset.Dataset`; good for as long as its crew is there.

    Attributes:
        fit: rows that are fitted on; the rest, up to ``rows``, are for early stopping.
    """

    crew: WorkerPool
    parts: tuple[WorkerPartition, ...]
    fit: int
    rows: int
    encoding: Encoding
    classes: tuple[str, ...]

    def ask(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``function`` gives on each worker."""
        found = self.crew.client.run(function, *args)
        return [found[address] for address in self.crew.addresses]

    def head(self, count: int) -> np.ndarray:
        """The first encoded rows, at most ``count``."""
        part = self.parts[0]
        rows: np.ndarray = self.crew.client.submit(
            operator.getitem, part.x, slice(count), workers=[part.worker]
        ).result()
        return rows

    def sample(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Every so-manieth row and its label, so that there are about ``most``."""
        import numpy as np

        step = max(1, self.rows // most)
        picked = [slice((-p.first) % step, None, step) for p in self.parts]
        x, y = (
            self._gather(operator.getitem, [(getattr(p, name), s) for p, s in zip(self.parts, picked, strict=True)])
            for name in ("x", "y")
        )  # fmt: skip
        return np.concatenate(x), np.concatenate(y)

    def dmatrix(
        self, start: int, stop: int, how: Binning, ref: xgboost.dask.DaskDMatrix | None = None
    ) -> xgboost.dask.DaskDMatrix:
        """Rows ``start`` to ``stop``, where one part begins and another ends, as XGBoost's binned matrix on workers."""
        import dask.array as da
        from xgboost.dask import DaskQuantileDMatrix

        parts = [p for p in self.parts if start <= p.first < stop]
        width = len(self.encoding.columns)

        def array(name: str, *columns: int, dtype: str = "float32") -> da.Array:
            return da.concatenate(
                [da.from_delayed(getattr(p, name), (p.rows, *columns), dtype) for p in parts]
            )

        return DaskQuantileDMatrix(
            self.crew.client,
            array("x", width),
            array("y"),
            qid=None if parts[0].group is None else array("group", dtype="int64"),
            feature_names=list(self.encoding.columns),
            max_bin=how.max_bin,
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
    ) -> tuple[xgboost.Booster, list[float]]:
        """As `_boosting.boost`, by ``xgboost.dask.train``; the worker of rank 0 keeps the checkpoint."""
        import xgboost
        import xgboost.dask

        found, losses = checkpoint.booster(name)
        before = xgboost.Booster(model_file=found) if found else None
        left = rounds - (before.num_boosted_rounds() if before else 0)
        if before and should_stop_early(losses, patience, maximize):
            return before, losses
        if self.crew.together and len(self.crew.addresses) > 1 and params["device"] == "cuda":
            raise PerennialError(
                "workers of one machine share its GPU, which XGBoost refuses",
                "leave workers out of the compute profile here, or use one of pods: a GPU each",
            )
        told = xgboost.dask.train(
            self.crew.client,
            params | {"nthread": self.crew.threads},
            train,
            left,
            evals=[] if valid is None else [(valid, _METRIC)],
            xgb_model=before,
            verbose_eval=False,
            callbacks=[_keeper(name, checkpoint.uri, losses, patience, maximize)],
        )
        new = [float(loss) for history in told["history"].get(_METRIC, {}).values() for loss in history]
        return told["booster"], losses + new

    def fits(self) -> bool:
        """Whether each worker's rows fit into its memory: they must, there is no other way for them."""
        largest = max(sum(p.rows for p in self.parts if p.worker == w) for w in self.crew.addresses)
        needed = largest * len(self.encoding.columns) * (4 + BYTES_PER_CELL) // 2**20
        if needed > settings().memory_mb:
            log.warning(
                "%d rows of one worker need about %d MiB, and it has %d to plan with: give it more memory, "
                "or have more workers", largest, needed, settings().memory_mb,
            )  # fmt: skip
        return True

    def abreast(self, trials: int) -> int:
        """How many trials to boost side by side: each has all workers."""
        return 1

    def ran_on(self, booster: xgboost.Booster) -> str:
        """The device a booster of these rows was trained on, by its own account when it was there."""
        ran = booster.attr(_RAN) or ""
        booster.set_attr(**{_RAN: None})
        return ran

    def _gather(self, function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
        """One call for each part, on its worker."""
        client = self.crew.client
        return list(
            client.gather([
                client.submit(function, *call, workers=[p.worker], pure=False)
                for call, p in zip(calls, self.parts, strict=True)
            ])
        )  # fmt: skip


def _keeper(name: str, uri: str | None, losses: list[float], patience: int, maximize: bool) -> Any:
    """XGBoost's callback on each worker: early stopping that goes on where it was, and the checkpoint."""
    import xgboost

    class Keeper(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def before_training(self, model: xgboost.Booster) -> xgboost.Booster:
            self._losses = list(losses)
            self._checkpoint = Checkpoint(uri if xgboost.collective.get_rank() == 0 else None)
            return model

        def after_iteration(self, model: xgboost.Booster, epoch: int, evals_log: dict[str, Any]) -> bool:
            for history in evals_log.get(_METRIC, {}).values():
                self._losses.append(float(history[-1]))  # the same on all workers
            self._checkpoint.keep(name, model, self._losses)
            return should_stop_early(self._losses, patience, maximize)

        def after_training(self, model: xgboost.Booster) -> xgboost.Booster:
            # The trainer, which has no GPU, could not tell any more.
            model.set_attr(**{_RAN: ran_on(model)})
            return model

    return Keeper()


def build_distributed_dataset(
    crew: WorkerPool, source: DatasetRef, split: Windows, columns: tuple[str, ...]
) -> DistributedDataset:
    """Have each worker read, join, compute features of and encode its share of ``split.fit`` and ``split.valid``.

    Args:
        columns: names of the features.

    Raises:
        DataError: no labelled rows, or one class only.
    """
    client, spec = crew.client, source.spec
    wanted = [
        (part, days, worker)
        for part, whole in (("fit", split.fit), ("valid", split.valid))
        for days, worker in _assign_partitions(source, whole, crew.addresses)
    ]

    def each(function: Callable[..., Any], *arguments: list[Any]) -> list[Future]:
        """One call for each run of dates, on its worker."""
        return [
            client.submit(function, *row, workers=[worker], pure=False)
            for (_, _, worker), *row in zip(wanted, *arguments, strict=True)
        ]

    days = [d for _, d, _ in wanted]
    if spec.task == "multiclass":
        found = client.gather(each(_classes, [source] * len(days), days))
        source = DatasetRef(spec, source.references, source.version, source.labels_version,
                        order_classes(spec, set().union(*found)))  # fmt: skip
    blocks = each(_read, [source] * len(days), days, [i == 0 for i in range(len(days))])
    facts = client.gather(each(WorkerBlock.facts, blocks))
    fit = sum(rows for (rows, *_), (part, *_) in zip(facts, wanted, strict=True) if part == "fit")
    rows = sum(count for count, *_ in facts)
    labels = set().union(*(some for (_, some, *_), (p, *_) in zip(facts, wanted, strict=True) if p == "fit"))
    check_trainable(spec, split, fit, rows, labels)

    known = [k for *_, k in facts]
    order = {name: sorted(set().union(*(k[name] for k in known))) for name in known[0]}
    lists = [sum(count for _, _, count, _ in facts[:i]) for i in range(len(facts))]
    settled = each(_settle, blocks, [category_ranks(columns, k, order) for k in known], lists)
    del blocks  # so that no worker holds its share twice
    x, y, group = (each(operator.itemgetter(i), settled) for i in range(3))
    parts, first = [], 0
    for i, (count, *_) in enumerate(facts):
        if count:
            parts.append(
                WorkerPartition(first, count, wanted[i][2], x[i], y[i], group[i] if spec.group else None)
            )
        first += count
    held = {w: sum(p.rows for p in parts if p.worker == w) for w in crew.addresses}
    log.info("Rows of the workers: %s", ", ".join(map(str, held.values())))
    return DistributedDataset(
        crew, tuple(parts), fit, rows, Encoding(columns, order, spec.features.unseen), source.classes
    )


def _assign_partitions(
    source: DatasetRef, days: tuple[str, ...], workers: tuple[str, ...]
) -> list[tuple[tuple[str, ...], str]]:
    """Runs of adjacent dates, in order, each for the worker that has least so far; the same each time."""
    uri = delta_tables.table_uri("published", source.spec.name)
    whole = sum(rows for *_, rows in groups(uri, days, source.version, GROUP_ROWS))
    most = min(GROUP_ROWS, max(1, whole // (PARTS * len(workers))))
    held, dealt = dict.fromkeys(workers, 0), []
    for start, end, rows in groups(uri, days, source.version, most):
        worker = min(workers, key=lambda w: held[w])
        held[worker] += rows
        dealt.append((tuple(d for d in days if start <= d <= end), worker))
    return dealt


def _classes(source: DatasetRef, days: tuple[str, ...]) -> set[str]:
    return read_classes(source.spec, days, source.version, source.labels_version)


def _read(source: DatasetRef, days: tuple[str, ...], check: bool) -> WorkerBlock:
    """Runs on a worker."""
    import numpy as np

    features = FeatureQuery(source.spec, source.references)
    encoder = Encoder(source.spec, features, source.classes)
    found = []
    for i, table in enumerate(read_labelled_rows(source.spec, days, source.version, source.labels_version)):
        if check and i == 0:
            features.check_rowwise(table.slice(0, 2000))
        found.append(encoder.encode(table))
    if not found:
        return WorkerBlock(
            np.zeros((0, len(features.columns)), np.float32), np.zeros(0, np.float32), None, encoder.known
        )
    x, y, group = zip(*found, strict=True)
    lists = np.concatenate(group) if source.spec.group else None
    return WorkerBlock(np.concatenate(x), np.concatenate(y), lists, encoder.known)


def _settle(
    block: WorkerBlock, lookup: dict[int, np.ndarray], lists: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Matrix, labels and lists with the codes and numbers that all workers share; runs on a worker."""
    matrix = block.matrix.copy()  # a task's arguments are not its own
    recode_categories(matrix, lookup)
    return matrix, block.y, None if block.group is None else block.group + lists
