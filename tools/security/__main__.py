"""Look for weaknesses in the sources, workflows, history and dependencies; needs no network.

Exits with 1 if there is a finding that no waiver names, and with 2 if a check could not run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Container
from pathlib import Path

import licences
import secrets_in_history
from waivers import WaiverError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("bench", "dags", "docker", "include", "plugins", "tools")


def _tool(
    command: list[str], repository: Path, looked_at: str, with_findings: Container[int]
) -> tuple[list[str], str]:
    """Findings of a program that lists them on standard output and then exits with one of some codes.

    Raises:
        ChildProcessError: it ended in another way, so that it may not have looked at everything.
    """
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    if done.returncode == 0:
        return [], looked_at
    findings = done.stdout.strip().splitlines()
    if done.returncode not in with_findings or not findings:
        raise ChildProcessError(f"it ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    return findings, ""


def sources(repository: Path) -> tuple[list[str], str]:
    """Weaknesses in the sources, by bandit; pyproject.toml says which of its checks are left out, and why."""
    folders = [folder for folder in SOURCES if (repository / folder).is_dir()]
    command = [sys.executable, "-m", "bandit", "--quiet", "--recursive", *folders, "--format", "custom",
               "--msg-template", "{relpath}:{line}: {test_id}: {msg}"]  # fmt: skip
    command += ["--configfile", str(ROOT / "pyproject.toml")]
    return _tool(command, repository, ", ".join(folders), {1})


def workflows(repository: Path) -> tuple[list[str], str]:
    """Weaknesses in the workflows of continuous integration, by zizmor, whose code says how severe the worst is."""
    command = [
        str(Path(sys.executable).with_name("zizmor")),
        "--offline",
        "--quiet",
        "--color=never",
        ".github",
    ]
    return _tool(command, repository, ".github", range(10, 15))


CHECKS: dict[str, Callable[[Path], tuple[list[str], str]]] = {
    "sources (bandit)": sources,
    "workflows (zizmor)": workflows,
    "secrets in the history (detect-secrets)": secrets_in_history.check,
    "licences (pip-licenses)": licences.check,
}


def main(arguments: list[str]) -> int:
    """Run all checks, and print a line for each and its findings.

    Args:
        arguments: the repository's folder; this one without any.
    """
    repository = Path(arguments[0]) if arguments else ROOT
    worst = 0
    for name, check in CHECKS.items():
        try:
            findings, looked_at = check(repository)
        except (WaiverError, OSError, subprocess.CalledProcessError) as error:
            sys.stderr.write(f"error: {name}: {error}\n")
            worst = 2
            continue
        print(
            f"{name}: {f'{len(findings)} lines' if findings else f'nothing found ({looked_at})'}", flush=True
        )
        for line in findings:
            print(f"  {line}")
        worst = max(worst, int(bool(findings)))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
