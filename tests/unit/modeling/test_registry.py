"""The registry's client against a real MLflow, and what it says when MLflow refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perennial.core.errors import ArtifactError, RegistryError
from perennial.modeling import registry, training_records
from perennial.spec.model_spec import ModelSpec
from perennial.steps.score import score
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
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
    assert registry.get_version_by_alias(name, "champion") == champion
    assert registry.get_version_by_alias(name, "challenger") is None
    with pytest.raises(RegistryError, match="answered 4"):
        registry.set_alias(name, "99", "champion")
    with pytest.raises(ArtifactError, match=r"has no none\.json"):
        registry.download_artifact(champion, "none.json")
    assert registry.get_champion(world.spec) == champion


def test_a_version_that_somebody_else_registered_is_not_loaded(world: Any) -> None:
    champion = registry.get_champion(world.spec)
    assert champion is not None
    for number, run in (("99", champion.run_id), (champion.version, "another-run")):
        other = registry.ModelVersion(champion.name, number, run, champion.model_id, champion.tags)
        with pytest.raises(ArtifactError, match="cannot be checked: the ledger has no training of it"):
            registry.load_model(other)


def test_an_artifact_is_fetched_once(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    champion = registry.get_champion(world.spec)
    assert champion is not None
    first = registry.download_artifact(champion, "spec.json").read_text()
    registry.load_model(champion)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert registry.download_artifact(champion, "spec.json").read_text() == first
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
def stored(world: Any, mlflow_folder: Path) -> Iterator[dict[str, Path]]:
    """The champion's files in MLflow's artifact store, by name; restored afterwards."""
    record = training_records.all_records(world.spec.name)[-1]
    files = {
        name: next((mlflow_folder / "artifacts").rglob(f"{owner}/artifacts/**/{name}"))
        for name in record.digests
        for owner in [record.model_id if name == "model.ubj" else record.run_id]
    }
    before = {name: path.read_bytes() for name, path in files.items()}
    yield files
    for name, content in before.items():
        files[name].write_bytes(content)


def load(version: registry.ModelVersion, name: str) -> None:
    if name == "model.ubj":
        registry.load_model(version)
    elif name == "spec.json":
        registry.load_spec(version)
    else:
        registry.download_artifact(version, name)


def flip(path: Path, position: float, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)


def test_the_ledger_lists_every_file_of_a_version(world: Any, stored: dict[str, Path]) -> None:
    assert set(stored) == {
        "model.ubj", "spec.json", "importance.json", "reference.json", "reference.parquet", "evaluation.json",
        "monitoring_baseline.json", "performance.json", "recipe.json", "explanation.json", "explanation.html",
        "model_card.json", "model_card.md", "model_card.html", "model_bom.cdx.json", "annex_iv.md",
    }  # fmt: skip
    record = training_records.all_records(world.spec.name)[-1]
    assert record.digests == {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in stored.items()}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(st.data())
def test_a_flipped_bit_of_any_file_is_found(world: Any, stored: dict[str, Path], data: Any) -> None:
    """In MLflow the file is refused; in this machine's cache it is downloaded again."""
    champion = registry.get_champion(world.spec)
    assert champion is not None
    name = data.draw(st.sampled_from(sorted(stored)))
    where, bit = data.draw(st.floats(0, 0.999)), data.draw(st.integers(0, 7))
    load(champion, name)
    cached = next(
        p
        for p in (world.home / "cache").rglob("*")
        if p.is_file() and p.read_bytes() == stored[name].read_bytes()
    )
    flip(cached, where, bit)
    load(champion, name)
    assert cached.read_bytes() == stored[name].read_bytes()
    flip(stored[name], where, bit)
    cached.unlink()
    try:
        with pytest.raises(ArtifactError, match=f"{name} of version 1 in MLflow .* changed or damaged"):
            load(champion, name)
    finally:
        flip(stored[name], where, bit)
    load(champion, name)


def test_swapped_columns_in_the_stored_spec_are_refused(world: Any, stored: dict[str, Path]) -> None:
    """Valid JSON and valid SQL, and other predictions."""
    text = stored["spec.json"].read_text()
    swapped = text.replace("rows.id, x, z,", "rows.id, z AS x, x AS z,")
    assert swapped != text
    stored["spec.json"].write_text(swapped)
    shutil.rmtree(world.home / "cache")
    with pytest.raises(ArtifactError, match=r"spec\.json of version 1 in MLflow"):
        score(world.spec, start=toys.FIRST)
    assert toys.content_of("predictions", world.spec.name) == []


