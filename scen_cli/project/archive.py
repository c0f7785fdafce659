"""`scen backup` and `scen restore`: a project in one file, complete and checked.

A zip archive without compression: a copy of the ledger by SQLite's backup API, and every file that it names. An archive
need not be trusted: only names that scen writes are accepted, nothing larger than the archive is unpacked, and every
sum is checked before the project appears.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from scen_cli.errors import VERIFY_HINT, DamageFound, ScenError, UsageError
from scen_cli.project import disk
from scen_cli.project.check import named_files, verify
from scen_cli.project.edit_files import EDIT_FILE
from scen_cli.project.guard import GUARD_FILE
from scen_cli.project.ledger import Ledger
from scen_cli.project.lock_and_seal import HOLDER, LEDGER, LOCK, SEAL, locked, seal
from scen_cli.project.method_state import STATE_FILE
from scen_cli.project.project import Project, refuse_existing
from scen_cli.project.tensor_files import checked_sum

CHUNK = 1 << 20
PATTERNS = ("edits/*", "guard-*", "method-*")  # of all files but the ledger and its seal
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a write, never of a read
DRAFT = ".restoring-"  # prefix of the folder in which an archive is unpacked and checked


def backup(project: Project, file: Path) -> tuple[int, int]:
    """Write one state of a project to a new file. Other processes may write to the project at the same time.

    Returns:
        The number of files in the backup, and its bytes.

    Raises:
        UsageError: The file exists.
        ScenError: The disk has no room for it.
        DamageFound: A file of the project is not what was committed.
    """
    if file.exists() or not file.parent.is_dir():
        problem = "exists already" if file.exists() else "cannot be written: there is no such folder"
        raise UsageError(f"`{file}` {problem}", hint="choose another name for the backup")
    while True:
        head = project.ledger.head()
        try:
            with _room(f"`{file}` could not be written, and no backup was made"):
                return _backup(project, file)
        except DamageFound:
            if project.ledger.head() == head:  # else `scen gc` or `scen compress` has removed a file: try again
                raise


def _backup(project: Project, file: Path) -> tuple[int, int]:
    draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            copy = Path(folder) / LEDGER
            project.ledger.copy_to(copy)
            with closing(Ledger(copy)) as ledger:
                sums = named_files(ledger)
            if unexpected := [name for name in sums if not _is_tensor_file(name)]:
                what = f"the ledger names a file that scen does not write: {unexpected[0]!r}"
                raise DamageFound(what, hint=VERIFY_HINT)
            # ZIP knows the years 1980 to 2107: other file times are replaced by the nearest.
            with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
                archive.write(copy, LEDGER)
                for name, sha256 in sums.items():
                    if checked_sum(project.folder, name) != sha256:
                        hint = "`scen verify --deep` names its edit; revert that, `scen gc`, and back up again"
                        raise DamageFound(f"`{name}` is not what was committed: no backup was made", hint=hint)
                    archive.write(project.folder / name, name)
        with draft.open("rb+") as archived:
            os.fsync(archived.fileno())
        disk.rename(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    return len(sums) + 1, file.stat().st_size


def restore(file: Path, folder: Path) -> Project:
    """Create the project of a backup in a folder that has none. It appears complete and checked, or not at all.

    Raises:
        UsageError: The file is not a backup, or the folder holds a project.
        ScenError: The disk has no room for it.
        DamageFound: The content of the backup is not what its own ledger records.
    """
    refuse_existing(folder)
    if file.exists() and not file.is_file():  # a device or a pipe may have no end
        raise UsageError(f"`{file}` is not a backup: it is no regular file")
    created = not folder.exists()
    disk.make_folder(folder)
    try:
        with locked(folder):
            refuse_existing(folder)
            for path in folder.glob(f"{DRAFT}*"):  # left by a restore that was killed
                disk.remove(path)
            with _room(f"`{folder}` could not be written, and nothing was restored"):
                _restore(file, folder, Path(tempfile.mkdtemp(dir=folder, prefix=DRAFT)))
    except BaseException:
        if created and {path.name for path in folder.iterdir()} <= {LOCK, HOLDER}:
            shutil.rmtree(folder)
        raise
    project = Project(folder)
    with project.writing():
        if project.method is None:
            project.merge()
    return project


def _restore(file: Path, folder: Path, draft: Path) -> None:
    """Unpack an archive into `draft`, check it, and move it into place. The ledger is last: it makes the project."""
    try:
        with _open(file) as archive:
            for entry in _entries(archive, file):
                path = draft / entry.filename
                disk.make_folder(path.parent)
                with archive.open(entry) as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, CHUNK)
                    target.flush()
                    os.fsync(target.fileno())
        _check(draft)
        paths = sorted([*(path for pattern in PATTERNS for path in draft.glob(pattern)), draft / SEAL])
        existing = {path.relative_to(folder) for pattern in PATTERNS for path in folder.glob(pattern)}
        if existing - {path.relative_to(draft) for path in paths}:
            raise UsageError(f"`{folder}` holds files of another project", hint="restore into an empty folder")
        disk.make_folder(folder / "edits")
        for path in paths:
            disk.rename(path, folder / path.relative_to(draft))
        disk.rename(draft / LEDGER, folder / LEDGER)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _room(failed: str) -> Iterator[None]:
    """Raise `ScenError` with the text `failed` if the disk has no room for what this block writes."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        is_full = error.errno in NO_ROOM if isinstance(error, OSError) else "full" in str(error)
        if not is_full:
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise ScenError(f"{failed}: {why}", hint="is the disk full?") from error


def _is_tensor_file(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (EDIT_FILE, GUARD_FILE, STATE_FILE))


@contextmanager
def _open(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UsageError(f"`{file}` is not a backup, or is damaged: {error}") from error
    except OSError as error:
        if error.errno not in NO_ROOM and error.filename in (None, str(file), os.fspath(file)):
            raise UsageError(f"cannot read `{file}`: {error.strerror or error}") from error
        raise


def _entries(archive: zipfile.ZipFile, file: Path) -> list[zipfile.ZipInfo]:
    """The entries of an archive, if they are what `backup` writes."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    for entry in entries:
        kind = entry.external_attr >> 28  # of a Unix mode: 8 is a plain file, 10 a link
        if not (entry.filename == LEDGER or _is_tensor_file(entry.filename)) or kind not in (0, 8):
            raise UsageError(f"`{file}` is not a backup: it holds {entry.filename!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UsageError(f"`{file}` is not a backup: {entry.filename!r} is compressed or encrypted")
    unpacked = sum(entry.file_size for entry in entries)
    if LEDGER not in names or len(set(names)) < len(names) or unpacked > file.stat().st_size:
        raise UsageError(f"`{file}` is not a backup, or is damaged")
    return entries


def _check(folder: Path) -> None:
    """Raise `DamageFound` unless the unpacked project is intact."""
    try:
        project = Project(folder)
    except sqlite3.DatabaseError as error:
        raise DamageFound(f"the backup's ledger cannot be read: {error}") from error
    with closing(project):
        seal(folder, project.ledger)
        problems = [problem for problem in verify(project, deep=True) if problem.kind == "damage"]
    if problems:
        raise DamageFound(f"the backup is damaged: {problems[0].where}: {problems[0].what}", hint="try an older backup")
