"""Which process of pytest-xdist runs which tests, and in which order."""

from __future__ import annotations

import os
from collections.abc import Set
from typing import Any

import pytest

#: Folders whose tests share servers that take long to start: one process runs them, before other tests.
TOGETHER = ("live", "docker", "kubernetes")
#: Files that take the longest, most CPU time first: they begin early, so that no process waits for another at the end.
LONG = (
    "tests/unit/lifecycle/test_promotion.py",
    "tests/integration/faults/test_killed.py",
    "tests/integration/s3/test_s3.py",
    "tests/unit/steps/test_train.py",
    "tests/unit/training/test_distributed_dataset.py",
    "tests/unit/lifecycle/test_champion.py",
    "tests/plugins/test_deadlines.py",
    "tests/plugins/alerting/test_lineage.py",
)
#: Families of tests, by the beginnings of their scopes: those of one import the same libraries and start the same
#: servers, on which each process spends up to a minute of CPU time. All other tests are another family.
FAMILIES = (
    TOGETHER,
    ("tests/plugins/", "tests/dags/"),
    (
        "tests/integration/", "tests/unit/lifecycle/", "tests/unit/modeling/", "tests/unit/monitoring/",
        "tests/unit/scoring/", "tests/unit/steps/", "tests/unit/training/",
    ),
)  # fmt: skip


def scope_of(nodeid: str) -> str:
    """The tests that one process runs together with this one: its folder, if it is one of `TOGETHER`, else its file."""
    file = nodeid.split("::")[0]
    return next((folder for folder in TOGETHER if file.startswith(f"tests/integration/{folder}/")), file)


def family_of(scope: str) -> int:
    """The family of a scope: its place in `FAMILIES`."""
    return next((n for n, starts in enumerate(FAMILIES) if scope.startswith(starts)), len(FAMILIES))


def rank(scope: str) -> int:
    """When a scope begins, from 0."""
    first = (*TOGETHER, *LONG)
    return first.index(scope) if scope in first else len(first)


def next_scope(waiting: list[str], family: int | None, others: Set[int]) -> str:
    """The scope that a process runs next.

    Args:
        waiting: the scopes that no process has begun, in their order.
        family: of the process's last scope.
        others: families of the other processes' last scopes.

    Returns:
        The first of its own family, or of a family that no other process works on, or of all.
    """
    own = (scope for scope in waiting if family_of(scope) == family)
    free = (scope for scope in waiting if family_of(scope) not in others)
    return next(own, None) or next(free, waiting[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first."""
    items.sort(key=lambda item: rank(scope_of(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores, because the live tests mostly wait; at most four, because each takes 1 to 2 GiB."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute tests over processes by scope; a process stays with a family as long as it has tests.

    (Marks of pytest-xdist's own groups do nothing with pytest 9: it no longer reads names from where they are put.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ScopeScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            families = {n: family_of(next(reversed(work))) for n, work in self.assigned_work.items() if work}
            own = families.pop(node, None)
            self.workqueue.move_to_end(
                next_scope(list(self.workqueue), own, set(families.values())), last=False
            )
            super()._assign_work_unit(node)

    return ScopeScheduling(config, log)
