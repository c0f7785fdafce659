"""Export as one transformers checkpoint: `AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)`.

The folder holds the base's weights, the experts and W_merge as more tensors beside them, the
tokenizer, a model card, and two files of code: `patch.py`, the very file scen itself runs, and
`modeling_scen.py`, a class that puts it around the base's own.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
import transformers

from scen_cli.errors import UsageError
from scen_cli.export.card import model_card
from scen_cli.model import patch
from scen_cli.patched_model import PatchedModel

MODELING = Path(__file__).parent / "modeling_scen.py"


def export_checkpoint(patched: PatchedModel, folder: Path) -> list[Path]:
    """Write the folder; returns its files. It appears under its name only when it is whole.

    Raises `UsageError` when there is nothing to export, the folder is not empty, or the base's
    class is not one of transformers' own.
    """
    edits = patched.edits_in_force
    if not edits:
        raise UsageError("no edit is in force: there is nothing to export", hint="`scen edit edits.jsonl` makes some")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"`{folder}` is not empty", hint="choose another `--out`")
    base_class = type(patched.model).__name__
    if not hasattr(transformers, base_class):
        raise UsageError(f"the base's class `{base_class}` is not part of transformers")
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    _write(patched, draft, edits, base_class)
    if folder.exists():
        folder.rmdir()
    draft.rename(folder)
    return sorted(folder.iterdir())


def _write(patched: PatchedModel, draft: Path, edits: list[int], base_class: str) -> None:
    model = patched.model
    bank = patched.patch().bank
    experts = torch.stack([bank.expert(row).cpu() for row in range(len(edits))])
    patched.detach()
    tensors = {**model.state_dict(), "scen.neurons": bank.neurons.cpu(), "scen.experts": experts}
    model.save_pretrained(draft, state_dict=tensors)

    config = copy.deepcopy(model.config)
    config.architectures = ["ScenForCausalLM"]
    config.auto_map = {"AutoModelForCausalLM": "modeling_scen.ScenForCausalLM"}
    config.scen = {
        "module": patched.edited.module_name,
        "layer": patched.edited.index,
        "edits": edits,
        "expert_shape": list(experts.shape[1:]),
        "theta": patched.project.ledger.theta(),
        "normalise": patched.recipe.normalise,
        "template": patched.template.form,
    }
    config.save_pretrained(draft)
    generation = copy.deepcopy(model.generation_config)
    generation.eos_token_id = list(patched.template.end_ids)
    generation.pad_token_id = patched.pad_id
    generation.save_pretrained(draft)
    tokenizer = copy.deepcopy(patched.base.tokenizer)
    if tokenizer.pad_token is None:  # so that a batch of prompts can be padded at all
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(draft)

    shutil.copy(str(patch.__file__), draft / "patch.py")
    code = MODELING.read_text(encoding="utf-8")
    code = code.replace("from scen_cli.model.patch import", "from .patch import")
    (draft / "modeling_scen.py").write_text(code.replace("LlamaForCausalLM", base_class), encoding="utf-8")
    (draft / "README.md").write_text(model_card(patched, edits), encoding="utf-8")
