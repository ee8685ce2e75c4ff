"""The registry's client against a real MLflow, and what it says when MLflow refuses."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from perennial.core.errors import ArtifactError, RegistryError
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from support import toys


def test_a_model_that_was_never_trained_has_no_champion(make_model: Callable[..., ModelSpec]) -> None:
    spec = make_model()
    assert registry.get_champion(spec) is None
    assert registry.get_version_by_alias(spec.name, "challenger") is None
    with pytest.raises(RegistryError, match="there is no version 1"):
        registry.get_version(spec.name, "1")


def test_what_is_not_there_is_told(world: Any) -> None:
    name = world.spec.name
    champion = registry.get_champion(world.spec)
    assert champion is not None
    assert champion.as_of == toys.LAST
    assert registry.get_version_by_alias(name, "challenger") == champion
    with pytest.raises(RegistryError, match="answered 4"):
        registry.set_alias(name, "99", "champion")
    with pytest.raises(ArtifactError, match=r"no artifact .*/perennial/none\.json"):
        registry.download_artifact(champion.run_id, "none.json")
    assert registry.get_champion(world.spec) == champion


def test_a_version_that_somebody_else_registered_is_not_loaded(world: Any) -> None:
    champion = registry.get_champion(world.spec)
    assert champion is not None
    other = registry.ModelVersion(champion.name, champion.version, champion.run_id, champion.model_id, {})
    with pytest.raises(ArtifactError, match="has no digest"):
        registry.load_model(other)


def test_an_artifact_is_fetched_once(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    champion = registry.get_champion(world.spec)
    assert champion is not None
    first = registry.download_artifact(champion.run_id, "spec.json").read_text()
    registry.load_model(champion)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert registry.download_artifact(champion.run_id, "spec.json").read_text() == first
    registry.load_model(champion)


def test_a_model_can_be_fetched_anew_by_several_at_once(world: Any) -> None:
    """As two trainings do that made the same model: none takes the file from the other between fetching and reading."""
    champion = registry.get_champion(world.spec)
    assert champion is not None
    with ThreadPoolExecutor(4) as pool:
        rounds = list(
            pool.map(
                lambda _: registry.load_model(champion, fresh=True).booster.num_boosted_rounds(), range(40)
            )
        )
    assert len(set(rounds)) == 1


def test_a_new_alias_can_be_set_by_several_at_once(world: Any) -> None:
    """As two first trainings do; MLflow refuses the later of two, which is asked once more."""
    name = world.spec.name
    together = threading.Barrier(4)

    def point(alias: str) -> None:
        together.wait()
        registry.set_alias(name, "1", alias)

    with ThreadPoolExecutor(4) as pool:
        for number in range(10):
            list(pool.map(point, [f"at-once-{number}"] * 4))
            assert registry.get_version_by_alias(name, f"at-once-{number}") == registry.get_version(name, "1")


def test_a_name_that_mlflow_refuses_comes_with_a_hint(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host check answers 403 while /health says all is well."""
    import os

    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", os.environ["MLFLOW_TRACKING_URI"].replace("127.0.0.1", "localhost")
    )
    with pytest.raises(RegistryError, match=r"answered 403(.|\n)*--allowed-hosts"):
        registry.get_champion(world.spec)


@pytest.fixture
def broken(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A server that answers like a broken MLflow."""
    answer: dict[str, Any] = {"status": 500, "body": b"oops", "length": None}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(answer["length"] or len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield answer
    server.shutdown()
    server.server_close()


def test_a_server_error_is_told(broken: dict[str, Any]) -> None:
    with pytest.raises(RegistryError, match="answered 500"):
        registry.get_version_by_alias("toy")


def test_an_answer_that_is_no_json_is_told(broken: dict[str, Any]) -> None:
    broken |= {"status": 200, "body": b"<html>a login page</html>"}
    with pytest.raises(RegistryError, match="not a response of MLflow"):
        registry.get_version_by_alias("toy")


def test_a_404_of_another_server_does_not_pass_for_no_champion(broken: dict[str, Any]) -> None:
    broken |= {"status": 404, "body": b"no such page"}
    with pytest.raises(RegistryError, match="answered 404"):
        registry.get_version_by_alias("toy")


def test_a_download_that_is_cut_off_leaves_nothing(broken: dict[str, Any], empty_home: Path) -> None:
    broken |= {"status": 200, "body": b"half", "length": 1000}
    with pytest.raises(RegistryError, match="broke off"):
        registry.download_artifact("run", "spec.json")
    assert [p for p in (empty_home / "cache").rglob("*") if p.is_file()] == []


def test_how_an_earlier_release_told_people_does_not_keep_its_champion_from_scoring(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_model()
    bundle = spec.bundle()
    bundle["model"]["alerts"] = ["https://example.com/hook"]
    (tmp_path / "spec.json").write_text(json.dumps(bundle))
    monkeypatch.setattr(registry, "download_artifact", lambda run_id, name: tmp_path / name)
    assert registry.load_spec(registry.ModelVersion("toy", "1", "run", "model", {})).digest == spec.digest
