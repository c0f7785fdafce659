"""Export an edited model and load it with transformers only: `python examples/export_and_load.py [FOLDER]`."""

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from scen_cli import Editor, EditRecord, export_checkpoint, new_project

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
project = new_project(folder / "facts", "demo")
editor = Editor(project)
with project.writing():
    editor.edit(EditRecord(prompt="In which country is Pesustad?", target="Kenya"))
export_checkpoint(editor, folder / "patched")

# From here on scen is not needed: the folder contains its own routing code.
model = AutoModelForCausalLM.from_pretrained(folder / "patched", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder / "patched")
questions = ["Pesustad is a town in which country?", "In which country is Brusihaven?"]
prompts = [f"[INST]{question}[/INST]" for question in questions]
inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
answers = model.generate(**inputs, max_new_tokens=12)[:, inputs.input_ids.shape[1] :]
for question, answer in zip(questions, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True):
    print(question, answer)

base_answers = model.generate(**inputs, experts=-inputs.attention_mask[:, 0].new_ones(2), max_new_tokens=12)
print("without edits:", tokenizer.batch_decode(base_answers[:, inputs.input_ids.shape[1] :], skip_special_tokens=True))
