"""Search each line that a commit ever added for secrets, by the detectors of detect-secrets.

A secret in an old commit is as public as one in the latest: it has to be revoked, not only deleted.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from waivers import waived

#: Detectors of the forms that keys and tokens have. Those by entropy alone are left out: they report digests.
FORMS = (
    "ArtifactoryDetector", "AWSKeyDetector", "AzureStorageKeyDetector", "CloudantDetector", "DiscordBotTokenDetector",
    "GitHubTokenDetector", "GitLabTokenDetector", "IbmCloudIamDetector", "IbmCosHmacDetector", "JwtTokenDetector",
    "MailchimpDetector", "NpmDetector", "OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector",
    "SlackDetector", "SoftlayerDetector", "SquareOAuthDetector", "StripeDetector", "TelegramBotTokenDetector",
    "TwilioKeyDetector",
)  # fmt: skip
#: Detectors of whatever is called a password. They do not look at tests.
NAMED = ("BasicAuthDetector", "KeywordDetector")
#: Where passwords are made up.
TESTS = "tests/"
#: Locks hold names, versions and digests; nobody writes them by hand.
_LEFT_OUT = (":(exclude)*requirements*.txt",)


def added_lines(repository: Path) -> tuple[str, dict[str, list[str]]]:
    """What commits there are, and the lines that they added, by file; a line that several files of one kind have, or
    had at several times, is listed once."""
    git = ["git", "-C", str(repository)]

    def answer(*arguments: str) -> str:
        return subprocess.run([*git, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    commits = f"{answer('rev-list', '--count', 'HEAD')} commits"
    if answer("rev-parse", "--is-shallow-repository") == "true":
        commits += ", NONE OF THOSE BEFORE THEM, WHICH THIS CLONE LACKS (git fetch --unshallow)"
    log = [*git, "log", "--patch", "--unified=0", "--no-color", "--no-ext-diff", "--no-renames",
           "--diff-merges=first-parent", "--diff-filter=AM", "--format=", "HEAD", "--", ".", *_LEFT_OUT]  # fmt: skip
    patch = subprocess.run(log, check=True, capture_output=True).stdout.decode(errors="replace")
    lines: dict[str, list[str]] = {}
    known: set[tuple[str, bool, str]] = set()
    file = ""
    for line in patch.split("\n"):
        if line.startswith("+++ "):
            file = line.removeprefix("+++ b/")
        elif line.startswith("+") and (key := (Path(file).suffix, file.startswith(TESTS), line)) not in known:
            known.add(key)
            lines.setdefault(file, []).append(line)
    return commits, lines


def secrets(added: dict[str, list[str]], detectors: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """Kinds of the secrets in added lines, by the SHA-1 of the value and the file."""
    from detect_secrets.core.scan import scan_diff
    from detect_secrets.settings import transient_settings

    differences = "".join(
        f"--- /dev/null\n+++ b/{file}\n@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"{line}\n" for line in lines)
        for file, lines in added.items()
    )
    with transient_settings({"plugins_used": [{"name": name} for name in detectors]}) as settings:
        settings.disable_filters(
            "detect_secrets.filters.common.is_invalid_file"
        )  # it skips files since deleted
        return {
            (
                hashlib.sha1((s.secret_value or "").encode(), usedforsecurity=False).hexdigest(),
                s.filename,
            ): s.type
            for s in scan_diff(differences)
        }


def check(repository: Path) -> tuple[list[str], str]:
    """Secrets that no waiver names, and what was searched.

    The value itself is never printed: only its SHA-1, by which a waiver names it.
    """
    commits, added = added_lines(repository)
    tests = {file: lines for file, lines in added.items() if file.startswith(TESTS)}
    others = {file: lines for file, lines in added.items() if file not in tests}
    candidates = secrets(tests, FORMS) | secrets(others, FORMS + NAMED)
    known = waived("secret")
    findings = [
        f"{file}: {kind}, SHA-1 {digest}. What to do: revoke it, then remove it; an example goes into waivers.toml"
        for (digest, file), kind in sorted(candidates.items(), key=lambda item: item[0][1])
        if (digest,) not in known
    ]
    return findings, f"{commits}; {len(candidates) - len(findings)} waived"
