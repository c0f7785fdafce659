"""Export for transformers: `AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)`.

The folder holds the experts and W_merge beside the base's weights (or alone: then the base is fetched as it is loaded),
the tokenizer, a model card, and files of code: those that scen itself runs (`ROUTING`), and `modeling_scen.py`, a
class that puts them around the base's own.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from scen_cli.editing.expert_bank import ProjectPatch
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import UsageError
from scen_cli.export.cast_weights import cast_file
from scen_cli.export.model_card import checkpoint_card
from scen_cli.export.output_folder import new_folder
from scen_cli.export.router import all_there, router_of
from scen_cli.model.base import DTYPES, hub_name, load_base
from scen_cli.model.quantization import is_whole, quantization

MODELING = Path(__file__).parent / "modeling_scen.py"
_ROUTING = ("device.py", "digest.py", "keys.py", "subject_filter.py", "routing.py", "expert_stack.py", "patch.py")
ROUTING = [Path(__file__).parents[1] / "model" / name for name in _ROUTING]
PATCH_FILE = "scen.safetensors"
SHARD = "1GB"


def export_checkpoint(
    patched: PatchedModel,
    folder: Path,
    *,
    patch_only: bool = False,
    dtype: str | None = None,
    max_shard_size: str = SHARD,
    license: str | None = None,
) -> list[Path]:
    """Write the folder; returns its files. It appears under its name only when it is whole.

    With `patch_only` the base's weights stay away: whoever loads the folder fetches them by their name, and their
    digest is checked. `dtype` casts the base's weights (experts stay as they are); none: they stay as the
    project has them. `license` is the edits' own, for the model card.
    Raises `UsageError` when there is nothing to export, the folder is not empty, or the base's
    class is not one of transformers' own.
    """
    base_class = type(patched.model).__name__
    if not hasattr(transformers, base_class):
        raise UsageError(f"the base's class `{base_class}` is not part of transformers")
    if dtype is not None and (dtype not in DTYPES or patch_only):
        known = f"one of: {', '.join(DTYPES)}; a patch alone has no weights to cast"
        raise UsageError(f"dtype `{dtype}` cannot be exported", hint=known)
    quantize = patched.project.settings.get("quantize")
    with all_there(patched) as patch, new_folder(folder) as draft:
        router, tensors = router_of(patched, patch), experts_of(patch)
        tensors = {f"scen.{name}": tensor for name, tensor in {**router.tensors, **tensors}.items()}
        config = copy.deepcopy(patched.model.config)
        config.dtype = DTYPES[dtype] if dtype else patched.model.dtype
        if patch_only:
            save_file(tensors, draft / PATCH_FILE, {"format": "pt"})
            router.settings["base"] = base_of(patched)
        else:
            save_weights(patched, draft, tensors, dtype, max_shard_size)
        if quantize:  # the weights are written whole, and quantised as they are loaded
            del config.quantization_config
            router.settings["quantization"] = quantization(quantize, config.dtype)
        config.architectures = ["ScenForCausalLM"]
        config.auto_map = {"AutoModelForCausalLM": "modeling_scen.ScenForCausalLM"}
        config.scen = router.settings
        config.save_pretrained(draft)
        save_surroundings(patched, draft)
        for file in (*ROUTING, MODELING):
            code = file.read_text(encoding="utf-8").replace("from scen_cli.model.", "from .")
            code = code.replace("LlamaForCausalLM", base_class) if file == MODELING else code
            (draft / file.name).write_text(code, encoding="utf-8")
        card = checkpoint_card(patched, list(patch.expert_of), license, patch_only)
        (draft / "README.md").write_text(card, encoding="utf-8")
    return sorted(folder.resolve().iterdir())


def experts_of(patch: ProjectPatch) -> dict[str, Tensor]:
    """The experts of a patch: low-rank ones stacked, full ones by their rows."""
    experts = patch.bank.experts
    full = [row for row, rank in enumerate(experts.ranks.tolist()) if rank == 0]
    stacked = {"lora_A": experts.a.cpu(), "lora_B": experts.b.cpu()}
    return stacked | {f"full.{row}": experts.full(row).cpu() for row in full}


def base_of(patched: PatchedModel) -> dict[str, Any]:
    """Where a base is found again, and the digest by which it is known."""
    settings = patched.project.settings
    return {
        "name": hub_name(settings["model"]),
        "revision": settings["revision"],
        "digest": settings["weights_digest"],
    }


def save_weights(
    patched: PatchedModel, draft: Path, more: dict[str, Tensor], dtype: str | None, max_shard_size: str
) -> None:
    """The base's weights, replaced and joined by `more`, in shards; cast, if they are to be, once they are written."""
    if re.fullmatch(r"[1-9]\d*[KMG]B", max_shard_size) is None:
        raise UsageError(f"`{max_shard_size}` is no size of a file", hint="e.g. 500MB or 5GB")
    model = _whole(patched)
    model.save_pretrained(draft, state_dict={**model.state_dict(), **more}, max_shard_size=max_shard_size)
    if dtype is None or DTYPES[dtype] == model.dtype:
        return
    for shard in draft.glob("*.safetensors"):
        cast_file(shard, DTYPES[dtype], keep=lambda name: name.startswith("scen."))
    index = draft / "model.safetensors.index.json"
    if index.exists():
        told = json.loads(index.read_text(encoding="utf-8"))
        told["metadata"]["total_size"] = sum(path.stat().st_size for path in draft.glob("*.safetensors"))
        index.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _whole(patched: PatchedModel) -> PreTrainedModel:
    """The base with its weights as the checkpoint has them: loaded once more if it is quantised or kept elsewhere."""
    if is_whole(patched.model):
        return patched.model
    model = load_base(str(patched.base.folder), dtype=patched.project.settings["dtype"], device="cpu").model
    if not is_whole(model):
        raise UsageError(
            "the base's checkpoint is quantised: its weights are not written anew", hint="`--patch-only`, or `--peft`"
        )
    return model


def save_surroundings(patched: PatchedModel, draft: Path) -> None:
    """The tokenizer, and a generation config by which plain `generate(**inputs)` answers as `scen ask` does: greedily,
    and to the answer's end."""
    GenerationConfig(
        bos_token_id=patched.model.generation_config.bos_token_id,
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
    _by_older_names(draft / "tokenizer_config.json")


def _by_older_names(file: Path) -> None:
    """A tokenizer's config by the names that transformers 4 knows; transformers 5 knows both."""
    told = json.loads(file.read_text(encoding="utf-8"))
    if told.get("tokenizer_class") == "TokenizersBackend":
        told["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(told.get("extra_special_tokens"), list):
        told["additional_special_tokens"] = told.pop("extra_special_tokens")
    file.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
