"""Export as one transformers checkpoint: `AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)`.

The folder holds the base's weights, the experts and W_merge as more tensors beside them, the
tokenizer, a model card, and files of code: those that scen itself runs (`ROUTING`), and `modeling_scen.py`, a
class that puts them around the base's own.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig

from scen_cli.errors import DamageFound, UsageError
from scen_cli.export.card import model_card
from scen_cli.patched_model import PatchedModel
from scen_cli.project.rows import WHAT_HELPS
from scen_cli.project_patch import ProjectPatch

MODELING = Path(__file__).parent / "modeling_scen.py"
_ROUTING = ("reading.py", "second_look.py", "routing.py", "experts.py", "patch.py")
ROUTING = [Path(__file__).parents[1] / "model" / name for name in _ROUTING]


def export_checkpoint(patched: PatchedModel, folder: Path) -> list[Path]:
    """Write the folder; returns its files. It appears under its name only when it is whole.

    Raises `UsageError` when there is nothing to export, the folder is not empty, or the base's
    class is not one of transformers' own.
    """
    if not patched.patch().edits:
        raise UsageError("no edit is in force: there is nothing to export", hint="`scen edit edits.jsonl` makes some")
    folder = folder.resolve()
    if folder == Path.cwd() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError(f"`{folder}` is not a new or empty folder", hint="choose another `--out`")
    base_class = type(patched.model).__name__
    if not hasattr(transformers, base_class):
        raise UsageError(f"the base's class `{base_class}` is not part of transformers")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as aside:
        draft = Path(aside) / "draft"
        with patched.steady() as patch:
            _write(patched, patch, draft, base_class)
        for path in draft.iterdir():  # some writers make files that only their owner may read
            path.chmod((draft / "config.json").stat().st_mode)
        draft.replace(folder)
    return sorted(folder.iterdir())


def _write(patched: PatchedModel, patch: ProjectPatch, draft: Path, base_class: str) -> None:
    model = patched.model
    experts = patch.bank.experts
    everything = torch.arange(len(patch.edits))
    if patch.damaged or (experts.fetch(everything) != everything).any():
        raise DamageFound("an edit in force is damaged: nothing was exported", hint=WHAT_HELPS)
    ranks = experts.ranks.tolist()
    full = {f"scen.full.{row}": experts.full(row).cpu() for row, rank in enumerate(ranks) if rank == 0}
    whitening = patch.bank.whitening
    h = patched.edited.ffn_width
    index = {
        "neurons": patch.bank.neurons,
        "biases": patch.bank.biases,
        "mean": whitening.mean if whitening else torch.zeros(h),
        "axes": whitening.axes if whitening else torch.zeros(0, h),
        "scales": whitening.scales if whitening else torch.zeros(0),
        "lora_A": experts.a,
        "lora_B": experts.b,
    }
    tensors = {**model.state_dict(), **{f"scen.{name}": tensor.cpu() for name, tensor in index.items()}, **full}
    model.save_pretrained(draft, state_dict=tensors)

    reading = patch.routing.reading
    config = copy.deepcopy(model.config)
    config.architectures = ["ScenForCausalLM"]
    config.auto_map = {"AutoModelForCausalLM": "modeling_scen.ScenForCausalLM"}
    config.scen = {
        "module": patched.edited.module_name,
        "keys_at": patched.edited.down_proj_name,
        "h": h,
        "axes": len(index["axes"]),
        "layer": patched.edited.index,
        "edits": patch.edits,
        "expert_shape": list(patched.edited.projection_shape),
        "ranks": ranks,
        "theta": patch.theta,
        "subjects": [[list(form) for form in forms] for forms in patch.forms],
        "cosine": patch.routing.cosine,
        "sure": patch.routing.sure,
        "reading": {**vars(reading), "sentence_ends": sorted(reading.sentence_ends)},
        "template": patched.template.form,
    }
    config.save_pretrained(draft)
    # Plain `generate(**inputs)` is to answer as `scen ask` does: greedily, and to the answer's end.
    GenerationConfig(
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=list(patched.template.end_ids),
        pad_token_id=patched.pad_id,
        do_sample=False,
        max_new_tokens=patched.longest_answer(),
    ).save_pretrained(draft)
    tokenizer = copy.deepcopy(patched.base.tokenizer)
    tokenizer.padding_side = "left"  # generation goes on from the right end of every row
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(draft)

    for file in (*ROUTING, MODELING):
        code = file.read_text(encoding="utf-8").replace("from scen_cli.model.", "from .")
        code = code.replace("LlamaForCausalLM", base_class) if file == MODELING else code
        (draft / file.name).write_text(code, encoding="utf-8")
    (draft / "README.md").write_text(model_card(patched, list(patch.expert_of)), encoding="utf-8")
