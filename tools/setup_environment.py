"""Make the project's virtual environment from its locked requirements.

Run by ``make`` with whatever Python the user has, so this file uses the standard library only and is started as a
script (``python3 -I setup_environment.py``), not imported from the package.

An environment is current if its stamp equals the digest of the lock file, the interpreter and this script; then the
call takes milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST, NEWEST = (3, 11), (3, 13)
NEEDED_MB = 3_500
RECIPE = "1"


class SetupError(Exception):
    """The set-up failed; the message says why and what to do."""


def say(text: str) -> None:
    """Print one line to standard error, and flush it."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def check_python(version: tuple[int, int]) -> None:
    """Raise SetupError unless the lock file covers this Python version."""
    if OLDEST <= version <= NEWEST:
        return
    raise SetupError(
        f"{sys.executable} is Python {version[0]}.{version[1]}, and the locked environment is made for "
        f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}.\n"
        "Name another interpreter: make run PYTHON=/path/to/python3.12"
    )


def check_disk(folder: Path, needed_mb: int = NEEDED_MB) -> None:
    """Raise SetupError when the disk that holds `folder` has less than `needed_mb` free."""
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    if free_mb < needed_mb:
        raise SetupError(
            f"The disk under {folder} has {free_mb} MB free; the environment needs {needed_mb} MB.\n"
            "Free some space, or put it elsewhere: make run VENV=/other/disk/venv"
        )


