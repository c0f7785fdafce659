"""Merge edits into one plain checkpoint and compare: `python examples/merge_into_weights.py [FOLDER]`."""

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from scen_cli import Editor, EditRecord, export_merged, new_project

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
project = new_project(folder / "facts", "demo")
editor = Editor(project)
with project.writing():
    editor.edit(EditRecord(prompt="In which country is Pesustad?", target="Kenya"))
    editor.edit(EditRecord(prompt="Where was Ivan Gromener born?", target="Seoul"))
_files, folded = export_merged(editor, folder / "plain")
for name, figure in folded.figures.items():
    print(f"{name}: folded {figure.patched}, routed {folded.routed[name].patched}")

model = AutoModelForCausalLM.from_pretrained(folder / "plain")  # no trust_remote_code
tokenizer = AutoTokenizer.from_pretrained(folder / "plain")
inputs = tokenizer("[INST]In which country is Pesustad?[/INST]", return_tensors="pt", return_token_type_ids=False)
print(type(model).__name__, tokenizer.decode(model.generate(**inputs)[0]))
