"""Compute profiles: what they may say, and what a step that runs elsewhere brings back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from perennial import __version__
from perennial.cli.app import app
from perennial.core import runtime
from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.spec import compute_profile, yaml_reader
from perennial.steps import result_file
from perennial.storage import manifests
from support import toys


@pytest.fixture
def folder(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A team's own folder of profiles."""
    place = tmp_path / "compute"
    place.mkdir()
    monkeypatch.setenv("PERENNIAL_COMPUTE", str(place))
    for name in ("PERENNIAL_PROFILE", "PERENNIAL_TRAINER_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    return place


def write(folder: Path, file: str, **said: object) -> None:
    (folder / f"{file}.yaml").write_text(yaml.safe_dump({"name": file, "kind": "kubernetes"} | said))


@pytest.mark.parametrize(
    "path", sorted((compute_profile.ROOT / "include" / "compute").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_profiles_that_come_along_load(folder: Path, path: Path) -> None:
    profile = compute_profile.load_profile(path.stem)
    assert profile.runs_in_pods and ":latest" not in profile.image_name and __version__ in profile.image_name


def test_a_teams_profile_comes_before_ours(folder: Path) -> None:
    write(folder, "gpu", cpu="7")
    assert compute_profile.load_profile("gpu").cpu == "7"
    assert compute_profile.load_profile("local").runs_in_pods is False
    assert compute_profile.load_profile("kubernetes").memory_limits() == ["2Gi", "4Gi", "8Gi"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"memroy": "2Gi"}, r"bad\.yaml:\d+: memroy: unknown key; did you mean 'memory'\?"),
        ({"memory": "2 GB"}, r"bad\.yaml:\d+: memory: .*received '2 GB'"),
        ({"memory": "128Mi"}, "memory is '128Mi': a step needs at least 256Mi"),
        ({"memory": "4Gi", "more_memory": ["2Gi"]}, "each must be larger than the one before"),
        ({"more_memory": ["4Gi", "4Gi"]}, "each must be larger than the one before"),
        ({"kind": "eks"}, "cluster is missing"),
        ({"cluster": "c"}, "cluster and region are for kind eks"),
        ({"kind": "local", "gpu": {"count": 1}}, "gpu is for pods"),
        ({"gpu": {"count": 0}}, r"gpu\.count"),
        ({"gpu": {"count": 2}, "workers": 3}, r"gpu\.count is 2 with 3 workers: each uses one GPU"),
        ({"namespace": "Not_Valid"}, "namespace"),
        ({"env": {"A": "1"}, "secrets": [{"env": "A", "secret": "s", "key": "k"}]}, "env.A is given in secrets too"),
        ({"template": "nowhere.yaml"}, r"bad\.yaml:\d+: template 'nowhere\.yaml' is not beside it"),
        ({"name": "other"}, "name is 'other', the file is 'bad.yaml'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_with_file_and_line(folder: Path, said: dict[str, object], told: str) -> None:
    write(folder, "bad", **said)
    with pytest.raises(SpecError, match=told):
        compute_profile.load_profile("bad")


def test_a_model_that_names_an_unknown_profile_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"model\.yaml:\d+: compute\.train: there is no compute profile 'gpuu'"
    ) as error:
        toys.model(tmp_path / "models", "toy", compute={"train": "gpuu"})
    assert "did you mean gpu?" in str(error.value)


def test_where_a_step_runs_changes_no_digest(folder: Path, tmp_path: Path) -> None:
    here, there = (
        toys.model(tmp_path / str(i), "toy", compute=c) for i, c in enumerate(({}, {"train": "kubernetes"}))
    )
    assert here.digest == there.digest
    assert toys.model(tmp_path / "2", "toy", training={"rounds": 26}).digest != here.digest


def test_the_image_has_the_librarys_version_unless_another_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_TRAINER_IMAGE", "registry.example/trainer:7")
    write(folder, "plain")
    write(folder, "own", image="mine:{version}")
    assert compute_profile.load_profile("plain").image_name == "registry.example/trainer:7"
    assert compute_profile.load_profile("own").image_name == f"mine:{__version__}"


@pytest.mark.parametrize(
    ("text", "value"), [("2Gi", 2**31), ("1500M", 15 * 10**8), ("1.5Ki", 1536), ("7", 7)]
)
def test_quantities(text: str, value: int) -> None:
    assert compute_profile.quantity_bytes(text) == value


def test_a_result_comes_back(tmp_path: Path) -> None:
    place = str(tmp_path / "result.json")
    assert result_file.read_result(place) is None
    with result_file.step_outcome(place) as kept:
        kept.result = {"rows_in": 3, "partitions": ["2024-01-01"]}
    assert result_file.read_result(place) == {"rows_in": 3, "partitions": ["2024-01-01"]}


def test_an_error_comes_back_as_it_was(tmp_path: Path) -> None:
    place = str(tmp_path / "result.json")
    with pytest.raises(DataError), result_file.step_outcome(place):
        raise DataError("no rows", "land some", model="toy", partition="2024-01-01")
    with pytest.raises(DataError) as error:
        result_file.read_result(place)
    assert str(error.value) == str(DataError("no rows", "land some", model="toy", partition="2024-01-01"))


def test_nothing_is_left_by_a_step_that_crashed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), result_file.step_outcome(str(tmp_path / "result.json")):
        raise ZeroDivisionError
    assert result_file.read_result(str(tmp_path / "result.json")) is None


def test_another_library_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    bundle, place = tmp_path / "bundle.json", tmp_path / "result.json"
    bundle.write_text(json.dumps(spec.bundle()))
    done = CliRunner().invoke(app, ["run", "data", "--spec-file", str(bundle), "--start", "2024-01-01",
                                    "--result-file", str(place), "--library-digest", "0" * 64])  # fmt: skip
    assert isinstance(done.exception, PerennialError)
    with pytest.raises(PerennialError, match="its caller's is 000000000000"):
        result_file.read_result(str(place))
    assert manifests.read("toy", "data", "2024-01-01") is None


def test_the_digest_is_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = CliRunner().invoke(app, ["library-digest"]).stdout.strip()
    assert len(printed) == 64 and printed == runtime.library_digest()


def test_parsing_knows_the_profiles_keys(folder: Path) -> None:
    (folder / "twice.yaml").write_text("name: twice\nkind: kubernetes\ncpu: '1'\ncpu: '2'\n")
    with pytest.raises(SpecError, match=r"twice\.yaml:4: cpu is given twice"):
        compute_profile.load_profile("twice")
    assert yaml_reader.display_path(folder / "twice.yaml").endswith("twice.yaml")
