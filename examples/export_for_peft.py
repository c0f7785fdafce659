"""Export each edit as a LoRA and run a mixed batch with PEFT: `python examples/export_for_peft.py [FOLDER]`."""

import sys
import tempfile
from pathlib import Path

from peft import PeftModel

from scen_cli import Editor, EditRecord, export_adapters, load_base, new_project

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
project = new_project(folder / "facts", "demo")
editor = Editor(project)
with project.writing():
    editor.edit(EditRecord(prompt="In which country is Pesustad?", target="Kenya"))
    editor.edit(EditRecord(prompt="Where was Ivan Gromener born?", target="Seoul"))
export_adapters(editor, folder / "loras")

# scen routes each prompt to an edit; PEFT generates the answer.
questions = ["Pesustad is a town in which country?", "In which city was Ivan Gromener born?", "Where was Ada born?"]
edits = editor.route(questions).edits
ids, mask = editor.encode(questions)
editor.detach()
model = PeftModel.from_pretrained(load_base("demo").model, folder / "loras" / "edit-000001", "edit-000001")
model.load_adapter(folder / "loras" / "edit-000002", "edit-000002")
names = ["__base__" if edit is None else f"edit-{edit:06d}" for edit in edits]
answers = model.generate(
    input_ids=ids, attention_mask=mask, adapter_names=names, do_sample=False, max_new_tokens=12, pad_token_id=0
)
for question, name, answer in zip(questions, names, answers[:, ids.shape[1] :].tolist(), strict=True):
    print(f"{question} {editor.template.answer(answer)} ({name})")
