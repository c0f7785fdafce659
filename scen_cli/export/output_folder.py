"""A new folder that appears under its name only when it is whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scen_cli.errors import UsageError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft to write into, beside `folder`, which takes its place when the block ends; if that fails, nothing stays.

    Raises `UsageError` unless the folder is new or empty.
    """
    folder = folder.resolve()
    if folder == Path.cwd() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError(f"`{folder}` is not a new or empty folder", hint="choose another `--out`")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as aside:
        draft = Path(aside) / "draft"
        draft.mkdir()
        yield draft
        make_readable(draft)
        draft.replace(folder)


def make_readable(folder: Path) -> None:
    """Files for whoever may read the folder: some writers make them for their owner alone."""
    usual = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(usual)
