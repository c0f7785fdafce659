"""One flipped bit anywhere in any file of a project: `scen verify --deep` finds it."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from scen_cli.cli.failures import explain
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.project.check import verify
from scen_cli.project.edit_files import EditTensors, LowRankArrays
from scen_cli.project.guard import GuardTensors, NewGuard
from scen_cli.project.project import Project, TrainedEdit, TrainingStats
from tests.conftest import revert, writing
from tests.project.test_project import SETTINGS, D, H, commit

pytestmark = [pytest.mark.faults, pytest.mark.slow]

FLIPS = 2400  # in all
REGIONS = 64  # of each file: there is a flip in each


@pytest.fixture
def project(tmp_path):
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((8, H)).astype(np.float32)
    tensors = GuardTensors(keys, np.arange(8), keys[0], keys[:3], np.ones(3, np.float32))
    parts = ["fit", "calibration", "report", "fit"] * 2
    guard = NewGuard([(f"Why {n}?", part, "test") for n, part in enumerate(parts)], tensors)
    made = Project.create(tmp_path / "p", SETTINGS, theta=0.65, guard=guard, author="tester")
    with made.writing():
        commit(made, "Who?", "Ada", 1)
        commit(made, "Where?", "Oslo", 2)
        expert = LowRankArrays(keys[:2].astype(np.float16), np.ones((D, 2), np.float16))
        trained = TrainedEdit(EditRecord(prompt="When?", target="1815"), SourceLine("a", 1), True, 0.9)
        with writing(made):
            made.commit([trained], TrainingStats(3, 0.1), EditTensors(expert, keys[3], keys[4]), 0.0)
        with writing(made):
            made.record_evaluation("mine", {}, {"figures": {}}, made.ledger.last_change(), [{"prompt": "x"}])
        revert(made, 2)
    made.close()
    return tmp_path / "p"


def problems_of(folder):
    """What `scen verify --deep` finds, or why the project does not open."""
    project = None
    try:
        project = Project(folder)
        return [f"{problem.where}: {problem.what}" for problem in verify(project, deep=True)]
    except Exception as error:
        if explain(error) is None:  # it would end in a traceback
            raise
        return [str(error)]
    finally:
        if project is not None:
            project.close()


def test_verify_finds_every_flip(project, capsys):
    assert problems_of(project) == []
    files = sorted(path for path in project.rglob("*") if path.is_file() and not path.name.startswith("scen.lock"))
    kinds = {path.name.split("-")[0].split(".")[0] for path in files}
    assert {"scen", "guard", "merged", "000001", "000003"} <= kinds
    rng, flips, missed = random.Random(0), 0, []
    for path in files:
        whole = path.read_bytes()
        for position in positions(len(whole), FLIPS // len(files) + 1, rng):
            broken = bytearray(whole)
            broken[position] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            flips += 1
            if not problems_of(project):
                missed.append((path.name, position))
            path.write_bytes(whole)
    assert missed == []
    assert flips >= 2000
    assert problems_of(project) == []
    with capsys.disabled():
        print(f"\n{flips} flips in {len(files)} files: all found", end="")


def positions(size, count, rng):
    """Positions in a file: its ends, and the same number in every region."""
    ends = [region * size // REGIONS for region in range(REGIONS + 1)]
    regions = [range(start, end) for start, end in pairwise(ends) if end > start]
    each = -(-count // len(regions))
    return sorted(
        {0, size - 1} | {position for region in regions for position in rng.sample(region, min(each, len(region)))}
    )


def test_a_flip_in_merged_neurons_never_reaches_routing(project):
    """Whatever is flipped in the cache, W_merge is that of the edit files."""
    opened = Project(project)
    neurons = opened.w_merge().neurons.copy()
    path = project / "merged.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(broken)
        assert np.array_equal(opened.w_merge().neurons, neurons)
    path.write_bytes(whole)
