"""Export for transformers: `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`.

The folder contains the base's weights (or only their name and digest: `patch_only`), the experts and W_merge, the
tokenizer, a model card, and code: `modeling_scen.py`, a subclass of the base's class, with the files of
`scen_cli.model` that it imports (`ROUTING_CODE`).
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.editing.project_patch import ProjectPatch
from scen_cli.errors import UsageError
from scen_cli.export.model_card import write_card
from scen_cli.export.output_files import cast_file, new_folder
from scen_cli.export.router import exportable_patch, router_of
from scen_cli.model.base import DTYPES, load_base
from scen_cli.model.chat_template import chat_template_of
from scen_cli.model.known_bases import hub_name
from scen_cli.model.quantization import is_whole, quantization

MODELING = Path(__file__).parent / "modeling_scen.py"
_FILES = (
    *("data/words.py", "model/name_index.py", "model/device.py", "model/digest.py", "model/keys.py"),
    *("model/subject_filter.py", "model/routing.py", "model/expert_stack.py", "model/patch.py"),
)
ROUTING_CODE = [Path(__file__).parents[1] / name for name in _FILES]  # these import torch only
PATCH_FILE = "scen.safetensors"
MAX_SHARD_SIZE = "1GB"


def export_checkpoint(
    patched: PatchedModel,
    folder: Path,
    *,
    patch_only: bool = False,
    dtype: str | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    license: str | None = None,
) -> list[Path]:
    """Write a folder for transformers.

    Args:
        patched: The project's model.
        folder: A new or empty folder. It appears only when it is complete.
        patch_only: Do not write the base's weights. `from_pretrained` downloads the base and checks its digest.
        dtype: Cast the base's weights, not the experts; None: no cast.
        max_shard_size: The largest file of weights, e.g. `1GB`.
        license: The licence of the edits, for the model card.

    Returns:
        The files.

    Raises:
        UsageError: No edit is active, the folder is not empty, or the base's class is not part of transformers.
    """
    base_class = type(patched.model).__name__
    if not hasattr(transformers, base_class):
        raise UsageError(f"the base's class `{base_class}` is not part of transformers")
    if dtype is not None and (dtype not in DTYPES or patch_only):
        hint = f"one of: {', '.join(DTYPES)}; `--patch-only` writes no weights to cast"
        raise UsageError(f"cannot cast the weights to `{dtype}`", hint=hint)
    quantize = patched.project.settings.get("quantize")
    with exportable_patch(patched) as patch, new_folder(folder) as draft:
        router = router_of(patched, patch)
        tensors = {f"scen.{name}": tensor for name, tensor in {**router.tensors, **_experts(patch)}.items()}
        config = copy.deepcopy(patched.model.config)
        config.dtype = DTYPES[dtype] if dtype else patched.model.dtype
        if patch_only:
            save_file(tensors, draft / PATCH_FILE, {"format": "pt"})
            settings = patched.project.settings  # with which `from_pretrained` finds and checks the base
            base = {"name": hub_name(settings["model"]), "revision": settings["revision"]}
            router.settings["base"] = {**base, "digest": settings["weights_digest"]}
        else:
            save_weights(patched, draft, tensors, dtype, max_shard_size)
        if quantize:  # the files have the original weights; `from_pretrained` quantises them
            del config.quantization_config
            router.settings["quantization"] = quantization(quantize, config.dtype)
        config.architectures = ["ScenForCausalLM"]
        config.auto_map = {"AutoModelForCausalLM": "modeling_scen.ScenForCausalLM"}
        config.scen = router.settings
        config.save_pretrained(draft)
        save_tokenizer_and_generation(patched, draft)
        for file in (*ROUTING_CODE, MODELING):
            code = re.sub(r"from scen_cli\.(data|model)\.", "from .", file.read_text(encoding="utf-8"))
            code = code.replace("LlamaForCausalLM", base_class) if file == MODELING else code
            (draft / file.name).write_text(code, encoding="utf-8")
        write_card("patch-only" if patch_only else "checkpoint", draft, patched, list(patch.expert_of), license)
    return sorted(folder.resolve().iterdir())


def _experts(patch: ProjectPatch) -> dict[str, Tensor]:
    """The experts: low-rank ones in two stacked tensors, full ones by their row."""
    experts = patch.bank.experts
    full = [row for row, rank in enumerate(experts.ranks.tolist()) if rank == 0]
    stacked = {"lora_A": experts.a.cpu(), "lora_B": experts.b.cpu()}
    return stacked | {f"full.{row}": experts.full(row).cpu() for row in full}


def save_weights(
    patched: PatchedModel, draft: Path, tensors: dict[str, Tensor], dtype: str | None, max_shard_size: str
) -> None:
    """Write the base's weights in shards, then cast the files to `dtype`. `tensors` replace weights or add to them."""
    if re.fullmatch(r"[1-9]\d*[KMG]B", max_shard_size) is None:
        raise UsageError(f"`{max_shard_size}` is not a file size", hint="e.g. 500MB or 5GB")
    model = _original_model(patched)
    model.save_pretrained(draft, state_dict={**model.state_dict(), **tensors}, max_shard_size=max_shard_size)
    if dtype is None or DTYPES[dtype] == model.dtype:
        return
    for shard in draft.glob("*.safetensors"):
        cast_file(shard, DTYPES[dtype], keep=lambda name: name.startswith("scen."))
    index_file = draft / "model.safetensors.index.json"
    if index_file.exists():
        index = json.loads(index_file.read_text(encoding="utf-8"))
        index["metadata"]["total_size"] = sum(path.stat().st_size for path in draft.glob("*.safetensors"))
        index_file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _original_model(patched: PatchedModel) -> PreTrainedModel:
    """The base with the weights of its checkpoint: loaded again if it is quantised or offloaded."""
    if is_whole(patched.model):
        return patched.model
    model = load_base(str(patched.base.folder), dtype=patched.project.settings["dtype"], device="cpu").model
    if not is_whole(model):
        raise UsageError(
            "the base's checkpoint is quantised: its weights cannot be written", hint="`--patch-only`, or `--peft`"
        )
    return model


def save_tokenizer_and_generation(patched: PatchedModel, draft: Path) -> None:
    """Write the tokenizer, and a generation config with which `generate(**inputs)` answers as `scen ask` does: greedy,
    up to the answer's end."""
    GenerationConfig(
        bos_token_id=patched.model.generation_config.bos_token_id,
        eos_token_id=list(patched.template.end_ids),
        pad_token_id=patched.pad_id,
        do_sample=False,
        max_new_tokens=patched.longest_answer(),
    ).save_pretrained(draft)
    tokenizer = copy.deepcopy(patched.base.tokenizer)
    if patched.template.day is not None:
        tokenizer.chat_template = chat_template_of(tokenizer, patched.template.day)
    tokenizer.padding_side = "left"  # `generate` continues each row at its right end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(draft)
    # transformers 5 writes these two settings under names that transformers 4 does not know; 5 reads both.
    file = draft / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
