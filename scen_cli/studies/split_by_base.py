"""D_edit and D_loc: questions that the base answers wrongly, and those it answers rightly (the paper's 4.1)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jsonlines
from filelock import FileLock, Timeout

from scen_cli.data.questions import as_question
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.data.write_records import digest, write_json, write_lines
from scen_cli.editing.editor import Editor
from scen_cli.editing.patched_model import BATCH
from scen_cli.errors import ProjectLocked, UsageError
from scen_cli.evaluation.evaluate_project import DECODING, check_decoding
from scen_cli.studies.sft import Tell


def divide(editor: Editor, records: Sequence[EditRecord], folder: Path, decoding: str, tell: Tell) -> Suite:
    """Ask the base every question and write `d_edit.jsonl` and `d_loc.jsonl` to `folder`.

    Every answer is kept in `answers.jsonl` as it comes: a run that was stopped goes on from there. Right is
    any answer that the data calls true; a question the base cannot take is in neither.

    Raises `UsageError` if the folder holds a division of other questions, or by another base.
    """
    check_decoding(decoding)
    questions = [as_question(record) for record in records if editor.fits(record.prompt)]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            return _divide(editor, questions, folder, decoding, tell)
    except Timeout as error:
        raise ProjectLocked(f"another process is dividing in `{folder}`", hint="wait for it to end") from error


def _divide(editor: Editor, questions: list[EditRecord], folder: Path, decoding: str, tell: Tell) -> Suite:
    _claim(folder, _fingerprint(editor, questions, decoding))
    answers = _kept(folder / "answers.jsonl", questions)
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
    write_lines(folder / "d_edit.jsonl", (one.as_json() for one in d_edit))
    write_lines(folder / "d_loc.jsonl", ({"prompt": prompt} for prompt in d_loc))
    return Suite(folder.name, d_edit, d_loc)


def _fingerprint(editor: Editor, questions: Sequence[EditRecord], decoding: str) -> dict[str, str]:
    quantize = editor.project.settings.get("quantize")
    return {
        **({"quantize": quantize} if quantize else {}),
        "questions": digest([one.as_json() for one in questions]),
        "base": editor.project.settings["weights_digest"],
        "template": editor.template.form,
        "decoding": decoding,
    }


def _claim(folder: Path, about: dict[str, str]) -> None:
    """Write down what the folder's answers are answers to, or check that it is the same."""
    path = folder / "division.json"
    if not path.exists():
        write_json(path, about)
    elif json.loads(path.read_text(encoding="utf-8")) != about:
        raise UsageError(
            f"`{folder}` holds a division of other questions, or by another base", hint="choose another folder"
        )


def _kept(path: Path, questions: Sequence[EditRecord]) -> list[str]:
    """Answers of an earlier run, as far as they are answers to these questions in order; what was being
    written when it stopped is cut off."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    answers = []
    for line, question in zip(lines, questions, strict=False):
        try:
            kept = json.loads(line)
            if kept["prompt"] != question.prompt:
                break
            answers.append(str(kept["answer"]))
        except (ValueError, KeyError, TypeError):  # a damaged line: it is asked anew, and all after it
            break
    path.write_bytes(b"".join(line + b"\n" for line in lines[: len(answers)]))
    return answers


def fitting(suite: Suite, edits: int) -> Iterator[str]:
    """What to know of a suite that has fewer edits or locality prompts than were asked for."""
    if len(suite.edits) < edits:
        yield f"only {len(suite.edits)} of the questions are answered wrongly: fewer than {edits} edits"
    if not suite.locality:
        yield "the base answers none of the questions rightly: there is no Locality to measure"
