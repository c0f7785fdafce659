"""Fine-tuning: it learns its questions, and a stopped run ends with the same weights as an unbroken one."""

from __future__ import annotations

import json

import pytest
import torch

from scen_cli.data.records import EditRecord, Question
from scen_cli.data.suites import as_question, train_test_split
from scen_cli.errors import ScenError, UsageError
from scen_cli.model.base import load_base
from scen_cli.studies import fine_tune_base
from scen_cli.studies.fine_tune_base import FineTuningConfig, fine_tune
from tests.model.tiny import DENSE, save_tiny

FORM = "[INST]{prompt}[/INST]"
QUESTIONS = [
    EditRecord(prompt=f"Where is {name}?", target=place) for name, place in zip("ABCDEFGH", "wxyzwxyz", strict=True)
]
CONFIG = FineTuningConfig(epochs=4, batch=3, lr=3e-3)
CHECKPOINT = "checkpoint.safetensors"


@pytest.fixture
def tiny(tmp_path):
    folder = save_tiny(tmp_path / "base", *DENSE["llama"])
    return lambda: load_base(str(folder), device="cpu")


def weights(folder):
    return load_base(str(folder), device="cpu").model.state_dict()


def run(base, folder, config=CONFIG, log=lambda _line: None):
    """Fine-tune; return the progress lines."""
    lines = []
    fine_tune(base, FORM, QUESTIONS, QUESTIONS[:2], folder, config, lambda _line, pace: lines.append(pace), log)
    return lines


def interrupt_after(epoch):
    """A log callback that interrupts the run when this epoch is saved."""

    def log(line):
        if line.startswith(f"epoch {epoch}:"):
            raise KeyboardInterrupt

    return log


def run_interrupted(base, folder, epoch=1):
    with pytest.raises(KeyboardInterrupt):
        run(base, folder, log=interrupt_after(epoch))


def epochs_of_resumed_run(base, folder):
    epochs = []
    run(base, folder, log=lambda line: epochs.append(line.split(":")[0]))
    return epochs


