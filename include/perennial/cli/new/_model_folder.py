"""The folder of a new model: its name, its files, and the check of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from perennial.cli.check import preflight
from perennial.cli.new import expectations, templates
from perennial.cli.new.samples.sample_reader import Sample
from perennial.core.errors import PerennialError, SpecError
from perennial.core.settings import ROOT
from perennial.spec import catalog


def check_name(name: str, root: Path) -> None:
    """Refuse a name that no model can have, or that is in use.

    Raises:
        SpecError: with the reason.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise SpecError(
            f"{name!r} cannot be a model's name", "begin with a letter; use lower case, digits and _ only"
        )
    folders = catalog.find_folders() | catalog.find_folders("feature_set.yaml")
    if name in folders or (root / name).exists():
        raise SpecError(
            f"{folders.get(name, root / name)} exists already", "choose another name, or remove the folder"
        )


def schema_path(root: Path, name: str) -> str:
    """The path of the JSON Schema, relative to the new folder."""
    return Path(os.path.relpath(ROOT / "include" / "models" / "model.schema.json", root / name)).as_posix()


def file_texts(sample: Sample, draft: templates.ModelDraft, suite: expectations.Suite) -> dict[str, str]:
    """The content of each file of the folder."""
    return {
        "model.yaml": templates.model_text(sample, draft),
        "features.sql": templates.sql_text(sample, draft),
        "expectations.json": suite.text,
        "README.md": templates.readme_text(sample, draft, suite.summary),
    }


def write(folder: Path, texts: dict[str, str]) -> Path:
    """Write the files of a folder."""
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def check(folder: Path, *, landed: bool) -> list[str]:
    """Check a new folder as `perennial check` does; returns what monitoring will not be able to follow.

    Raises:
        SpecError: with the problems.
    """
    spec = catalog.load_model(folder)
    report = preflight.check_model(spec, landed=landed)
    if report.problems:
        raise SpecError(
            "the sample does not make a model: " + "; ".join(report.problems),
            "nothing was written; correct the sample, or choose other columns",
            model=folder.name,
        )
    return preflight.monitoring_notes(spec)


def move(folder: Path, target: Path) -> None:
    """Move a folder to where models are searched.

    Raises:
        PerennialError: it cannot be moved.
    """
    try:
        folder.rename(target)
    except OSError as error:
        raise PerennialError(
            f"{target} cannot be created: {error.strerror}", "choose another name or folder"
        ) from error
