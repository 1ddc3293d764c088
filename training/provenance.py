"""With which code something was made."""

import subprocess
from pathlib import Path


def code_commit() -> str:
    """The commit of the code that trains, with a + when it was changed since; outside a checkout the version."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S603
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], check=False).returncode == 1  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return _version()
    return head.stdout.strip() + ("+" if changed else "")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"nightread {version('nightread')}"
    except PackageNotFoundError:
        return ""