def test_an_edited_tag_is_not_believed(world: Any) -> None:
    champion = registry.get_champion(world.spec)
    assert champion is not None
    edited = dataclasses.replace(
        champion, tags=champion.tags | {"as_of": "2030-01-01", "trained_range": "2030-01-01..2030-01-02"}
    )
    assert registry.as_recorded(edited) == champion


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

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

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


#: Answers with status 200 that are none of MLflow's.
STRANGE = [b"{}", b"[]", b"null", b'"ok"', b"<html>a login page</html>", b"",
           b'{"model_version": {}, "registered_model": []}',
           b'{"model_version": [], "registered_model": {}}',
           b'{"model_version": {"name": "toy", "version": ""}, "registered_model": {"name": "other"}}',
           b'{"model_version": {"name": "other", "version": "1"}, "registered_model": {"name": "toy",'
           b' "latest_versions": {}}}',
           b'{"model_version": {"name": "toy", "version": "1", "tags": {"digest": "x"}}, "registered_model": 1}',
           b'{"model_version": {"name": "toy", "version": "2", "run_id": 7}}']  # fmt: skip
CALLS: dict[str, Callable[[], object]] = {
    "alias": lambda: registry.get_version_by_alias("toy"),
    "version": lambda: registry.get_version("toy", "1"),
    "find": lambda: registry.find_version("toy", "1"),
    "name": lambda: registry.find_foreign_version("toy"),
    "set": lambda: registry.set_alias("toy", "1", "champion"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", STRANGE)
def test_an_answer_of_another_shape_is_an_error(broken: dict[str, Any], call: str, body: bytes) -> None:
    """It must not be read as "there is no champion": scoring would end green."""
    broken |= {"status": 200, "body": body}
    with pytest.raises(RegistryError, match="not a response of MLflow"):
        CALLS[call]()


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize(
    "body", [b"not found", b"RESOURCE_DOES_NOT_EXIST", b'{"message": "not found"}', b"[]"]
)
def test_only_mlflow_itself_can_say_that_there_is_nothing(
    broken: dict[str, Any], status: int, body: bytes
) -> None:
    broken |= {"status": status, "body": body}
    for call in CALLS.values():
        with pytest.raises(RegistryError, match=f"answered {status}"):
            call()


def test_an_answer_about_another_version_is_an_error(broken: dict[str, Any]) -> None:
    broken |= {"status": 200, "body": b'{"model_version": {"name": "toy", "version": "2"}}'}
    assert registry.get_version("toy", "2").version == "2"
    with pytest.raises(RegistryError, match="not a response of MLflow"):
        registry.get_version("toy", "1")


def record_training(digests: dict[str, str]) -> registry.ModelVersion:
    """Record the training of a version with files of some digests."""
    ledger.append(
        "toy", kind=LedgerKind.TRAINING, decision=Decision.ACCEPTED, reason="", actor="gate", model_version="1",
        evidence={"run_id": "run"} | training_records.evidence("m-1", {}, digests),
    )  # fmt: skip
    return registry.ModelVersion("toy", "1", "run", "m-1")


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>a login page</html>", b""])
def test_a_page_in_place_of_a_file_is_not_loaded(
    broken: dict[str, Any], empty_home: Path, body: bytes
) -> None:
    version = record_training({"spec.json": "0" * 64, "model.ubj": "1" * 64})
    broken |= {"status": 200, "body": body}
    with pytest.raises(ArtifactError, match=r"spec\.json of version 1 in MLflow .* changed or damaged"):
        registry.load_spec(version)
    with pytest.raises(ArtifactError, match=r"model\.ubj of version 1 in MLflow .* changed or damaged"):
        registry.load_model(version)
    assert [p for p in (empty_home / "cache").rglob("*") if p.is_file()] == []


def test_a_download_that_is_cut_off_leaves_nothing(broken: dict[str, Any], empty_home: Path) -> None:
    version = record_training({"spec.json": "0" * 64, "model.ubj": "1" * 64})
    broken |= {"status": 200, "body": b"half", "length": 1000}
    with pytest.raises(RegistryError, match="broke off"):
        registry.download_artifact(version, "spec.json")
    assert [p for p in (empty_home / "cache").rglob("*") if p.is_file()] == []


def test_how_an_earlier_release_told_people_does_not_keep_its_champion_from_scoring(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_model()
    bundle = spec.bundle()
    bundle["model"]["alerts"] = ["https://example.com/hook"]
    (tmp_path / "spec.json").write_text(json.dumps(bundle))
    monkeypatch.setattr(registry, "download_artifact", lambda version, name: tmp_path / name)
    assert registry.load_spec(registry.ModelVersion("toy", "1", "run", "model", {})).digest == spec.digest
