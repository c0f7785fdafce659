"""Writes an output folder completely or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scen_cli.errors import UsageError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, and rename it to `folder` when the block ends without an error.

    Raises:
        UsageError: `folder` is not new or empty.
    """
    folder = folder.resolve()
    if folder == Path.cwd() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError(f"`{folder}` is not a new or empty folder", hint="choose another `--out`")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
        draft = Path(temporary) / "draft"
        draft.mkdir()
        yield draft
        make_readable(draft)
        draft.replace(folder)


def make_readable(folder: Path) -> None:
    """Give all files the folder's read and write permissions: some libraries write files that only the owner reads."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
