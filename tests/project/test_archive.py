"""Backup, restore, and the removal of unused files."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import pytest

from scen_cli.errors import DamageFound, UsageError
from scen_cli.project.archive import backup, restore
from scen_cli.project.check import find_unused_files, remove_unused_files, repair, verify
from scen_cli.project.project import Project
from tests.conftest import revert
from tests.faults.injector import DONE, KILL, Injector, in_child, steps_of
from tests.project.test_project import SETTINGS, commit


@pytest.fixture
def project(tmp_path):
    """Four edits: edit 3 supersedes edit 1, edit 4 is reverted."""
    made = Project.create(tmp_path / "p", SETTINGS, theta=0.65, author="tester")
    with made.writing():
        for number, prompt in enumerate(("Who?", "Where?", "Who?", "When?"), start=1):
            commit(made, prompt, str(number), number)
        revert(made, 4)
    return made


def state(project):
    files = {p.name: p.read_bytes() for p in (project.folder / "edits").iterdir()}
    return project.ledger.edits(), project.ledger.events(), files, project.w_merge().neurons.tobytes()


def test_restore_gives_the_same_project(project, tmp_path):
    files, size = backup(project, tmp_path / "b.zip")
    assert (files, size) == (5, (tmp_path / "b.zip").stat().st_size)
    again = restore(tmp_path / "b.zip", tmp_path / "again")
    assert state(again) == state(project)
    assert verify(again, deep=True) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "b.zip", "p"]  # no temporary file is left


def test_backup_during_writes_holds_one_state(project, tmp_path):
    """An edit that is committed at the same time is in the backup completely, or not at all."""
    with project.writing():
        commit(project, "Why?", "5", 5)
        backup(Project(project.folder), tmp_path / "b.zip")
        commit(project, "How?", "6", 6)
    again = restore(tmp_path / "b.zip", tmp_path / "again")
    assert [edit.id for edit in again.ledger.edits()] == [1, 2, 3, 4, 5]
    assert verify(again, deep=True) == []


def test_backup_and_restore_overwrite_nothing(project, tmp_path):
    backup(project, tmp_path / "b.zip")
    with pytest.raises(UsageError, match="exists already"):
        backup(project, tmp_path / "b.zip")
    with pytest.raises(UsageError, match="already holds a project"):
        restore(tmp_path / "b.zip", project.folder)
    commit(project, "Why?", "5", 5)
    (project.folder / "scen.db").unlink()
    with pytest.raises(UsageError, match="holds files of another project"):
        restore(tmp_path / "b.zip", project.folder)
    assert len(list((project.folder / "edits").iterdir())) == 5
    assert not list(project.folder.glob(".restoring*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KILL, "ENOSPC"])
def test_restore_can_be_repeated_after_a_stop_at_any_step(project, tmp_path, kind):
    backup(project, tmp_path / "b.zip")
    whole = state(project)
    steps = steps_of(partial(restore, tmp_path / "b.zip", tmp_path / "counted"), tmp_path / "steps")
    assert len(steps) > 20
    for nth in range(1, len(steps) + 1):
        folder = tmp_path / f"again{nth}"
        act = partial(restore, tmp_path / "b.zip", folder)
        in_child(act, Injector(nth, kind))
        if not (folder / "scen.db").exists():
            act()
        again = Project(folder)
        with again.writing():
            again.merge()
            repair(again)
        assert state(again) == whole
        assert verify(again) == []
        assert not list(folder.glob(".restoring*"))


def test_one_of_several_concurrent_restores_creates_the_project(project, tmp_path):
    backup(project, tmp_path / "b.zip")
    children = []
    for _ in range(5):
        if (child := os.fork()) == 0:
            os._exit(in_child(partial(restore, tmp_path / "b.zip", tmp_path / "again")))
        children.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes[0] == DONE
    assert set(codes[1:]) <= {2, 11}
    assert state(Project(tmp_path / "again")) == state(project)


def test_backup_refuses_a_damaged_project(project, tmp_path):
    file = project.folder / project.find(2).file
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DamageFound, match="no backup was made"):
        backup(project, tmp_path / "b.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def rewrite_archive(source, target, change):
    """Copy an archive; each entry passes through `change(name, content) -> (name or ZipInfo, content)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            changed = change(entry.filename, old.read(entry))
            if changed is not None:
                new.writestr(*changed)


def link(name, content):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, b"/etc/passwd"


TAMPERED = {
    "a name with ..": (lambda n, c: ("../evil", c) if "000001" in n else (n, c), UsageError, "it holds '../evil'"),
    "an absolute name": (lambda n, c: ("/tmp/evil", c) if "000001" in n else (n, c), UsageError, "it holds"),
    "a name with a drive": (lambda n, c: ("C:\\evil", c) if "000001" in n else (n, c), UsageError, "it holds"),
    "a link": (lambda n, c: link(n, c) if "000001" in n else (n, c), UsageError, "it holds"),
    "another file": (lambda n, c: ("run.py", c) if "000001" in n else (n, c), UsageError, "it holds 'run.py'"),
    "no ledger": (lambda n, c: None if n == "scen.db" else (n, c), UsageError, "not a backup"),
    "not a ledger": (lambda n, c: (n, b"x" * 5000) if n == "scen.db" else (n, c), DamageFound, "ledger"),
    "a missing file": (lambda n, c: None if "000001" in n else (n, c), DamageFound, "is missing"),
    "a changed file": (lambda n, c: (n, c[:-1] + b"x") if "000001" in n else (n, c), DamageFound, "content of"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_restore_of_a_tampered_archive_leaves_nothing(project, tmp_path, case):
    change, error, message = TAMPERED[case]
    backup(project, tmp_path / "b.zip")
    rewrite_archive(tmp_path / "b.zip", tmp_path / "bad.zip", change)
    with pytest.raises(error, match=message):
        restore(tmp_path / "bad.zip", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.zip", "bad.zip", "p"]


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scen.db", bytes(50_000_000))
    assert (tmp_path / "bomb.zip").stat().st_size < 100_000
    with pytest.raises(UsageError, match="compressed"):
        restore(tmp_path / "bomb.zip", tmp_path / "again")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(300)])
def test_restore_refuses_a_file_that_is_not_an_archive(tmp_path, content):
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(UsageError, match="not a backup"):
        restore(tmp_path / "b.zip", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("year", [1970, 2150])
def test_files_of_any_time_are_backed_up(project, tmp_path, year):
    seconds = datetime(year, 1, 2, tzinfo=timezone.utc).timestamp()
    for path in (project.folder / "edits").iterdir():
        os.utime(path, (seconds, seconds))
    backup(project, tmp_path / "b.zip")
    assert verify(restore(tmp_path / "b.zip", tmp_path / "again"), deep=True) == []


def test_restore_reads_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(UsageError, match="no regular file"):
            restore(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_restore_refuses_a_truncated_archive(project, tmp_path):
    backup(project, tmp_path / "b.zip")
    whole = (tmp_path / "b.zip").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "cut.zip").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises((UsageError, DamageFound)):
            restore(tmp_path / "cut.zip", tmp_path / "again")
    assert not (tmp_path / "again").exists()


class TestNeededFilesStay:
    """No file that an edit needs is removed, and none of the user's, whatever the ledger says."""

    def files(self, project):
        return sorted(path.name for path in (project.folder / "edits").iterdir())

    def test_an_older_copy_of_the_ledger_removes_nothing(self, project):
        old = (project.folder / "scen.db").read_bytes()
        with project.writing():
            commit(project, "Why?", "5", 5)
        new, before = (project.folder / "scen.db").read_bytes(), self.files(project)
        project.close()
        (project.folder / "scen.db").write_bytes(old)
        rolled = Project(project.folder)
        assert any("not the ledger that was sealed" in problem.what for problem in verify(rolled))
        with pytest.raises(DamageFound, match="no file is removed because the ledger is damaged"):
            find_unused_files(rolled)
        with rolled.writing(even_if_older=True):
            repair(rolled, deep=True)
        assert self.files(rolled) == before
        rolled.close()
        (project.folder / "scen.db").write_bytes(new)
        assert verify(Project(project.folder)) == []

    def test_a_changed_row_removes_nothing(self, project):
        project.ledger.db["edits"].update(2, {"state": "reverted"})
        before = self.files(project)
        with pytest.raises(DamageFound, match="edit 2 is not as it was committed: state"):
            find_unused_files(project)
        assert self.files(project) == before

    def test_files_of_the_user_stay(self, project):
        mine = ["guard-mine.jsonl", "notes.tmp", "edits/000003.bak", "facts.zip.123.tmp", "merged.safetensors.old"]
        for name in mine:
            (project.folder / name).write_text("mine")
        assert verify(project, deep=True) == []
        with project.writing():
            remove_unused_files(project, find_unused_files(project))
            repair(project, deep=True)
        assert all((project.folder / name).exists() for name in mine)

    def test_a_renamed_edit_file_stays(self, project):
        file = project.folder / project.find(2).file
        moved = file.with_name("000009-" + file.name.split("-")[1])
        file.rename(moved)
        kinds = {problem.kind for problem in verify(project)}
        assert kinds == {"damage", "stray"}
        with project.writing():
            assert repair(project) == []
        moved.rename(file)
        assert verify(project) == []

    def test_a_linked_edits_folder_is_damage_and_its_files_stay(self, project, tmp_path):
        (project.folder / "edits").rename(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "000099-0123abcd.safetensors").write_text("a thesis")
        (project.folder / "edits").symlink_to(tmp_path / "elsewhere")
        assert any("is a link" in problem.what for problem in verify(project))
        with project.writing():
            repair(project)
            remove_unused_files(project, [file for file in find_unused_files(project) if not file.edits])
            with pytest.raises(DamageFound, match="`edits` is a link"):
                commit(project, "Why?", "5", 5)
        assert len(list((tmp_path / "elsewhere").iterdir())) == 5

    def test_a_journal_that_names_another_file_is_refused(self, project, tmp_path):
        """SQLite would remove the file that a super-journal names."""
        project.close()
        (tmp_path / "diary.txt").write_text("mine")
        name = str(tmp_path / "diary.txt").encode()
        record = bytes(4) + name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big")
        (project.folder / "scen.db-journal").write_bytes(bytes(512) + record + bytes.fromhex("d9d505f920a163d7"))
        with pytest.raises(DamageFound, match="names another file"):
            Project(project.folder)
        assert (tmp_path / "diary.txt").read_text() == "mine"

    @pytest.mark.parametrize("name", ["scen.db-journal", "scen.db-wal"])
    def test_a_pipe_beside_the_ledger_is_refused_without_waiting(self, project, name):
        project.close()
        os.mkfifo(project.folder / name)
        with pytest.raises(DamageFound, match="is not a file"):
            Project(project.folder)

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
    def test_a_pipe_or_folder_instead_of_the_seal_stops_no_change(self, project, make):
        (project.folder / "scen.db.sha256").unlink()
        make(project.folder / "scen.db.sha256")
        assert [problem.kind for problem in verify(project, deep=True)] == ["seal"]
        with project.writing():
            revert(project, 3)
        assert project.find(3).state == "reverted"


class TestUnusedFiles:
    def test_files_of_reverted_edits_and_stray_files_are_removed_and_no_others(self, project):
        (project.folder / "edits" / "000009-abcdef01.safetensors.tmp").write_bytes(b"half")
        reverted, superseded = project.find(4).file, project.find(1).file
        with project.writing():
            unused = find_unused_files(project)
            remove_unused_files(project, unused)
        assert [file.name for file in unused] == [reverted, "edits/000009-abcdef01.safetensors.tmp"]
        assert not (project.folder / reverted).exists()
        assert (project.folder / superseded).exists()
        assert verify(project, deep=True) == []
        edit = project.find(4)
        assert (edit.state, edit.file, edit.size) == ("reverted", None, None)
        assert edit.sha256  # of the removed file
        assert find_unused_files(project) == []

    def test_a_superseded_edit_can_become_active_after_the_removal(self, project):
        with project.writing():
            remove_unused_files(project, find_unused_files(project))
            revert(project, 3)
        assert project.find(1).state == "active"
        assert project.expert(1).shape
        assert verify(project, deep=True) == []

    def test_a_dry_run_names_the_files_that_are_removed(self, project, scen):
        at = ("--dir", project.folder)
        before = sorted(path.name for path in (project.folder / "edits").iterdir())
        output = scen("gc", "--dry-run", *at).stdout
        assert project.find(4).file in output
        assert "would be removed" in output
        assert sorted(path.name for path in (project.folder / "edits").iterdir()) == before
        assert "removed" in scen("gc", *at).stdout
        assert "nothing to remove" in scen("gc", *at).stdout
        assert len(list((project.folder / "edits").iterdir())) == 3


def test_backup_and_restore_commands(project, tmp_path, scen):
    assert "5 files" in scen("backup", tmp_path / "b.zip", "--dir", project.folder).stdout
    output = scen("restore", tmp_path / "b.zip", "--dir", tmp_path / "again").stdout
    assert "4 edits, 2 active" in output
    scen("backup", tmp_path / "no" / "such" / "folder.zip", "--dir", project.folder, code=2)
    scen("restore", tmp_path / "none.zip", "--dir", tmp_path / "third", code=2)
    shutil.rmtree(tmp_path / "again")
    assert not os.path.lexists(tmp_path / "third")