def stamp(lock: Path) -> str:
    """Digest of everything that determines the environment."""
    parts = [RECIPE, sys.version, str(Path(sys.base_prefix).resolve()), lock.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def stamp_file(venv: Path, lock: Path) -> Path:
    """The file in the environment that records that `lock` is installed."""
    name = "-".join(lock.resolve().relative_to(ROOT).with_suffix("").parts)
    return venv / f"installed-{name}.json"


def is_current(venv: Path, lock: Path) -> bool:
    """Whether `lock` is installed in `venv`, by this interpreter."""
    try:
        noted = json.loads(stamp_file(venv, lock).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return noted.get("digest") == stamp(lock) and (venv / "bin" / "python").exists()


def pinned_lines(lock: Path, package: str) -> str:
    """The lock file's requirement of one package, with its hashes."""
    wanted: list[str] = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{package}==") or (wanted and line.startswith("    --hash")):
            wanted.append(line)
        elif wanted:
            break
    if not wanted:
        raise SetupError(f"{lock} does not lock {package}.\nMake it again: make lock")
    return "\n".join(wanted) + "\n"


def uv_settings(pip_config: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Translate the user's pip settings, which uv does not read, into uv's environment variables.

    `pip_config` is the output of ``pip config list``: lines of ``section.key='value'``. Variables that the user has
    set for uv itself take precedence.
    """
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "cert": "SSL_CERT_FILE",
        "trusted-host": "UV_INSECURE_HOST",
    }
    ranks = {"global": 0, "install": 1, ":env:": 2}
    options: dict[str, tuple[int, str]] = {}
    for line in pip_config.splitlines():
        match = re.fullmatch(r"(:env:|global|install)\.([a-z-]+)='(.*)'", line.strip())
        if not match or match[2] not in names:
            continue
        rank = ranks[match[1]]
        if match[2] not in options or rank >= options[match[2]][0]:
            options[match[2]] = (rank, match[3])
    settings = {}
    for key, (_, value) in options.items():
        # pip writes lists over several lines, which `pip config list` shows as a literal \n
        separator = "," if key == "find-links" else " "
        settings[names[key]] = separator.join(value.replace("\\n", " ").split())
    return {name: value for name, value in settings.items() if name not in environ}


def cause_of(output: str) -> str:
    """The cause of an installer's failure, from its output, and what to do about it."""
    text = output.lower()
    if "no space left" in text or "os error 28" in text or "errno 28" in text:
        return (
            "The disk is full.\nFree some space (3.5 GB are needed) and run the command again; it continues."
        )
    if ("hash" in text and "mismatch" in text) or "do not match the hashes" in text:
        return (
            "A downloaded file is not the one that was locked: its hash differs.\n"
            "If your package index changes files on purpose, make the lock again: make lock"
        )
    offline = ("dns error", "failed to fetch", "error sending request", "connection", "timed out", "network", "tcp",
               "from versions: none")  # fmt: skip
    if any(word in text for word in offline):
        return (
            "The package index cannot be reached.\n"
            "Check the network, or point pip at your own index (pip config set global.index-url URL), "
            "and run the command again; it continues where it stopped."
        )
    return "The installer failed; its last lines are above."


@contextlib.contextmanager
def ticking(label: str) -> Iterator[None]:
    """Show `label` with the elapsed seconds while the block runs."""
    began = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            sys.stderr.write(f"\r{label} … {time.monotonic() - began:.0f} s ")
            sys.stderr.flush()

    clock = threading.Thread(target=tick, daemon=True)
    if sys.stderr.isatty():
        clock.start()
    else:
        say(f"{label} …")
    try:
        yield
        start = "\r" if sys.stderr.isatty() else ""
        say(f"{start}{label}: {time.monotonic() - began:.0f} s        ")
    finally:
        done.set()
        if clock.is_alive():
            clock.join()


def call(command: list[str], environ: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output; raises SetupError with the cause if it fails."""
    try:
        done = subprocess.run(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise SetupError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        say("\n".join(done.stdout.splitlines()[-15:]))
        raise SetupError(cause_of(done.stdout))
    return done.stdout


def make_venv(venv: Path) -> None:
    """Create the environment with pip in it; an existing one of another interpreter is replaced."""
    interpreter = venv / "bin" / "python"
    with contextlib.suppress(SetupError):
        if interpreter.exists() and call(
            [str(interpreter), "-c", "import sys, pip; print(sys.version)"]
        ).strip() == (sys.version.strip()):
            return
    if venv.exists() and not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
        raise SetupError(
            f"{venv} exists and is no virtual environment.\nMove it away, or set VENV=/another/folder"
        )
    try:
        import ensurepip  # noqa: F401
        import venv as _  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"{sys.executable} cannot make virtual environments (no {error.name}).\n"
            f"On Debian and Ubuntu: apt install python3-venv python{sys.version_info[0]}.{sys.version_info[1]}-venv. "
            "Elsewhere name another interpreter: make run PYTHON=/path/to/python3"
        ) from error
    call([sys.executable, "-m", "venv", "--clear", str(venv)])


def install(venv: Path, lock: Path) -> None:
    """Install what `lock` names: with uv, or with pip where uv does not run."""
    python = str(venv / "bin" / "python")
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environ.setdefault("UV_CACHE_DIR", str(venv / "cache"))
    environ.update(PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", UV_PYTHON_DOWNLOADS="never")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--require-hashes", "--no-deps"]
    if not (venv / "bin" / "uv").exists():
        only_uv = venv / "uv.txt"
        only_uv.write_text(pinned_lines(ROOT / "requirements.txt", "uv"), encoding="utf-8")
        call([*pip, "-r", str(only_uv)], environ)
    environ.update(uv_settings(call([python, "-m", "pip", "config", "list"], environ), environ))
    uv = [
        str(venv / "bin" / "uv"),
        "pip",
        "install",
        "--python",
        python,
        "--require-hashes",
        "--compile-bytecode",
    ]
    # any index may serve a file, as pip does it: safe, because every file's hash is locked
    uv += ["--no-deps", "--index-strategy", "unsafe-best-match", "-r", str(lock)]
    try:
        subprocess.run([uv[0], "--version"], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        say("uv does not run on this machine; using pip, which takes a few minutes longer.")
        call([*pip, "-r", str(lock)], environ)
        return
    call(uv, environ)


def link_project(venv: Path) -> None:
    """Put the library on the environment's path, and its command into `bin`."""
    packages = next((venv / "lib").glob("python3.*/site-packages"))
    (packages / "perennial.pth").write_text(f"{ROOT / 'include'}\n{ROOT / 'plugins'}\n", encoding="utf-8")
    command = venv / "bin" / "perennial"
    # through sh, since a shebang line cannot hold a path with a space
    command.write_text('#!/bin/sh\nexec "$(dirname "$0")/python" -m perennial "$@"\n', encoding="utf-8")
    command.chmod(0o755)


@contextlib.contextmanager
def only_one(venv: Path) -> Iterator[None]:
    """Hold the environment's lock, so that concurrent commands do not install at the same time."""
    import fcntl

    venv.parent.mkdir(parents=True, exist_ok=True)
    with (venv.parent / f"{venv.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another command is setting up the environment; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure(venv: Path, locks: list[Path]) -> None:
    """Install what is missing, so that `venv` matches `locks`."""
    if all(is_current(venv, lock) for lock in locks):
        return
    with only_one(venv):
        missing = [lock for lock in locks if not is_current(venv, lock)]
        if not missing:
            return
        check_disk(venv.parent, NEEDED_MB if ROOT / "requirements.txt" in missing else 500)
        make_venv(venv)
        for lock in missing:
            count = sum(
                1 for line in lock.read_text(encoding="utf-8").splitlines() if re.match(r"[\w.-]+==", line)
            )
            with ticking(f"Installing {count} locked packages ({lock.relative_to(ROOT)})"):
                install(venv, lock)
            link_project(venv)
            stamp_file(venv, lock).write_text(json.dumps({"digest": stamp(lock)}), encoding="utf-8")


def main() -> int:
    """Command line: ``setup_environment.py [--venv FOLDER] [--tests]``."""
    parser = argparse.ArgumentParser(description="Make the virtual environment from the locked requirements.")
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("--tests", action="store_true", help="the tools that tests and lint need, too")
    options = parser.parse_args()
    locks = [ROOT / "requirements.txt"] + [ROOT / "tests" / "requirements.txt"] * options.tests
    try:
        check_python(sys.version_info[:2])
        ensure(options.venv.absolute(), locks)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted; run the command again, it continues where it stopped.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
