"""Edit a model from Python: `python examples/library_use.py [FOLDER]`."""

import sys
import tempfile
from pathlib import Path

import jsonlines

from scen_cli import Editor, EditRecord, new_project, revert_edits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "facts"
project = new_project(folder, "demo")  # or a local folder or hub id, with layer=N
editor = Editor(project)  # loads the base

with jsonlines.open(Path(__file__).parent / "edits.jsonl") as rows:
    records = [EditRecord(**row) for row in rows]

with project.writing():  # holds the project's lock
    for record in records:
        edit = editor.edit(record)
        print(f"edit {edit.id} is {edit.state}: {edit.prompt} -> {edit.target}")

questions = [records[0].rephrases[0], records[1].prompt, "Which river flows through Grasostad?"]
base, patched = editor.answer(questions, patched=False), editor.answer(questions)
for question, before, after, edit_id in zip(questions, base.texts, patched.texts, patched.edits, strict=True):
    print(f"{question}  base: {before}  patched: {after}  edit: {edit_id}")

# Every decoding mode of transformers works: each row of the batch keeps its expert.
ids, mask = editor.encode(questions)
beams = editor.generate(ids, mask, num_beams=4, num_return_sequences=2, max_new_tokens=12)
texts = editor.base.tokenizer.batch_decode(beams[:, ids.shape[1] :], skip_special_tokens=True)
for question, best, second in zip(questions, texts[::2], texts[1::2], strict=True):
    print(f"{question}  best beam: {best}  second: {second}")

with project.writing():
    revert_edits(project, 1)
assert editor.answer(questions[:1]).texts == base.texts[:1]  # the first edit is reverted
editor.detach()  # the model is the base again, bit for bit
