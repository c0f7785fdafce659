"""The model card of an exported checkpoint: what it is, what was edited, what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scen_cli._version import __version__
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.base import hub_name
from scen_cli.report.markdown import describe, figures_table, model_name

LISTED = 20  # edits written out in the card


def checkpoint_card(patched: PatchedModel, edits: list[int], license: str | None, patch_only: bool) -> str:
    """The card of a folder for transformers."""
    settings = patched.project.settings
    return f"""{_header(patched, license, "transformers")}
# {model_name(settings)}, with {len(edits)} facts corrected

{_about(patched, edits)}
A prompt that no edit claims is answered by the base, as before.
{_PATCH_ALONE if patch_only else ""}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
{_encoding(patched.template.form)}
print(tokenizer.decode(model.generate(**inputs)[0]))
```

{"" if patch_only else _WITHOUT_CODE}Prompts must be put as they were when the edits were made: template
{_code(patched.template.form)}. `modeling_scen.py` says how
rows are routed, and how to give the prompt's length or the experts outright.

{_measured_and_edits(patched, edits)}"""


def adapters_card(patched: PatchedModel, edits: list[int], license: str | None) -> str:
    """The card of a folder for PEFT."""
    return f"""{_header(patched, license, "peft")}
# {model_name(patched.project.settings)}, with {len(edits)} facts corrected: a LoRA for each edit, and the router

{_about(patched, edits)}
Each expert is a LoRA of the base's `{patched.edited.module_name}` in a folder of its own, `edit-000001` and so on;
which of them a prompt calls, or none, is told by `router.json` and `router.safetensors`. `router.json` says in its
`about` how.

Prompts must be put as they were when the edits were made: template {_code(patched.template.form)}.

{_measured_and_edits(patched, edits)}"""


def merged_card(patched: PatchedModel, edits: list[int], license: str | None, how: str, figures: str) -> str:
    """The card of a plain checkpoint with edits folded into its weights: `how` they were, and what `figures` it has."""
    return f"""{_header(patched, license, "transformers")}
# {model_name(patched.project.settings)}, with {len(edits)} facts folded into its weights

{how}

{figures}

## Edits

{_listed(patched, edits)}
"""


_PATCH_ALONE = """
This folder is without the base's weights: they are fetched as it is loaded, and must be those that the edits were made
with. Where the base lies elsewhere, say so: `from_pretrained(FOLDER, trust_remote_code=True, base=WHERE)`, or set
`SCEN_BASE`.
"""
_WITHOUT_CODE = """**Without `trust_remote_code=True` transformers loads the base alone, without any edit**, and only
warns of unexpected keys.

"""


def _header(patched: PatchedModel, license: str | None, library: str) -> str:
    """The metadata that a hub reads."""
    told = [f"library_name: {library}", "pipeline_tag: text-generation", "tags: [model-editing, scen]"]
    name = hub_name(patched.project.settings["model"])
    if not Path(name).is_absolute():  # a folder means nothing to others
        told.append(f"base_model: {name}")
    if license:
        told.append(f"license: {json.dumps(license)}")
    return "\n".join(["---", *told, "---", ""])


def _about(patched: PatchedModel, edits: list[int]) -> str:
    settings = patched.project.settings
    held = settings.get("quantize")
    how = f", held in {held} by bitsandbytes as its keys were read, else" if held else ","
    return f"""The base `{model_name(settings)}` (weights sha256 `{settings["weights_digest"][:16]}...`){how}
unchanged, and
{len(edits)} experts for the down projection of decoder layer {settings["layer"]} (`{settings["module"]}`),
made with scen {__version__} by SCEN (Scalable Model Editing via Customized Expert Networks),
recipe `{settings["recipe"]["name"]}`, theta {patched.project.ledger.theta()}."""


def _measured_and_edits(patched: PatchedModel, edits: list[int]) -> str:
    evaluations = patched.project.ledger.current_evaluations()
    measured = "\n".join(_figures(suite, metrics) for suite, metrics in evaluations.items())
    return f"""## Measured

{measured or "Not evaluated since the last change: `scen eval` before `scen export` puts figures here."}

## Edits

{_listed(patched, edits)}
"""


def _listed(patched: PatchedModel, edits: list[int]) -> str:
    listed = [patched.project.find(edit_id) for edit_id in edits[:LISTED]]
    more = f"\n\nand {len(edits) - LISTED} more." if len(edits) > LISTED else ""
    return "\n".join(f"- {_code(edit.prompt)} -> {_code(edit.target)}" for edit in listed) + more


def _encoding(template: str) -> str:
    """The line of code that puts a question to the model as it was put when the edits were made."""
    if template == "chat":
        turn = '[{"role": "user", "content": QUESTION}]'
        how = 'add_generation_prompt=True, return_tensors="pt", return_dict=True'
        return f"inputs = tokenizer.apply_chat_template({turn}, {how})"
    text = "QUESTION" if template == "none" else f'{template!r}.replace("{{prompt}}", QUESTION)'
    return f'inputs = tokenizer({text}, return_tensors="pt", return_token_type_ids=False)'


def _figures(suite: str, metrics: dict[str, Any]) -> str:
    shown = {
        name: figure for name, figure in metrics["figures"].items() if "/" not in name and name != "token-accuracy"
    }
    return f"Suite `{suite}`: {describe(metrics)}\n\n{figures_table(shown)}\n"


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"
