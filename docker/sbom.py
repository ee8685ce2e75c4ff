"""Write a CycloneDX list of what each image's Python environment holds, into ``.perennial/sbom/<image>.json``.

Only the metadata of the packages is copied out of the image: nothing is installed into it, and only tar runs in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / ".perennial" / "sbom"
IMAGES = ("trainer", "trainer-gpu", "airflow", "mlflow", "s3")


def tag() -> str:
    """The images' tag: ``TAG``, or the library's version."""
    if os.environ.get("TAG"):
        return os.environ["TAG"]
    text = (ROOT / "include" / "perennial" / "__init__.py").read_text("utf-8")
    version = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert version
    return version[1]


def reference(image: str) -> str:
    """The image's full name: ``trainer-gpu`` is ``perennial/trainer:<tag>-gpu``."""
    folder, _, variant = image.partition("-")
    registry = os.environ.get("REGISTRY") or "perennial"
    return f"{registry}/{folder}:{tag()}{'-' + variant if variant else ''}"


def metadata(image: str, folder: Path) -> None:
    """Copy the metadata of an image's packages into ``folder``.

    Raises:
        SystemExit: there is no such image, or no engine.
    """
    docker = os.environ.get("DOCKER", "docker")
    take = "cd /opt/venv/lib/python3.*/site-packages && exec tar -c -- *.dist-info"
    command = [docker, "run", "--rm", "--network", "none", "--entrypoint", "sh", reference(image), "-c", take]
    with tempfile.TemporaryFile() as archive:
        done = subprocess.run(command, stdout=archive, stderr=subprocess.PIPE)
        if done.returncode:
            error_lines = done.stderr.decode(errors="replace").strip().splitlines()[:1]
            raise SystemExit(
                f"error: {reference(image)}: {' '.join(error_lines)}\n  What to do: make images IMAGES={image}"
            )
        archive.seek(0)
        with tarfile.open(fileobj=archive) as packed:
            packed.extractall(folder, filter="data")


def write(image: str) -> int:
    """Write the list of one image; returns how many packages it names."""
    with tempfile.TemporaryDirectory() as name:
        site, python = Path(name, "site"), Path(name, "bin", "python")
        site.mkdir()
        metadata(image, site)
        # cyclonedx-py asks an interpreter where its packages are
        python.parent.mkdir()
        python.write_text(f"#!/bin/sh\necho '{json.dumps([str(site)])}'\n")
        python.chmod(0o755)
        target = OUT / f"{image}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "cyclonedx_py",
            "environment",
            "--output-reproducible",
            "--of",
            "JSON",
        ]
        subprocess.run(
            [*command, "--output-file", str(target), str(python)], check=True, stderr=subprocess.DEVNULL
        )
    return len(json.loads(target.read_text())["components"])


def main(images: list[str]) -> None:
    """Write the lists of these images, or of all if none is named."""
    for image in images or IMAGES:
        print(f"{OUT.relative_to(ROOT) / image}.json: {write(image)} packages")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
