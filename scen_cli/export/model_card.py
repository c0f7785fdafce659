"""Model cards of exports: the base, the edits, how to load the folder, and measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scen_cli._version import __version__
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.known_bases import hub_name
from scen_cli.report.markdown import describe, figures_table, model_name

MAX_LISTED = 20  # edits in a card


def checkpoint_card(patched: PatchedModel, edits: list[int], license: str | None, patch_only: bool) -> str:
    """The card of a transformers folder."""
    template = patched.template.form
    return f"""{_header(patched, license, "transformers")}
# {model_name(patched.project.settings)}, with {len(edits)} facts corrected

{_summary(patched, edits)}
The base answers every prompt that is not routed to an edit.
{_PATCH_ONLY if patch_only else ""}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
{_tokenizer_call(template)}
print(tokenizer.decode(model.generate(**inputs)[0]))
```

{"" if patch_only else _NEEDS_CODE}Use the template that the edits were made with: {_code(template)}.
`modeling_scen.py` describes the routing, and how to pass the prompt's length or the experts.

{_measured(patched)}

{_edits(patched, edits)}"""


def adapters_card(patched: PatchedModel, edits: list[int], license: str | None) -> str:
    """The card of a folder of PEFT adapters."""
    return f"""{_header(patched, license, "peft")}
# {model_name(patched.project.settings)}, with {len(edits)} facts corrected: one LoRA per edit, and the router

{_summary(patched, edits)}
Each expert is a LoRA of the base's `{patched.edited.module_name}`, in the folders `edit-000001` and so on.
`router.json` and `router.safetensors` decide which LoRA a prompt gets, or none; `about` in `router.json` describes the
steps.

Use the template that the edits were made with: {_code(patched.template.form)}.

{_measured(patched)}

{_edits(patched, edits)}"""


def merged_card(patched: PatchedModel, edits: list[int], license: str | None, description: str, figures: str) -> str:
    """The card of a plain checkpoint. `description` says how the edits were folded; `figures` is a table."""
    return f"""{_header(patched, license, "transformers")}
# {model_name(patched.project.settings)}, with {len(edits)} facts folded into its weights

{description}

{figures}

{_edits(patched, edits)}"""


_PATCH_ONLY = """
This folder does not contain the weights of the base. `from_pretrained` downloads them and checks that they are the
weights that the edits were made with. If the base is somewhere else, pass its folder or hub id:
`from_pretrained(FOLDER, trust_remote_code=True, base=BASE)`, or set the environment variable `SCEN_BASE`.
"""
_NEEDS_CODE = """**Without `trust_remote_code=True` transformers loads the base without any edit**, and only warns about
unexpected keys.

"""


def _header(patched: PatchedModel, license: str | None, library: str) -> str:
    """The metadata that a hub reads."""
    lines = [f"library_name: {library}", "pipeline_tag: text-generation", "tags: [model-editing, scen]"]
    name = hub_name(patched.project.settings["model"])
    if not Path(name).is_absolute():  # a local folder means nothing to others
        lines.append(f"base_model: {name}")
    if license:
        lines.append(f"license: {json.dumps(license)}")
    return "\n".join(["---", *lines, "---", ""])


def _summary(patched: PatchedModel, edits: list[int]) -> str:
    settings = patched.project.settings
    bits = settings.get("quantize")
    loaded = f", loaded in {bits} by bitsandbytes as when the edits were made" if bits else ""
    return f"""The base `{model_name(settings)}` (weights sha256 `{settings["weights_digest"][:16]}...`){loaded},
unchanged, and
{len(edits)} experts for the down projection of decoder layer {settings["layer"]} (`{settings["module"]}`),
made with scen {__version__} by SCEN (Scalable Model Editing via Customized Expert Networks),
recipe `{settings["recipe"]["name"]}`, theta {patched.project.ledger.theta()}."""


def _measured(patched: PatchedModel) -> str:
    evaluations = patched.project.ledger.current_evaluations()
    figures = "\n".join(_figures(suite, metrics) for suite, metrics in evaluations.items())
    default = "No evaluation since the last change: run `scen eval` before `scen export` to get figures here."
    return f"## Measured\n\n{figures or default}"


def _figures(suite: str, metrics: dict[str, Any]) -> str:
    figures = {
        name: figure for name, figure in metrics["figures"].items() if "/" not in name and name != "token-accuracy"
    }
    return f"Suite `{suite}`: {describe(metrics)}\n\n{figures_table(figures)}\n"


def _edits(patched: PatchedModel, edits: list[int]) -> str:
    listed = [patched.project.find(edit_id) for edit_id in edits[:MAX_LISTED]]
    lines = [f"- {_code(edit.prompt)} -> {_code(edit.target)}" for edit in listed]
    if len(edits) > MAX_LISTED:
        lines += ["", f"and {len(edits) - MAX_LISTED} more."]
    return "\n".join(["## Edits", "", *lines, ""])


def _tokenizer_call(template: str) -> str:
    """The line of Python that tokenises a question in the template."""
    if template == "chat":
        messages = '[{"role": "user", "content": QUESTION}]'
        options = 'add_generation_prompt=True, return_tensors="pt", return_dict=True'
        return f"inputs = tokenizer.apply_chat_template({messages}, {options})"
    text = "QUESTION" if template == "none" else f'{template!r}.replace("{{prompt}}", QUESTION)'
    return f'inputs = tokenizer({text}, return_tensors="pt", return_token_type_ids=False)'


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"
