"""The order of the tests, and which process runs which."""

from __future__ import annotations

import distribution
from perennial.core.settings import ROOT

PLUGIN, MODELS, PLAIN = "tests/plugins/test_a.py", "tests/unit/steps/test_a.py", "tests/unit/core/test_a.py"


def test_the_longest_begin_first() -> None:
    scopes = [PLAIN, "tests/unit/lifecycle/test_promotion.py", "docker", "live"]
    assert sorted(scopes, key=distribution.rank) == [*reversed(scopes)]
    for file in distribution.LONG:
        assert (ROOT / file).is_file(), f"{file} is gone: take it out of distribution.LONG"


def test_a_folder_with_servers_is_one_scope() -> None:
    assert distribution.scope_of("tests/integration/live/test_loop.py::test_x[1]") == "live"
    assert (
        distribution.scope_of("tests/integration/s3/test_s3.py::test_x") == "tests/integration/s3/test_s3.py"
    )


def test_a_process_stays_with_its_family_and_takes_another_when_that_is_done() -> None:
    waiting = [PLUGIN, MODELS, PLAIN]
    of = distribution.family_of
    assert len({of(scope) for scope in ["live", *waiting]}) == 4
    assert distribution.next_scope(waiting, None, set()) == PLUGIN
    assert distribution.next_scope(waiting, of(PLAIN), {of(PLUGIN), of(MODELS)}) == PLAIN
    assert distribution.next_scope(waiting[:2], of(PLAIN), {of(PLUGIN)}) == MODELS, "nobody else works on it"
    assert distribution.next_scope([PLUGIN], of(PLAIN), {of(PLUGIN)}) == PLUGIN, "nothing else is left"
