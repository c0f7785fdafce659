"""Random sequences of edits, reverts, calibrations, file removals, crashes and reopenings, compared with a dict."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.editing.revert_edits import revert_edits
from scen_cli.project.check import find_unused_files, remove_unused_files, repair, verify
from scen_cli.project.edit_files import EditTensors
from scen_cli.project.ledger import now
from scen_cli.project.ledger_rows import Threshold
from scen_cli.project.project import Project, TrainedEdit, TrainingStats
from tests.faults.injector import KILL, Injector, in_child
from tests.project.test_project import SETTINGS, D, H

PROMPTS = st.sampled_from(["Who?", "Where?", "When?", "Why?", "How?"])
TARGETS = st.sampled_from(["Ada", "Oslo", "1815"])
THETAS = st.sampled_from([0.5, 0.6, 0.7, 0.8])


def tensors_of(number: int) -> EditTensors:
    rng = np.random.default_rng(number)
    shapes = {"expert": (D, H), "neuron": (H,), "key": (H,)}
    return EditTensors(**{name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()})


class ProjectMachine(RuleBasedStateMachine):
    """A project and the dict that it must equal.

    Attributes:
        edits: By id: prompt, target, state and `superseded_by`.
        changes: (kind, edit, theta) of every event that may set theta.
    """

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "p"
        self.project = Project.create(self.folder, SETTINGS, theta=0.65, author="machine")
        self.edits: dict[int, list] = {}
        self.changes: list[tuple[str, int | None, float | None]] = [("init", None, 0.65)]

    def teardown(self) -> None:
        self.project.close()
        shutil.rmtree(self.folder.parent)

    # Each change of the project has a counterpart that changes the dict.

    def edit(self, prompt: str, target: str, theta: float | None) -> None:
        number = len(self.project.ledger.edits()) + 1
        record = EditRecord(prompt=prompt, target=target)
        threshold = Threshold(theta, "calibration", now(), 0.01) if theta else None
        trained = TrainedEdit(record, SourceLine("machine", number), True, 0.9)
        with self.project.writing():
            self.project.commit([trained], TrainingStats(number, 0.1), tensors_of(number), 0.0, threshold)
            self.project.merge()

    def expect_edit(self, prompt: str, target: str, theta: float | None) -> None:
        number = len(self.edits) + 1
        for edit in self.edits.values():
            if edit[0] == prompt and edit[2] == "active":
                edit[2:] = ["superseded", number]
        self.edits[number] = [prompt, target, "active", None]
        self.changes.append(("edit", number, theta))

    def revert(self, number: int) -> None:
        with self.project.writing():
            revert_edits(self.project, number)

    def expect_revert(self, number: int) -> None:
        before = self.theta()
        self.edits[number][2] = "reverted"
        for edit in self.edits.values():
            if edit[3] == number:
                edit[2:] = ["active", None]
        if self.changes[-1][:2] == ("edit", number):
            after = [theta for _kind, _edit, theta in self.changes[:-1] if theta][-1]
        elif not any(edit[2] == "active" for edit in self.edits.values()):
            after = [theta for kind, _edit, theta in self.changes if theta and kind in ("init", "calibrate")][-1]
        else:
            after = before  # without a guard it cannot be calibrated
        self.changes.append(("revert", number, after if after != before else None))

    def calibrate(self, theta: float) -> None:
        with self.project.writing():
            self.project.set_threshold(Threshold(theta, "hand", now()))

    # Rules.

    @rule(prompt=PROMPTS, answer=TARGETS, theta=st.none() | THETAS)
    def an_edit(self, prompt, answer, theta):
        self.edit(prompt, answer, theta)
        self.expect_edit(prompt, answer, theta)

    @precondition(lambda self: self.active())
    @rule(data=st.data())
    def a_revert(self, data):
        number = data.draw(st.sampled_from(self.active()))
        self.revert(number)
        self.expect_revert(number)

    @rule(theta=THETAS)
    def a_calibration(self, theta):
        self.calibrate(theta)
        self.changes.append(("calibrate", None, theta))

    @rule()
    def a_removal_of_unused_files(self):
        with self.project.writing():
            remove_unused_files(self.project, find_unused_files(self.project))
        files = {path.name for path in (self.folder / "edits").iterdir()}
        assert len(files) == sum(edit[2] != "reverted" for edit in self.edits.values())

    @rule(deep=st.booleans())
    def a_check(self, deep):
        assert verify(self.project, deep) == []

    @rule()
    def a_reopening(self):
        self.project.close()
        self.project = Project(self.folder, author="machine")

    @rule(prompt=PROMPTS, answer=TARGETS, nth=st.integers(1, 40), theta=st.none() | THETAS)
    def a_crash_in_an_edit(self, prompt, answer, nth, theta):
        self.project.close()

        def act():
            self.project = Project(self.folder, author="machine")
            self.edit(prompt, answer, theta)

        in_child(act, Injector(nth, KILL))
        self.after_a_crash(lambda: self.expect_edit(prompt, answer, theta))

    @precondition(lambda self: self.active())
    @rule(data=st.data(), nth=st.integers(1, 25))
    def a_crash_in_a_revert(self, data, nth):
        number = data.draw(st.sampled_from(self.active()))
        self.project.close()

        def act():
            self.project = Project(self.folder, author="machine")
            self.revert(number)

        in_child(act, Injector(nth, KILL))
        self.after_a_crash(lambda: self.expect_revert(number))

    def after_a_crash(self, expect) -> None:
        """The change was made or not: the event log tells. If it was, `expect` changes the dict."""
        self.project = Project(self.folder, author="machine")
        assert all(problem.kind != "damage" for problem in verify(self.project, deep=True))
        if len(self.project.ledger.changes()) > len(self.changes):
            expect()
        with self.project.writing():
            repair(self.project, deep=True)
        assert verify(self.project, deep=True) == []

    # What must be true after every step.

    def active(self) -> list[int]:
        return [number for number, edit in self.edits.items() if edit[2] == "active"]

    def theta(self) -> float:
        return [theta for _kind, _edit, theta in self.changes if theta][-1]

    @invariant()
    def the_project_equals_the_dict(self):
        type(self).steps += 1
        rows = {
            edit.id: [edit.prompt, edit.target, edit.state, edit.superseded_by] for edit in self.project.ledger.edits()
        }
        assert rows == self.edits
        assert self.project.ledger.theta() == self.theta()
        merged = self.project.w_merge()
        assert merged.experts == self.active()
        for row, number in enumerate(merged.experts):
            assert np.array_equal(merged.neurons[row], tensors_of(number).neuron)
        for number in self.active()[-2:]:
            assert np.array_equal(self.project.expert(number), tensors_of(number).expert)


@pytest.mark.slow
def test_five_hundred_random_steps(capsys):
    ProjectMachine.steps = 0
    profile = settings(
        max_examples=25,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(ProjectMachine, settings=profile)
    with capsys.disabled():
        print(f"\nprojects against a dict: {ProjectMachine.steps} steps", end="")
    assert ProjectMachine.steps >= 500
