"""D_edit and D_loc: questions that the base answers wrongly, and those it answers rightly (the paper's 4.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jsonlines

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.data.writing import write_lines, write_records
from scen_cli.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.evaluate import DECODING
from scen_cli.patched_model import BATCH
from scen_cli.studies.sft import Tell, as_question


def divide(editor: Editor, records: Sequence[EditRecord], folder: Path, decoding: str, tell: Tell) -> Suite:
    """Ask the base every question and write `d_edit.jsonl` and `d_loc.jsonl` to `folder`.

    Every answer is kept in `answers.jsonl` as it comes: a run that was stopped goes on from there. Right is
    any answer that the data calls true; a question the base cannot take is in neither.

    Raises `UsageError` if the folder holds a division of other questions, or by another base.
    """
    questions = [as_question(record) for record in records if editor.fits(record.prompt)]
    _claim(folder, _fingerprint(editor, questions, decoding))
    answers = _kept(folder / "answers.jsonl")
    with jsonlines.open(folder / "answers.jsonl", "a", flush=True) as lines:
        for start in range(len(answers), len(questions), BATCH):
            batch = questions[start : start + BATCH]
            texts = editor.answer([one.prompt for one in batch], patched=False, **DECODING[decoding]).texts
            for one, text in zip(batch, texts, strict=True):
                lines.write({"prompt": one.prompt, "target": one.target, "answer": text})
            answers += texts
            tell("", f"{len(answers)} of {len(questions)}")
    right = [text in (one.target, *one.truth) for one, text in zip(questions, answers, strict=True)]
    d_edit = [one for one, ok in zip(questions, right, strict=True) if not ok]
    d_loc = [one.prompt for one, ok in zip(questions, right, strict=True) if ok]
    (folder / "d_edit.jsonl").unlink(missing_ok=True)
    write_records(folder / "d_edit.jsonl", d_edit)
    write_lines(folder / "d_loc.jsonl", ({"prompt": prompt} for prompt in d_loc))
    return Suite(folder.name, d_edit, d_loc)


def _fingerprint(editor: Editor, questions: Sequence[EditRecord], decoding: str) -> dict[str, str]:
    content = json.dumps([(one.prompt, one.target, one.truth) for one in questions]).encode()
    return {
        "questions": hashlib.sha256(content).hexdigest(),
        "base": editor.project.settings["weights_digest"],
        "template": editor.template.form,
        "decoding": decoding,
    }


def _claim(folder: Path, about: dict[str, str]) -> None:
    """Write down what the folder's answers are answers to, or check that it is the same."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "division.json"
    if not path.exists():
        path.write_text(json.dumps(about, indent=1), encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != about:
        raise UsageError(
            f"`{folder}` holds a division of other questions, or by another base", hint="choose another folder"
        )


def _kept(path: Path) -> list[str]:
    """Answers of an earlier run; what was being written when it stopped is cut off."""
    if not path.exists():
        return []
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return [json.loads(line)["answer"] for line in whole.decode().splitlines()]


def fitting(suite: Suite, edits: int) -> Iterator[str]:
    """What to know of a suite that has fewer edits or locality prompts than were asked for."""
    if len(suite.edits) < edits:
        yield f"only {len(suite.edits)} of the questions are answered wrongly: fewer than {edits} edits"
    if not suite.locality:
        yield "the base answers none of the questions rightly: there is no Locality to measure"