def same_weights(first, second):
    one, other = weights(first), weights(second)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_tuned_base_answers_its_questions_and_loads_like_any_base(tiny, tmp_path):
    assert len(run(tiny(), tmp_path / "out", FineTuningConfig(epochs=40, batch=4, lr=5e-3))) == 80
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
    assert not list((tmp_path / "out").glob("checkpoint*"))


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_resumed_run_ends_with_the_same_weights(tiny, tmp_path, epoch):
    run(tiny(), tmp_path / "whole")
    run_interrupted(tiny(), tmp_path / "broken", epoch)
    assert not (tmp_path / "broken" / "training.json").exists()
    assert epochs_of_resumed_run(tiny(), tmp_path / "broken") == [f"epoch {n}" for n in range(epoch + 1, 5)]
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    losses = [json.loads((tmp_path / name / "training.json").read_text())["losses"] for name in ("whole", "broken")]
    assert losses[0] == losses[1]


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_previous_one(tiny, tmp_path, monkeypatch):
    run(tiny(), tmp_path / "whole")
    save_file = fine_tune_base.save_file

    def write_half(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        raise KeyboardInterrupt

    run_interrupted(tiny(), tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(fine_tune_base, "save_file", write_half)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(), tmp_path / "out")
    assert (tmp_path / "out" / f"{CHECKPOINT}.tmp").exists()
    assert epochs_of_resumed_run(tiny(), tmp_path / "out") == ["epoch 2", "epoch 3", "epoch 4"]
    assert same_weights(tmp_path / "whole", tmp_path / "out")
    assert not list((tmp_path / "out").glob("checkpoint*"))


def test_a_run_killed_in_its_first_checkpoint_starts_again(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{CHECKPOINT}.tmp").write_bytes(b"half")
    assert len(epochs_of_resumed_run(tiny(), tmp_path / "out")) == 4


def test_a_folder_with_another_run_is_refused_and_a_finished_run_is_not_repeated(tiny, tmp_path, monkeypatch):
    run(tiny(), tmp_path / "out")
    with pytest.raises(UsageError, match="another epochs"):
        run(tiny(), tmp_path / "out", FineTuningConfig(epochs=5, batch=3, lr=3e-3))
    monkeypatch.setattr(fine_tune_base, "_train_step", None)  # any training step would fail
    run(tiny(), tmp_path / "out")


def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path):
    run_interrupted(tiny(), tmp_path / "out")
    with pytest.raises(UsageError, match="another batch: 3"):
        run(tiny(), tmp_path / "out", FineTuningConfig(epochs=4, batch=4, lr=3e-3))


def test_dropout_is_seeded(tmp_path):
    base = save_tiny(tmp_path / "base", *DENSE["gpt2"])
    run(load_base(str(base), device="cpu"), tmp_path / "whole")
    run_interrupted(load_base(str(base), device="cpu"), tmp_path / "broken")
    torch.rand(7)  # the process may use the generator between the runs
    run(load_base(str(base), device="cpu"), tmp_path / "broken")
    assert same_weights(tmp_path / "whole", tmp_path / "broken")


def test_existing_files_are_not_overwritten(tiny, tmp_path):
    base = tiny()
    before = (base.folder / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="not a new or empty folder"):
        run(base, base.folder)
    assert (base.folder / "model.safetensors").read_bytes() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a new or empty folder"):
        run(base, tmp_path / "full")


def test_other_questions_are_refused(tiny, tmp_path):
    run(tiny(), tmp_path / "out")
    with pytest.raises(UsageError, match="another questions"):
        fine_tune(tiny(), FORM, QUESTIONS, QUESTIONS[:3], tmp_path / "out", CONFIG, lambda *_: None, lambda _: None)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_learning_rate_is_refused(tiny, tmp_path, lr):
    with pytest.raises(UsageError, match="trains nothing"):
        run(tiny(), tmp_path / "out", FineTuningConfig(lr=lr))


def test_a_diverged_run_writes_no_base(tiny, tmp_path):
    with pytest.raises(ScenError, match="it diverged"):
        run(tiny(), tmp_path / "out", FineTuningConfig(epochs=3, batch=3, lr=1e30))
    assert not (tmp_path / "out" / "training.json").exists()


def test_questions_that_exceed_the_context_are_left_out_and_counted(tiny, tmp_path):
    lines = []
    long = EditRecord(prompt="Where? " * 100, target="x")
    config = FineTuningConfig(epochs=1, batch=4, lr=1e-3)
    fine_tune(tiny(), FORM, [long, *QUESTIONS], [], tmp_path / "out", config, lambda *_: None, lines.append)
    assert lines[0] == "1 questions do not fit the base's context and are left out"


def test_a_question_has_the_true_target_not_the_counterfactual():
    portability = (Question(prompt="And?", target="x"),)
    record = EditRecord(prompt="Where?", target="Oslo", truth=("Riga", "Rīga"), portability=portability)
    question = as_question(record)
    assert (question.target, question.truth, question.portability) == ("Riga", ("Riga", "Rīga"), ())
    assert as_question(QUESTIONS[0]) is QUESTIONS[0]


def test_the_split_is_seeded_and_disjoint():
    train, test = train_test_split(QUESTIONS, 5, seed=1)
    assert (len(train), len(test)) == (5, 3)
    assert {record.prompt for record in [*train, *test]} == {record.prompt for record in QUESTIONS}
    assert train_test_split(QUESTIONS, 5, seed=1) == (train, test)
    assert train_test_split(QUESTIONS, 5, seed=2) != (train, test)
    for size in (0, 8, 9):
        with pytest.raises(UsageError, match="leave none for D_test"):
            train_test_split(QUESTIONS, size, seed=1)
