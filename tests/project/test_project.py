"""The project folder without a model: commit, supersede, revert, merge, verify, locks."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sqlite3

import numpy as np
import pytest

from scen_cli.cli.failures import explain
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.errors import DamageFound, NoProject, ProjectLocked, UsageError
from scen_cli.project.check import repair, verify
from scen_cli.project.edit_files import EditTensors, write_edit
from scen_cli.project.ledger_queries import FORMAT
from scen_cli.project.project import Project, TrainedEdit, TrainingStats
from scen_cli.project.tensor_files import read_tensors
from tests.conftest import revert, writing

H, D = 12, 5
SETTINGS = {"format": FORMAT, "model": "x", "ffn_width": H, "layer": 1, "recipe": {"theta": 0.65}}


@pytest.fixture
def project(tmp_path):
    return Project.create(tmp_path / "p", SETTINGS, theta=0.65)


def commit(project, prompt, target="t", number=None, width=H):
    """Commit an edit with random tensors; `number` is their seed. Returns (edit, tensors)."""
    rng = np.random.default_rng(len(prompt) if number is None else number)
    shapes = {"expert": (D, width), "neuron": (width,), "key": (width,)}
    tensors = EditTensors(**{name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()})
    training = TrainingStats(seed=1, seconds=0.5, expert_losses=[2.0, 1.0])
    record = EditRecord(prompt=prompt, target=target, rephrases=("r",))
    trained = TrainedEdit(record, SourceLine("a.jsonl", 3), True, 0.9)
    with writing(project):
        return project.commit([trained], training, tensors)[0], tensors


def test_open_refuses_a_folder_without_a_project(tmp_path):
    with pytest.raises(NoProject, match="no scen project"):
        Project(tmp_path)


def test_create_refuses_a_folder_with_a_project(project):
    with pytest.raises(UsageError, match="already holds a project"):
        Project.create(project.folder, {}, theta=0.5)


def test_a_committed_edit_reads_back_exactly(project):
    edit, tensors = commit(project, "Who?", "Ada")
    again = Project(project.folder)
    assert again.find(edit.id) == edit
    assert (edit.prompt, edit.target, edit.state, edit.rephrases) == ("Who?", "Ada", "active", ("r",))
    assert (edit.source, edit.source_line, edit.expert_losses) == ("a.jsonl", 3, (2.0, 1.0))
    assert np.array_equal(again.expert(edit.id), tensors.expert)
    assert np.array_equal(again.files.keys(edit)[0], tensors.key)
    content = (project.folder / edit.file).read_bytes()
    assert edit.file == f"edits/000001-{hashlib.sha256(content).hexdigest()[:8]}.safetensors"
    assert (edit.sha256, edit.size) == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_transposed_expert_is_stored_in_its_logical_order(tmp_path):
    expert = np.arange(D * H, dtype=np.float32).reshape(H, D).T
    (tmp_path / "edits").mkdir()
    stored = write_edit(tmp_path, 1, EditTensors(expert, np.zeros(H, np.float32), np.zeros(H, np.float32)), {})
    assert np.array_equal(read_tensors(tmp_path, stored.file, ("expert",))[0], expert)


def test_merge_stacks_neurons_in_edit_order_with_the_same_bytes_each_time(project):
    tensors = [commit(project, f"Who {n}?", number=n)[1] for n in range(4)]
    with writing(project):
        digests = {project.merge().sha256 for _ in range(5)}
    assert len(digests) == 1
    merged = project.w_merge()
    assert merged.experts == [1, 2, 3, 4]
    assert np.array_equal(merged.neurons, np.stack([t.neuron for t in tensors]))


def test_an_outdated_merged_file_is_not_used(project):
    commit(project, "Who?")
    with writing(project):
        project.merge()
    commit(project, "Where?")
    assert project.w_merge().experts == [1, 2]
    (project.folder / "merged.safetensors").unlink()
    assert project.w_merge().experts == [1, 2]


def test_merge_without_edits_is_empty(project):
    with writing(project):
        project.merge()
    assert project.w_merge().neurons.shape == (0, H)


def test_an_edit_supersedes_the_active_edit_of_its_prompt(project):
    first, _ = commit(project, "Who?", "Ada", 1)
    commit(project, "Where?", "Oslo", 2)
    second, _ = commit(project, "Who?", "Eva", 3)
    older = project.find(first.id)
    assert (older.state, older.superseded_by) == ("superseded", second.id)
    assert project.ledger.edits_superseded_by(second.id) == [first.id]
    assert project.w_merge().experts == [2, 3]


def test_revert_keeps_record_and_file(project):
    edits = [commit(project, f"Who {n}?", number=n)[0] for n in range(3)]
    before = (project.folder / edits[1].file).read_bytes()
    assert revert(project, 2)[0].state == "reverted"
    assert project.w_merge().experts == [1, 3]
    assert (project.folder / edits[1].file).read_bytes() == before
    assert project.find(2).prompt == "Who 1?"
    with pytest.raises(UsageError, match="edit 2 is not active: it is reverted"):
        revert(project, 2)
    with pytest.raises(UsageError, match="there is no edit 9"):
        revert(project, 9)


def test_revert_works_while_the_file_of_another_edit_is_missing(project):
    edits = [commit(project, f"Who {n}?", number=n)[0] for n in range(2)]
    (project.folder / edits[1].file).unlink()
    assert revert(project, 1)[0].state == "reverted"


def test_a_failed_edit_supersedes_nothing(project):
    commit(project, "Who?", "Ada")
    reason = "2 of 3 target tokens are still wrong"
    trained = TrainedEdit(EditRecord(prompt="Who?", target="Eva"), SourceLine("b", 1), False, reason=reason)
    with writing(project):
        [failed] = project.commit([trained], TrainingStats(seed=1, seconds=0.1), None)
    assert (failed.state, failed.file, failed.reason) == ("failed", None, reason)
    assert project.find(1).state == "active"
    assert project.w_merge().experts == [1]
    assert verify(project) == []


class TestVerify:
    def test_an_intact_project_has_no_problems(self, project):
        commit(project, "Who?")
        with writing(project):
            project.merge()
        assert verify(project) == []

    @pytest.mark.parametrize("damage", ["byte", "truncated", "missing"])
    def test_a_damaged_file_is_named_with_its_edit(self, project, damage):
        edit, _ = commit(project, "Who?")
        path = project.folder / edit.file
        content = bytearray(path.read_bytes())
        if damage == "byte":
            content[-1] ^= 1
            path.write_bytes(content)
        elif damage == "truncated":
            path.write_bytes(content[:-7])
        else:
            path.unlink()
        problems = verify(project, deep=True)
        assert [problem.where for problem in problems if problem.kind == "damage"] == [edit.file]
        assert "edit 1" in problems[0].what
        assert [problem.where for problem in verify(project)] == [edit.file]  # also without `deep`
        with writing(project):
            assert repair(project) == []  # nothing can be repaired here

    def test_repair_removes_a_stray_file_and_rebuilds_a_damaged_merge(self, project):
        commit(project, "Who?")
        with writing(project):
            project.merge()
        stray = project.folder / "edits" / "000002-abcdef01.safetensors.tmp"
        stray.write_bytes(b"half")
        merged = project.folder / "merged.safetensors"
        content = bytearray(merged.read_bytes())
        content[-1] ^= 64
        merged.write_bytes(content)
        assert len(verify(project)) == 2
        with writing(project):
            assert len(repair(project)) == 2
        assert verify(project) == []
        assert not stray.exists()

    def test_a_changed_event_breaks_the_chain(self, project):
        commit(project, "Who?")
        commit(project, "Where?")
        with sqlite3.connect(project.folder / "scen.db") as db:
            db.execute("update events set detail = '{}' where id = 2")
        assert [problem.what for problem in verify(project)] == [
            "event 2 does not follow from the one before it",
        ]

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ("update edits set target = 'Mars' where id = 1", "edit 1 is not as it was committed: target"),
            ("update thresholds set theta = 0.01", "theta is 0.01; it was set to 0.65"),
            ("update edits set file = null where id = 1", "edit 1 is active but has no file"),
        ],
    )
    def test_a_changed_row_contradicts_the_log(self, project, change, problem):
        commit(project, "Who?")
        with sqlite3.connect(project.folder / "scen.db") as db:
            db.execute(change)
        assert problem in [found.what for found in verify(project)]


def test_open_refuses_a_ledger_that_is_not_a_database(project):
    project.close()
    (project.folder / "scen.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(DamageFound, match="not a readable ledger"):
        Project(project.folder)


def test_an_intact_file_of_another_edit_is_refused(project):
    first, _ = commit(project, "Who?", number=1)
    second, _ = commit(project, "Where?", number=2)
    (project.folder / first.file).write_bytes((project.folder / second.file).read_bytes())
    with pytest.raises(DamageFound, match="not what was committed as edit 1"):
        project.expert(1)


def test_repair_rebuilds_an_unreadable_merged_file(project):
    commit(project, "Who?")
    (project.folder / "merged.safetensors").write_bytes(b"junk")
    assert project.w_merge().experts == [1]
    assert [problem.kind for problem in verify(project)] == ["cache"]
    with writing(project):
        assert repair(project) == ["rebuilt `merged.safetensors`"]
    assert verify(project) == []


def test_open_refuses_an_empty_ledger_and_a_newer_format(tmp_path):
    (tmp_path / "scen.db").touch()
    with pytest.raises(DamageFound, match="holds no project"):
        Project(tmp_path)
    Project.create(tmp_path / "new", {**SETTINGS, "format": FORMAT}, theta=0.5).close()
    with sqlite3.connect(tmp_path / "new" / "scen.db") as db:
        db.execute("update settings set value = '2' where name = 'format'")
    with pytest.raises(UsageError, match="format 2; this version of scen reads format 1"):
        Project(tmp_path / "new")


def test_a_locked_ledger_is_not_reported_as_damaged(project, monkeypatch):
    other = sqlite3.connect(project.folder / "scen.db")
    other.execute("begin exclusive")
    monkeypatch.setattr("scen_cli.project.ledger.BUSY_SECONDS", 0.1)
    with pytest.raises(sqlite3.OperationalError, match="locked") as error:
        Project(project.folder)
    other.close()
    assert explain(error.value)[2] == 11


def _create(folder, outcomes):
    try:
        Project.create(folder, SETTINGS, theta=0.65)
        outcomes.put("made")
    except UsageError:
        outcomes.put("refused")


def test_one_of_several_concurrent_inits_creates_the_project(tmp_path):
    context = multiprocessing.get_context("fork")
    outcomes = context.Queue()
    processes = [context.Process(target=_create, args=(tmp_path / "p", outcomes)) for _ in range(6)]
    for process in processes:
        process.start()
    results = sorted(outcomes.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    assert results == ["made"] + ["refused"] * 5
    assert verify(Project(tmp_path / "p")) == []


def test_a_file_name_that_leads_out_of_the_folder_is_refused(project):
    commit(project, "Who?")
    project.ledger.db["edits"].update(1, {"file": "../../etc/passwd"})
    with pytest.raises(DamageFound, match="no file in `edits/`"):
        project.expert(1)


def _hold(folder, held, release):
    with Project(folder).writing():
        held.set()
        release.wait(30)


def test_a_second_writer_learns_which_process_holds_the_lock(project):
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(project.folder, held, release))
    holder.start()
    assert held.wait(30)
    with pytest.raises(ProjectLocked, match=f"process {holder.pid} is writing"), project.writing():
        pass
    release.set()
    holder.join()
    with project.writing():
        pass


def test_a_changed_neuron_is_damage_of_its_edit(project):
    """`verify` reads neurons even without `deep`: the cache is not reported as outdated instead."""
    edit, tensors = commit(project, "Who?", number=1)
    with writing(project):
        project.merge()
    path = project.folder / edit.file
    content = path.read_bytes()
    path.write_bytes(content.replace(tensors.neuron.tobytes(), tensors.neuron.tobytes()[::-1]))
    [problem] = verify(project)
    assert (problem.where, problem.edit, problem.kind) == (edit.file, 1, "damage")
    with writing(project):
        assert repair(project) == []


def test_all_files_have_the_rights_that_the_users_mask_leaves(tmp_path):
    mask = os.umask(0o002)
    try:
        project = Project.create(tmp_path / "shared", SETTINGS, 0.8)
        with project.writing():
            commit(project, "Who?")
    finally:
        os.umask(mask)
    files = [path for path in project.folder.rglob("*") if path.is_file() and "lock" not in path.name]
    assert len(files) >= 4
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o664"}


def test_rows_of_edits_that_stay_are_taken_from_the_cache(project):
    """`writing` reads no file of an edit that was there before; `merge` reads all, and finds the damage."""
    first = commit(project, "Who?", number=1)[0]
    with writing(project):
        project.merge()
    (project.folder / first.file).write_bytes(b"junk")
    with project.writing():
        commit(project, "Where?", number=2)
    assert project.w_merge().damaged == {}
    assert project.w_merge().experts == [1, 2]
    with writing(project), pytest.raises(DamageFound, match="000001"):
        project.merge()


def test_a_cached_row_of_another_edit_with_the_same_id_is_not_used(project):
    first, other = commit(project, "Who?", number=1)[1], commit(project, "Where?", number=2)[1]
    with writing(project):
        project.merge()
        project.ledger.db.execute("update edits set file = (select file from edits where id = 1) where id = 2")
        project.ledger.db.execute(
            "update edits set index_sha256 = (select index_sha256 from edits where id = 1) where id = 2"
        )
    neurons = project.w_merge().neurons
    assert np.array_equal(neurons, np.stack([first.neuron, first.neuron]))
    assert not np.array_equal(first.neuron, other.neuron)
