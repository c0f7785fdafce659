"""The model card of an exported checkpoint: what it is, what was edited, what was measured."""

from __future__ import annotations

from typing import Any

from scen_cli import __version__
from scen_cli.patched_model import PatchedModel
from scen_cli.report.markdown import about, figures_table, model_name

LISTED = 20  # edits written out in the card


def model_card(patched: PatchedModel, edits: list[int]) -> str:
    """Markdown with a metadata header; figures are those measured since the last edit or revert."""
    settings = patched.project.settings
    ledger = patched.project.ledger
    listed = [patched.project.find(edit_id) for edit_id in edits[:LISTED]]
    more = f"\n\nand {len(edits) - LISTED} more." if len(edits) > LISTED else ""
    name = model_name(settings)
    lines = "\n".join(f"- {_code(edit.prompt)} -> {_code(edit.target)}" for edit in listed)
    measured = "\n".join(_figures(suite, metrics) for suite, metrics in ledger.current_evaluations().items())
    template = patched.template.form
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [model-editing, scen]
---

# {name}, with {len(edits)} facts corrected

The base `{name}` (weights sha256 `{settings["weights_digest"][:16]}...`), unchanged, and
{len(edits)} experts for the down projection of decoder layer {settings["layer"]} (`{settings["module"]}`),
made with scen {__version__} by SCEN (Scalable Model Editing via Customized Expert Networks),
recipe `{settings["recipe"]["name"]}`, theta {ledger.theta()}.
A prompt that no edit claims is answered by the base, as before.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
{_encoding(template)}
print(tokenizer.decode(model.generate(**inputs)[0]))
```

**Without `trust_remote_code=True` transformers loads the base alone, without any edit**, and only warns of
unexpected keys.

Prompts must be put as they were when the edits were made: template {_code(template)}. `modeling_scen.py` says how
rows are routed, and how to give the prompt's length or the experts outright.

## Measured

{measured or "Not evaluated since the last change: `scen eval` before `scen export` puts figures here."}

## Edits

{lines}{more}
"""


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
    return f"Suite `{suite}`: {about(metrics)}\n\n{figures_table(shown)}\n"


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"
