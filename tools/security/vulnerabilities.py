"""Check every locked package against databases of known vulnerabilities.

Exits with 1 if one is known that no waiver names, and with 2 if no database could be reached: a package that could not
be checked never counts as safe. Reports are written to ``.perennial/audit``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from waivers import WaiverError, waived

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(os.environ.get("PERENNIAL_AUDIT") or ROOT / ".perennial" / "audit")
LOCKS = (
    "requirements.txt",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docker/*/requirements*.txt")),
)


def audit(lock: str, service: str) -> tuple[list[str], str]:
    """Known vulnerabilities of a lock's packages, or why the service gave no answer."""
    target = OUT / (lock.replace("/", "-").removesuffix(".txt") + ".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pip_audit", "--requirement", lock, "--require-hashes", "--disable-pip",
               "--vulnerability-service", service, "--progress-spinner", "off", "--timeout", "30",
               "--format", "json", "--output", str(target)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not target.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return [], lines[-1].strip() if lines else f"pip-audit ended with {done.returncode}"
    packages = json.loads(target.read_text())["dependencies"]
    skipped = [p["name"] for p in packages if "skip_reason" in p]
    if skipped:
        target.unlink()
        return [], f"{len(skipped)} packages were not looked up, {skipped[0]} first"
    return [
        f"{p['name']} {p['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version yet'}"
        for p in packages
        for v in p["vulns"]
        if (p["name"], v["id"]) not in waived("vulnerability")
    ], ""


def main() -> int:
    """Audit every lock."""
    known: set[str] = set()
    for lock in LOCKS:
        for service in ("osv", "pypi"):
            try:
                vulnerabilities, missing = audit(lock, service)
            except WaiverError as error:
                sys.stderr.write(f"error: {error}\n")
                return 2
            if not missing:
                break
        if missing:
            sys.stderr.write(
                f"error: NOTHING WAS AUDITED: no vulnerability service answers for {lock}: {missing}\n"
                "  What to do: run this where api.osv.dev or pypi.org/pypi/*/json can be reached\n"
            )
            return 2
        print(f"{lock}: {len(vulnerabilities)} known vulnerabilities")
        known |= set(vulnerabilities)
    for line in sorted(known):
        print(f"  {line}")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
