"""`scen backup` and `scen restore`: a project in one file, whole and tried before it counts.

A zip archive without compression: the ledger as SQLite's backup API copies it, and every file that it names. Whoever
restores one need not trust it: only names that scen gives are taken, nothing is unpacked that is larger than the
archive, and every sum is checked before the project appears.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scen_cli.errors import DamageFound, UsageError
from scen_cli.project import disk
from scen_cli.project.check import named_files, verify
from scen_cli.project.edit_files import EDIT_FILE
from scen_cli.project.guard import GUARD_FILE
from scen_cli.project.ledger import Ledger
from scen_cli.project.lock import HOLDER, LOCK, locked
from scen_cli.project.method_state import STATE_FILE
from scen_cli.project.project import Project, refuse_existing
from scen_cli.project.seal import LEDGER, SEAL, seal
from scen_cli.project.tensor_files import checked_sum

PIECE = 1 << 20
PATTERNS = ("edits/*", "guard-*", "method-*")  # of all files but the ledger and its seal
DRAFT = ".restoring-"  # folders of files that are tried before they count


def backup(project: Project, file: Path) -> tuple[int, int]:
    """Write a project as it is at one moment to a new file, while others may go on editing. Returns how many files it
    holds, and its bytes.

    Raises `UsageError` if the file exists, `DamageFound` if a file of the project is not what was committed.
    """
    if file.exists() or not file.parent.is_dir():
        said = "exists already" if file.exists() else "cannot be written: there is no such folder"
        raise UsageError(f"`{file}` {said}", hint="give the backup a new name")
    while True:
        head = project.ledger.head()
        try:
            return _backup(project, file)
        except DamageFound:
            if project.ledger.head() == head:  # else `scen gc` or `scen compress` took a file away meanwhile
                raise


def _backup(project: Project, file: Path) -> tuple[int, int]:
    draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            copy = Path(folder) / LEDGER
            project.ledger.copy_to(copy)
            named = _named(copy)
            with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
                archive.write(copy, LEDGER)
                for name, sha256 in named.items():
                    if checked_sum(project.folder, name) != sha256:
                        raise DamageFound(
                            f"`{name}` is not what was committed: no backup was made",
                            hint="`scen verify --deep` names its edit; revert that, `scen gc`, and back up again",
                        )
                    archive.write(project.folder / name, name)
        with draft.open("rb+") as written:
            os.fsync(written.fileno())
        disk.rename(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    return len(named) + 1, file.stat().st_size


def restore(file: Path, folder: Path) -> Project:
    """Make the project that a backup holds, in a folder that has none. It appears whole and tried, or not at all.

    Raises `UsageError` for a file that is no backup or a folder that holds a project, `DamageFound` for a backup whose
    content is not what its own ledger says.
    """
    refuse_existing(folder)
    made = not folder.exists()
    disk.make_folder(folder)
    try:
        with locked(folder):
            refuse_existing(folder)
            for left in folder.glob(f"{DRAFT}*"):  # by a restore that was killed
                disk.remove(left)
            _restore(file, folder, Path(tempfile.mkdtemp(dir=folder, prefix=DRAFT)))
    except BaseException:
        if made and {path.name for path in folder.iterdir()} <= {LOCK, HOLDER}:
            shutil.rmtree(folder)
        raise
    project = Project(folder)
    with project.writing():
        if project.method is None:
            project.merge()
    return project


def _restore(file: Path, folder: Path, draft: Path) -> None:
    """Unpack an archive aside, try it, and move it into place: the ledger last, for a folder with one is a project."""
    try:
        with _opened(file) as archive:
            for entry in _entries(archive, file):
                _unpack(archive, entry, draft / entry.filename)
        _try(draft)
        paths = sorted([*(path for pattern in PATTERNS for path in draft.glob(pattern)), draft / SEAL])
        there = {path.relative_to(folder) for pattern in PATTERNS for path in folder.glob(pattern)}
        if there - {path.relative_to(draft) for path in paths}:
            raise UsageError(f"`{folder}` holds files of another project", hint="restore into an empty folder")
        disk.make_folder(folder / "edits")
        for path in paths:
            disk.rename(path, folder / path.relative_to(draft))
        disk.rename(draft / LEDGER, folder / LEDGER)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _named(ledger: Path) -> dict[str, str]:
    """The files that a ledger names, and their sha256."""
    opened = Ledger(ledger)
    try:
        named = {str(name): str(sha256) for name, sha256 in named_files(opened).items()}
    finally:
        opened.close()
    if foreign := [name for name in named if not _is_ours(name)]:
        raise DamageFound(f"the ledger names a file that no scen makes: {foreign[0]!r}", hint="run `scen verify`")
    return named


def _is_ours(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (EDIT_FILE, GUARD_FILE, STATE_FILE))


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UsageError(f"`{file}` is no backup of scen, or is damaged: {error}") from error
    except OSError as error:
        if error.filename in (None, str(file), os.fspath(file)):
            raise UsageError(f"cannot read `{file}`: {error.strerror or error}") from error
        raise


def _entries(archive: zipfile.ZipFile, file: Path) -> list[zipfile.ZipInfo]:
    """What an archive holds, if it is what scen puts into one."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    whole = sum(entry.file_size for entry in entries)
    for entry in entries:
        kind = entry.external_attr >> 28  # of a Unix mode: 8 is a plain file, 10 a link
        if not (entry.filename == LEDGER or _is_ours(entry.filename)) or kind not in (0, 8):
            raise UsageError(f"`{file}` is no backup of scen: it holds {entry.filename!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UsageError(f"`{file}` is no backup of scen: {entry.filename!r} is compressed or encrypted")
    if LEDGER not in names or len(set(names)) < len(names) or whole > file.stat().st_size:
        raise UsageError(f"`{file}` is no backup of scen, or is damaged")
    return entries


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    disk.make_folder(path.parent)
    with archive.open(entry) as source, path.open("xb") as target:
        while piece := source.read(PIECE):
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())


def _try(folder: Path) -> None:
    """Raise `DamageFound` unless the unpacked project is whole."""
    try:
        project = Project(folder)
    except sqlite3.DatabaseError as error:
        raise DamageFound(f"the backup's ledger cannot be read: {error}") from error
    try:
        seal(folder, project.ledger)
        problems = [problem for problem in verify(project, deep=True) if problem.kind == "damage"]
    finally:
        project.close()
    if problems:
        raise DamageFound(f"the backup is damaged: {problems[0].where}: {problems[0].what}", hint="try an older one")
