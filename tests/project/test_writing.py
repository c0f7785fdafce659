"""Every method that writes to a project fails outside `project.writing()`, and writes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.revert_edits import revert_edits
from scen_cli.project.change_edits import RevertEffects, commit_revert, replace_experts
from scen_cli.project.check import remove_unused_files, repair
from scen_cli.project.edit_files import EditTensors, LowRankArrays
from scen_cli.project.guard import GuardTensors, NewGuard
from scen_cli.project.ledger import now
from scen_cli.project.ledger_rows import Threshold
from scen_cli.project.method_batches import commit_batch, revert_batch
from scen_cli.project.new_edits import TrainedEdit, TrainingStats
from scen_cli.project.project import Project
from tests.conftest import writing
from tests.project.test_project import SETTINGS, D, H, commit

EDIT = TrainedEdit(EditRecord(prompt="Where?", target="Oslo"), SourceLine("a.jsonl", 1), True, 0.9)
TRAINING = TrainingStats(seed=1, seconds=0.1)
VECTOR = np.ones(H, np.float32)
TENSORS = EditTensors(np.ones((D, H), np.float32), VECTOR, VECTOR)
LOW_RANK = LowRankArrays(np.ones((1, H), np.float16), np.ones((D, 1), np.float16))
GUARD = NewGuard(
    [("Why?", "fit", "test")], GuardTensors(VECTOR[None], np.zeros(1, np.int64), VECTOR, VECTOR[None], VECTOR[:1])
)
WRITES = {
    "commit": lambda project: project.commit([EDIT], TRAINING, TENSORS),
    "set_threshold": lambda project: project.set_threshold(Threshold(0.7, "hand", now())),
    "set_guard": lambda project: project.set_guard(GUARD),
    "merge": lambda project: project.merge(),
    "record_evaluation": lambda project: project.record_evaluation("mine", {}, {}, 0, []),
    "commit_revert": lambda project: commit_revert(project, (1,), RevertEffects),
    "revert_edits": lambda project: revert_edits(project, 1),
    "replace_experts": lambda project: replace_experts(project, {1: LOW_RANK}),
    "remove_unused_files": lambda project: remove_unused_files(project, []),
    "repair": lambda project: repair(project),
    "commit_batch": lambda project: commit_batch(project, [EDIT], TRAINING, {"a": VECTOR}),
    "revert_batch": lambda project: revert_batch(project, [1], {"a": VECTOR}),
}


@pytest.fixture
def project(tmp_path):
    made = Project.create(tmp_path / "p", SETTINGS, theta=0.65)
    commit(made, "Who?", "Ada", 1)
    return made


@pytest.mark.parametrize("write", WRITES)
def test_a_write_outside_writing_fails_and_changes_nothing(project, write):
    before = {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError, match="only be changed inside `with project.writing"):
        WRITES[write](project)
    assert {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()} == before
    assert not project.ledger.db.conn.in_transaction


def test_writing_cannot_be_entered_twice(project):
    with project.writing(), pytest.raises(RuntimeError, match="entered already"), project.writing():
        pass
    with project.writing():
        project.set_threshold(Threshold(0.7, "hand", now()))


@pytest.mark.parametrize("write", [name for name in WRITES if name not in ("commit_batch", "revert_batch")])
def test_a_write_inside_writing_succeeds(project, write):
    with project.writing():
        WRITES[write](project)


def test_threads_see_and_end_only_their_own_transactions(project):
    """A change that one thread has not committed is neither seen nor undone by another thread's reading."""
    before = project.ledger.last_change()
    with ThreadPoolExecutor(1) as thread, writing(project), project.ledger.change("calibrate"):
        project.ledger.set_threshold(Threshold(0.7, "hand", now()))
        assert thread.submit(_read, project).result() == (before, 0.65)
    assert _read(project) == (before + 1, 0.7)


def _read(project):
    with project.ledger.reading():
        return project.ledger.last_change(), project.ledger.theta()
