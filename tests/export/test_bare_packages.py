"""Exports load where only transformers and torch are installed, and adapters where PEFT is: not scen, no extras."""

from __future__ import annotations

import json
import re

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.export.merged_checkpoint import export_merged
from scen_cli.export.peft_folder import adapter_name, export_adapters
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.model.known_bases import DEMO
from tests.conftest import edit_all
from tests.docs.pages import ROOT
from tests.export.bare_packages import link_packages, run_python

pytestmark = pytest.mark.slow
RECORDS = demo_edits()[:6]
ABSENT = """
import importlib.util, json, sys
absent, folder, texts = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
present = [name for name in absent if importlib.util.find_spec(name)]
assert present == [], present
"""
ANSWER = """
inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
out = model.generate(**inputs, max_new_tokens=12, do_sample=False, **options)[:, inputs.input_ids.shape[1] :]
print(json.dumps(tokenizer.batch_decode(out, skip_special_tokens=True)))
"""
TRANSFORMERS = f"""{ABSENT}
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
options = {{}}
{ANSWER}"""
PEFT = f"""{ABSENT}
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, names = sys.argv[4], json.loads(sys.argv[5])
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), f"{{folder}}/{{names[0]}}", names[0])
for name in names[1:]:
    model.load_adapter(f"{{folder}}/{{name}}", name)
tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
options = {{"adapter_names": [*names, "__base__"]}}
{ANSWER}"""


@pytest.fixture(scope="module")
def only_transformers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    link_packages(folder, ["torch", "transformers", "safetensors", "jinja2"])
    return folder


@pytest.fixture(scope="module")
def only_peft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    link_packages(folder, ["torch", "transformers", "safetensors", "jinja2", "peft"])
    return folder


TEXTS = [*(record.prompt for record in RECORDS), "In which country is Brusihaven?"]
PROMPTS = json.dumps([f"[INST]{text}[/INST]" for text in TEXTS])
NOT_HERE = ["scen_cli", "accelerate", "peft", "gguf", "sqlite_utils", "jsonlines"]


def answers_of(printed):
    return [text.strip() for text in json.loads(printed.splitlines()[-1])]


@pytest.mark.parametrize("expert", ["low-rank", "full"])
def test_a_folder_for_transformers_needs_transformers_alone(make_editor, only_transformers, tmp_path, expert):
    editor = make_editor("closed-form", expert=expert)
    edit_all(editor, RECORDS)
    export_checkpoint(editor, tmp_path / "out")
    printed = run_python(only_transformers, TRANSFORMERS, json.dumps(NOT_HERE), tmp_path / "out", PROMPTS)
    assert answers_of(printed) == editor.answer(TEXTS).texts
    assert answers_of(printed)[:6] == [record.target for record in RECORDS]


def test_a_merged_checkpoint_needs_transformers_alone(low_rank, only_transformers, tmp_path):
    export_merged(low_rank, tmp_path / "out", edit=1)
    printed = run_python(only_transformers, TRANSFORMERS, json.dumps(NOT_HERE), tmp_path / "out", PROMPTS)
    assert answers_of(printed)[0] == RECORDS[0].target


def test_a_folder_without_the_bases_weights_needs_transformers_alone(low_rank, only_transformers, tmp_path):
    export_checkpoint(low_rank, tmp_path / "out", patch_only=True)
    printed = run_python(only_transformers, TRANSFORMERS, json.dumps(NOT_HERE), tmp_path / "out", PROMPTS)
    assert answers_of(printed) == low_rank.answer(TEXTS).texts


def test_the_code_of_the_model_card_and_of_the_example_needs_transformers_alone(low_rank, only_transformers, tmp_path):
    """The card's code block, then what `examples/export_and_load.py` does from where it needs scen no more."""
    export_checkpoint(low_rank, tmp_path / "patched")
    [card] = re.findall(r"```python\n(.*?)```", (tmp_path / "patched" / "README.md").read_text(), re.DOTALL)
    names = f"FOLDER, QUESTION = {str(tmp_path / 'patched')!r}, {RECORDS[1].prompt!r}"
    example = (ROOT / "examples" / "export_and_load.py").read_text(encoding="utf-8")
    head, mark, loading = example.partition("# From here on scen is not needed")
    imports = [line for line in head.splitlines() if re.match("import|from", line) and "scen_cli" not in line]
    code = "\n".join([*imports, names, card, "folder = Path(FOLDER).parent", mark + loading])
    printed = run_python(only_transformers, code).splitlines()
    assert printed[0].endswith(f"{RECORDS[1].target}</s>")
    asked = re.findall(r'"([^"]*\?)"', loading)
    own = low_rank.answer(asked)
    assert own.edits[0] == 1
    assert printed[1:3] == [f"{text} {answer}" for text, answer in zip(asked, own.texts, strict=True)]


def test_adapters_need_peft_and_what_it_needs(low_rank, only_peft, tmp_path):
    export_adapters(low_rank, tmp_path / "out")
    names = json.dumps([adapter_name(edit) for edit in range(1, 7)])
    absent = json.dumps(["scen_cli", "gguf", "sqlite_utils", "jsonlines"])
    printed = run_python(only_peft, PEFT, absent, tmp_path / "out", PROMPTS, DEMO, names)
    assert answers_of(printed) == low_rank.answer(TEXTS, edits=[*range(1, 7), None]).texts
