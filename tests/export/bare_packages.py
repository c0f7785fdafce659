"""A Python that has only some of the installed packages, and what these need: what a user of an export may have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def requirements_of(names: Sequence[str]) -> set[str]:
    """The installed packages among these and all that they need, without their extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:  # for another system
            continue
        if name not in found:
            found.add(name)
            needed = (Requirement(text) for text in needs)
            waiting += [need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def link_packages(folder: Path, names: Sequence[str]) -> None:
    """Fill a folder with links to the installed files of these packages and of what they need."""
    for name in requirements_of(names):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(installed.locate_file(top))))


def run_python(folder: Path, code: str, *arguments: object) -> str:
    """What a program prints in a Python whose only packages are those in a folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-S", "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command,
        env=environment | {"PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
