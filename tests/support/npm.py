"""Packages that come from npm: CI installs them by itself, a laptop without npm skips the test with a sentence."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from platformdirs import user_cache_path

from tests.support.debian import need


def node_modules(*packages: str) -> Path:
    """The folder that holds these packages, such as "axe-core@4.11.0", and what they need; installed once, then kept.

    No package runs a script of its own while it is installed. Two test processes may ask at once: the first one's
    folder stays.
    """
    need("npm", packages="nodejs npm")
    name = hashlib.sha256(" ".join(sorted(packages)).encode()).hexdigest()[:16]
    kept = user_cache_path("nightread-tests") / f"npm-{name}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=kept.parent))
        command = ["npm", "install", "--prefix", str(made), "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run([*command, *packages], check=True, timeout=600, capture_output=True)
        try:
            made.rename(kept)
        except OSError:  # another process was first
            shutil.rmtree(made)
    return kept / "node_modules"
