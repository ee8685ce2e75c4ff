"""Check that each package of the runtime's lock has a licence under which Perennial can be given to others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from waivers import waived

#: Licences that ask for no more than their text, or for the sources of their own files.
ALLOWED = re.compile(
    r"apache|\bmit\b|\bbsd\b|0bsd|\bisc|python software foundation|psf|mpl|mozilla|unlicense|zlib|cc0",
    re.IGNORECASE,
)
#: Licences that pass on to what uses them, or that restrict use.
REFUSED = re.compile(
    r"\ba?gpl|general public|sspl|server side public|busl|proprietary|commercial", re.IGNORECASE
)


def normal(name: str) -> str:
    """A package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock: Path) -> set[str]:
    """Names of the packages in a lock."""
    return {
        normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock.read_text("utf-8"), re.MULTILINE)
    }


def licences(python: str = sys.executable) -> dict[str, str]:
    """The licence of each package of an environment, by its normal name, from all places where packages state it."""
    command = [python, "-m", "piplicenses", "--from=all", "--format=json"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        normal(package["Name"]): " | ".join(
            dict.fromkeys(
                text.splitlines()[0]
                for key, text in package.items()
                if key.startswith("License-") and text.strip() and text != "UNKNOWN"
            )
        )
        for package in packages
    }


def check(repository: Path) -> tuple[list[str], str]:
    """Packages whose licence is refused or unknown and not waived, and what was looked at."""
    stated = licences()
    wanted = locked(repository / "requirements.txt")
    packages, missing = wanted & set(stated), sorted(wanted - set(stated))
    findings = [
        f"{name}: {stated[name] or 'states no licence'}. What to do: replace it, or give a reason in waivers.toml"
        for name in sorted(packages)
        if (name,) not in waived("licence")
        and (REFUSED.search(stated[name]) or not ALLOWED.search(stated[name]))
    ]
    elsewhere = f"; not installed here, and not looked at: {', '.join(missing)}" if missing else ""
    return findings, f"{len(packages)} packages{elsewhere}"
