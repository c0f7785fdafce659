"""Who makes a change: as told, else git's user, else the login."""

from __future__ import annotations

import getpass
import shutil
import subprocess


def author_of(given: str | None) -> str:
    """The name to put beside a change. Never fails: where nothing is known, it is `unknown`."""
    return (given or "").strip() or _git_user() or _login()


def _git_user() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    values = []
    for name in ("user.name", "user.email"):
        try:
            done = subprocess.run([git, "config", "--get", name], capture_output=True, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            return ""
        values.append(done.stdout.decode("utf-8", "replace").strip())
    name, email = values
    return f"{name} <{email}>" if name and email else name


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"
