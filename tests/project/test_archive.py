"""Backup and restore, and the collection of garbage."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile

import pytest

from scen_cli.errors import DamageFound, UsageError
from scen_cli.project.archive import backup, restore
from scen_cli.project.check import verify
from scen_cli.project.garbage import collect, garbage
from scen_cli.project.project import Project
from tests.project.test_project import SETTINGS, commit


@pytest.fixture
def project(tmp_path):
    made = Project.create(tmp_path / "p", SETTINGS, theta=0.65, author="tester")
    with made.writing():
        for number, prompt in enumerate(("Who?", "Where?", "Who?", "When?"), start=1):
            commit(made, prompt, str(number), number)
        made.revert(4)
    return made


def state(project):
    files = {p.name: p.read_bytes() for p in (project.folder / "edits").iterdir()}
    return project.ledger.edits(), project.ledger.events(), files, project.merged().neurons.tobytes()


def test_a_backup_restores_to_the_same_project(project, tmp_path):
    files, size = backup(project, tmp_path / "b.zip")
    assert (files, size) == (5, (tmp_path / "b.zip").stat().st_size)
    again = restore(tmp_path / "b.zip", tmp_path / "again")
    assert state(again) == state(project)
    assert verify(again, deep=True) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "b.zip", "p"]  # nothing is left about


def test_a_backup_is_made_while_another_writes(project, tmp_path):
    """It is of one moment: what is committed in between is in it whole, or not at all."""
    with project.writing():
        commit(project, "Why?", "5", 5)
        backup(Project(project.folder), tmp_path / "b.zip")
        commit(project, "How?", "6", 6)
    again = restore(tmp_path / "b.zip", tmp_path / "again")
    assert [edit.id for edit in again.ledger.edits()] == [1, 2, 3, 4, 5]
    assert verify(again, deep=True) == []


def test_an_existing_file_or_project_is_never_overwritten(project, tmp_path):
    backup(project, tmp_path / "b.zip")
    with pytest.raises(UsageError, match="exists already"):
        backup(project, tmp_path / "b.zip")
    with pytest.raises(UsageError, match="already holds a project"):
        restore(tmp_path / "b.zip", project.folder)
    (project.folder / "scen.db").unlink()
    with pytest.raises(UsageError, match="holds files of another project"):
        restore(tmp_path / "b.zip", project.folder)
    assert len(list((project.folder / "edits").iterdir())) == 4
    assert not list(project.folder.glob(".restoring*"))


def test_a_damaged_project_makes_no_backup(project, tmp_path):
    file = project.folder / project.find(2).file
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DamageFound, match="no backup was made"):
        backup(project, tmp_path / "b.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def rewritten(source, target, change):
    """A copy of an archive, its entries passed through `change(name, content) -> (name or ZipInfo, content)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            made = change(entry.filename, old.read(entry))
            if made is not None:
                new.writestr(*made)


def link(name, content):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, b"/etc/passwd"


HARMS = {
    "a name that climbs": (lambda n, c: ("../evil", c) if "000001" in n else (n, c), UsageError, "it holds '../evil'"),
    "an absolute name": (lambda n, c: ("/tmp/evil", c) if "000001" in n else (n, c), UsageError, "it holds"),
    "a name with a drive": (lambda n, c: ("C:\\evil", c) if "000001" in n else (n, c), UsageError, "it holds"),
    "a link": (lambda n, c: link(n, c) if "000001" in n else (n, c), UsageError, "it holds"),
    "another file": (lambda n, c: ("run.py", c) if "000001" in n else (n, c), UsageError, "it holds 'run.py'"),
    "no ledger": (lambda n, c: None if n == "scen.db" else (n, c), UsageError, "no backup of scen"),
    "a ledger that is none": (lambda n, c: (n, b"x" * 5000) if n == "scen.db" else (n, c), DamageFound, "ledger"),
    "a file too few": (lambda n, c: None if "000001" in n else (n, c), DamageFound, "is missing"),
    "a file that differs": (lambda n, c: (n, c[:-1] + b"x") if "000001" in n else (n, c), DamageFound, "content of"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_doctored_archive_leaves_nothing_behind(project, tmp_path, harm):
    change, error, said = HARMS[harm]
    backup(project, tmp_path / "b.zip")
    rewritten(tmp_path / "b.zip", tmp_path / "bad.zip", change)
    with pytest.raises(error, match=said):
        restore(tmp_path / "bad.zip", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.zip", "bad.zip", "p"]


def test_a_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scen.db", bytes(50_000_000))
    assert (tmp_path / "bomb.zip").stat().st_size < 100_000
    with pytest.raises(UsageError, match="compressed"):
        restore(tmp_path / "bomb.zip", tmp_path / "again")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(300)])
def test_a_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(UsageError, match="no backup of scen"):
        restore(tmp_path / "b.zip", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_cut_archive(project, tmp_path):
    backup(project, tmp_path / "b.zip")
    whole = (tmp_path / "b.zip").read_bytes()
    for part in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "cut.zip").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises((UsageError, DamageFound)):
            restore(tmp_path / "cut.zip", tmp_path / "again")
    assert not (tmp_path / "again").exists()


class TestGarbage:
    def test_files_of_reverted_edits_and_strays_go_and_nothing_else(self, project):
        (project.folder / "edits" / "000009-abcdef01.safetensors.tmp").write_bytes(b"half")
        reverted, superseded = project.find(4).file, project.find(1).file
        with project.writing():
            found = garbage(project)
            collect(project, found)
        assert [one.name for one in found] == [reverted, "edits/000009-abcdef01.safetensors.tmp"]
        assert not (project.folder / reverted).exists()
        assert (project.folder / superseded).exists()
        assert verify(project, deep=True) == []
        edit = project.find(4)
        assert (edit.state, edit.file, edit.size) == ("reverted", None, None)
        assert edit.sha256  # what it was is known still
        assert garbage(project) == []

    def test_a_superseded_edit_comes_back_after_a_collection(self, project):
        with project.writing():
            collect(project, garbage(project))
            project.revert(3)
        assert project.find(1).state == "active"
        assert project.expert(1).shape
        assert verify(project, deep=True) == []

    def test_what_a_dry_run_names_is_what_goes(self, project, scen):
        at = ("--dir", project.folder)
        before = sorted(path.name for path in (project.folder / "edits").iterdir())
        told = scen("gc", "--dry-run", *at).stdout
        assert project.find(4).file in told
        assert "would go" in told
        assert sorted(path.name for path in (project.folder / "edits").iterdir()) == before
        assert "removed" in scen("gc", *at).stdout
        assert "nothing to remove" in scen("gc", *at).stdout
        assert len(list((project.folder / "edits").iterdir())) == 3


def test_the_commands(project, tmp_path, scen):
    assert "5 files" in scen("backup", tmp_path / "b.zip", "--dir", project.folder).stdout
    told = scen("restore", tmp_path / "b.zip", "--dir", tmp_path / "again").stdout
    assert "4 edits, 2 in force" in told
    scen("backup", tmp_path / "no" / "such" / "folder.zip", "--dir", project.folder, code=2)
    scen("restore", tmp_path / "none.zip", "--dir", tmp_path / "third", code=2)
    shutil.rmtree(tmp_path / "again")
    assert not os.path.lexists(tmp_path / "third")
