"""Who makes a change: the given name, else git's user, else the login."""

from __future__ import annotations

import getpass
import shutil
import subprocess


def author_of(name: str | None) -> str:
    """The name to record with a change. Never fails: the last resort is `unknown`."""
    return (name or "").strip() or _git_user() or _login()


def _git_user() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    values = []
    for key in ("user.name", "user.email"):
        try:
            done = subprocess.run([git, "config", "--get", key], capture_output=True, timeout=5, check=False)
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
