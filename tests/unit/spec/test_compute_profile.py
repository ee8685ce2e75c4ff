"""Compute profiles: where they are found, and what they may contain."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from perennial import __version__
from perennial.core.errors import SpecError
from perennial.spec import compute_profile, yaml_reader
from support import toys


@pytest.fixture
def folder(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A further folder of profiles."""
    profiles = tmp_path / "compute"
    profiles.mkdir()
    monkeypatch.setenv("PERENNIAL_COMPUTE", str(profiles))
    for name in ("PERENNIAL_PROFILE", "PERENNIAL_TRAINER_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    return profiles


def write(folder: Path, file: str, **values: object) -> None:
    (folder / f"{file}.yaml").write_text(yaml.safe_dump({"name": file, "kind": "kubernetes"} | values))


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
    ("values", "message"),
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
        ({"env": {"A": "1"}, "secrets": [{"env": "A", "secret": "s", "key": "k"}]}, "env.A is also given in secrets"),
        ({"template": "nowhere.yaml"}, r"bad\.yaml:\d+: template 'nowhere\.yaml' is not in the same folder"),
        ({"name": "other"}, "name is 'other', the file is 'bad.yaml'"),
    ],
)  # fmt: skip
def test_an_invalid_profile_is_reported_with_file_and_line(
    folder: Path, values: dict[str, object], message: str
) -> None:
    write(folder, "bad", **values)
    with pytest.raises(SpecError, match=message):
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
    write(folder, "named", image="mine:{version}")
    assert compute_profile.load_profile("plain").image_name == "registry.example/trainer:7"
    assert compute_profile.load_profile("named").image_name == f"mine:{__version__}"


@pytest.mark.parametrize(
    ("text", "value"), [("2Gi", 2**31), ("1500M", 15 * 10**8), ("1.5Ki", 1536), ("7", 7)]
)
def test_quantities(text: str, value: int) -> None:
    assert compute_profile.quantity_bytes(text) == value


def test_parsing_knows_the_profiles_keys(folder: Path) -> None:
    (folder / "twice.yaml").write_text("name: twice\nkind: kubernetes\ncpu: '1'\ncpu: '2'\n")
    with pytest.raises(SpecError, match=r"twice\.yaml:4: cpu is given twice"):
        compute_profile.load_profile("twice")
    assert yaml_reader.display_path(folder / "twice.yaml").endswith("twice.yaml")
