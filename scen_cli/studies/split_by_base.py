"""Split questions into D_edit, which the base answers wrongly, and D_loc, which it answers rightly (paper, 4.1)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jsonlines
from filelock import FileLock, Timeout

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite, as_question
from scen_cli.data.write_files import digest, write_json, write_lines
from scen_cli.editing.editor import Editor
from scen_cli.editing.patched_model import BATCH
from scen_cli.errors import ProjectLocked, UsageError
from scen_cli.evaluation.evaluation import DECODING, check_decoding
from scen_cli.studies import ProgressCallback


def split_by_base(
    editor: Editor, records: Sequence[EditRecord], folder: Path, decoding: str, progress: ProgressCallback
) -> Suite:
    """Ask the base every question and write `d_edit.jsonl` and `d_loc.jsonl` to `folder`.

    An answer is right if it equals any target that the data calls true. A question that exceeds the base's context
    is in neither part. `answers.jsonl` keeps every answer, so a stopped run resumes there.

    Args:
        editor: The project whose base answers, without edits.
        records: The questions.
        folder: New folder, or the folder of the same run.
        decoding: `greedy` or `paper`.
        progress: Called after every batch.

    Returns:
        A suite with D_edit as edits and D_loc as locality prompts.

    Raises:
        UsageError: `folder` holds answers to other questions or of another base.
        ProjectLocked: Another process writes to `folder`.
    """
    check_decoding(decoding)
    questions = [as_question(record) for record in records if editor.fits(record.prompt)]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            answers = _ask_base(editor, questions, folder, decoding, progress)
            right = [
                text in (question.target, *question.truth) for question, text in zip(questions, answers, strict=True)
            ]
            d_edit = [question for question, is_right in zip(questions, right, strict=True) if not is_right]
            d_loc = [question.prompt for question, is_right in zip(questions, right, strict=True) if is_right]
            write_lines(folder / "d_edit.jsonl", (question.as_json() for question in d_edit))
            write_lines(folder / "d_loc.jsonl", ({"prompt": prompt} for prompt in d_loc))
            return Suite(folder.name, d_edit, d_loc)
    except Timeout as error:
        raise ProjectLocked(f"another process splits questions in `{folder}`", hint="wait until it ends") from error


def _ask_base(
    editor: Editor, questions: list[EditRecord], folder: Path, decoding: str, progress: ProgressCallback
) -> list[str]:
    """The base's answer to every question; answers that an earlier run has saved are not generated again."""
    _check_same_run(folder, editor, questions, decoding)
    answers = _saved_answers(folder / "answers.jsonl", questions)
    with jsonlines.open(folder / "answers.jsonl", "a", flush=True) as lines:
        for start in range(len(answers), len(questions), BATCH):
            batch = questions[start : start + BATCH]
            texts = editor.answer([question.prompt for question in batch], patched=False, **DECODING[decoding]).texts
            for question, text in zip(batch, texts, strict=True):
                lines.write({"prompt": question.prompt, "target": question.target, "answer": text})
            answers += texts
            progress("", f"{len(answers)} of {len(questions)}")
    return answers


def _check_same_run(folder: Path, editor: Editor, questions: Sequence[EditRecord], decoding: str) -> None:
    """Save what the answers in this folder depend on, or check that it is the same as before."""
    path = folder / "division.json"
    metadata = {
        "quantize": editor.project.settings["quantize"],
        "questions": digest([question.as_json() for question in questions]),
        "base": editor.project.settings["weights_digest"],
        "template": editor.template.form,
        "decoding": decoding,
    }
    if not path.exists():
        write_json(path, metadata)
    elif json.loads(path.read_text(encoding="utf-8")) != metadata:
        raise UsageError(f"`{folder}` holds answers to other questions, or of another base", hint="use another folder")


def _saved_answers(path: Path, questions: Sequence[EditRecord]) -> list[str]:
    """Saved answers to these questions, in order, up to the first damaged line; the rest of the file is removed."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # the last line is incomplete or empty
    answers = []
    for line, question in zip(lines, questions, strict=False):
        try:
            saved = json.loads(line)
            if saved["prompt"] != question.prompt:
                break
            answers.append(str(saved["answer"]))
        except (ValueError, KeyError, TypeError):  # a damaged line: ask this question and all later ones again
            break
    path.write_bytes(b"".join(line + b"\n" for line in lines[: len(answers)]))
    return answers


def suite_warnings(suite: Suite, edits: int) -> Iterator[str]:
    """Warnings for a suite with fewer edits than requested, or without locality prompts."""
    if len(suite.edits) < edits:
        yield f"the base answers only {len(suite.edits)} of the questions wrongly: fewer than {edits} edits"
    if not suite.locality:
        yield "the base answers none of the questions rightly: Locality cannot be measured"
