"""Fine-tuning: what it teaches, and that a stopped run ends where an unbroken one does."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from scen_cli.data.questions import as_question, split
from scen_cli.data.records import EditRecord, Question
from scen_cli.errors import ScenError, UsageError
from scen_cli.model.base import load_base
from scen_cli.studies import sft
from scen_cli.studies.sft import Tuning, fine_tune
from tests.model.tiny import DENSE, save_tiny

FORM = "[INST]{prompt}[/INST]"
QUESTIONS = [
    EditRecord(prompt=f"Where is {name}?", target=place) for name, place in zip("ABCDEFGH", "wxyzwxyz", strict=True)
]
TUNING = Tuning(epochs=4, batch=3, lr=3e-3)


@pytest.fixture
def tiny(tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    return lambda: load_base(str(folder), device="cpu")


def weights(folder):
    return load_base(str(folder), device="cpu").model.state_dict()


def run(base, folder, tuning=TUNING, note=lambda _line: None):
    steps = []
    fine_tune(base, FORM, QUESTIONS, QUESTIONS[:2], folder, tuning, lambda _line, pace: steps.append(pace), note)
    return steps


def test_it_learns_its_questions_and_is_a_base_like_any_other(tiny, tmp_path):
    assert len(run(tiny(), tmp_path / "out", Tuning(epochs=40, batch=4, lr=5e-3))) == 80
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert len(record["losses"]) == 40
    assert record["losses"][-1] < 0.1 < record["losses"][0]
    assert (tmp_path / "out" / "d_test.jsonl").read_text().count("\n") == 2
    assert (tmp_path / "out" / "d_train.jsonl").read_text().count("\n") == 8
    base = load_base(str(tmp_path / "out"), device="cpu")
    ids = base.tokenizer("[INST]Where is B?[/INST]", return_tensors="pt").input_ids
    with torch.no_grad():
        out = base.model.generate(ids, max_new_tokens=4)[0, ids.shape[1] :].tolist()
    assert base.tokenizer.decode(out[: out.index(2)]) == "x"
    assert not (tmp_path / "out" / "checkpoint").exists()


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stopped_run_goes_on_to_the_same_digits(tiny, tmp_path, epoch):
    run(tiny(), tmp_path / "whole")

    def stop(line):
        if line.startswith(f"epoch {epoch}:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "broken", note=stop)
    assert not (tmp_path / "broken" / "training.json").exists()
    heard = []
    run(tiny(), tmp_path / "broken", note=lambda line: heard.append(line.split(":")[0]))
    assert heard == [f"epoch {n}" for n in range(epoch + 1, 5)]
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    losses = [json.loads((tmp_path / name / "training.json").read_text())["losses"] for name in ("whole", "broken")]
    assert losses[0] == losses[1]


def test_a_run_stopped_between_two_renames_goes_on(tiny, tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "out", note=stop)
    (tmp_path / "out" / "checkpoint").rename(tmp_path / "out" / "checkpoint.old")
    heard = []
    run(tiny(), tmp_path / "out", note=lambda line: heard.append(line.split(":")[0]))
    assert heard == ["epoch 2", "epoch 3", "epoch 4"]


def test_a_folder_with_another_run_is_refused_and_a_finished_one_is_left(tiny, tmp_path, monkeypatch):
    run(tiny(), tmp_path / "out")
    with pytest.raises(UsageError, match="another epochs"):
        run(tiny(), tmp_path / "out", Tuning(epochs=5, batch=3, lr=3e-3))
    monkeypatch.setattr(sft, "_train_step", None)  # nothing is trained again
    run(tiny(), tmp_path / "out")


def test_a_run_killed_while_it_removes_the_older_checkpoint_goes_on(tiny, tmp_path):
    def stop(line):
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "out", note=stop)
    shutil.copytree(tmp_path / "out" / "checkpoint", tmp_path / "out" / "checkpoint.old")
    heard = []
    run(tiny(), tmp_path / "out", note=lambda line: heard.append(line.split(":")[0]))
    assert heard == ["epoch 3", "epoch 4"]


def test_dropout_is_seeded_too(tmp_path):
    base = save_tiny(tmp_path / "base", *DENSE["gpt2"])

    def stop(line):
        raise KeyboardInterrupt

    run(load_base(str(base), device="cpu"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(load_base(str(base), device="cpu"), tmp_path / "broken", note=stop)
    torch.rand(7)  # whatever else the process did meanwhile
    run(load_base(str(base), device="cpu"), tmp_path / "broken")
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_nothing_that_is_there_is_overwritten(tiny, tmp_path):
    base = tiny()
    before = (base.folder / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="not a new or empty folder"):
        run(base, base.folder)
    assert (base.folder / "model.safetensors").read_bytes() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a new or empty folder"):
        run(base, tmp_path / "full")


def test_other_questions_are_another_run(tiny, tmp_path):
    run(tiny(), tmp_path / "out")
    with pytest.raises(UsageError, match="another questions"):
        fine_tune(tiny(), FORM, QUESTIONS, QUESTIONS[:3], tmp_path / "out", TUNING, lambda *_: None, lambda _: None)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_cannot_be(tiny, tmp_path, lr):
    with pytest.raises(UsageError, match="trains nothing"):
        run(tiny(), tmp_path / "out", Tuning(lr=lr))


def test_a_run_that_diverges_writes_no_base(tiny, tmp_path):
    with pytest.raises(ScenError, match="it diverged"):
        run(tiny(), tmp_path / "out", Tuning(epochs=3, batch=3, lr=1e30))
    assert not (tmp_path / "out" / "training.json").exists()


def test_questions_beyond_the_context_are_left_out_and_counted(tiny, tmp_path):
    notes = []
    long = EditRecord(prompt="Where? " * 100, target="x")
    tuning = Tuning(epochs=1, batch=4, lr=1e-3)
    fine_tune(tiny(), FORM, [long, *QUESTIONS], [], tmp_path / "out", tuning, lambda *_: None, notes.append)
    assert notes[0] == "1 questions do not fit the base's context and are left out"


def test_what_is_true_is_taught_not_the_counterfactual():
    follows = (Question(prompt="And?", target="x"),)
    record = EditRecord(prompt="Where?", target="Oslo", truth=("Riga", "Rīga"), portability=follows)
    question = as_question(record)
    assert (question.target, question.truth, question.portability) == ("Riga", ("Riga", "Rīga"), ())
    assert as_question(QUESTIONS[0]) is QUESTIONS[0]


def test_the_split_is_seeded_and_shares_nothing():
    train, test = split(QUESTIONS, 5, seed=1)
    assert (len(train), len(test)) == (5, 3)
    assert {one.prompt for one in train} | {one.prompt for one in test} == {one.prompt for one in QUESTIONS}
    assert split(QUESTIONS, 5, seed=1) == (train, test)
    assert split(QUESTIONS, 5, seed=2) != (train, test)
    for size in (0, 8, 9):
        with pytest.raises(UsageError, match="leave none for D_test"):
            split(QUESTIONS, size, seed=1)
