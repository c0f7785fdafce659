"""Export for PEFT and the engines that take its folders: one LoRA for each expert, and the router beside them.

An expert is the base's projection plus B A: a LoRA of rank r with alpha = r, whose scaling is 1.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from scen_cli.editing.expert_bank import ProjectPatch
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.errors import UsageError
from scen_cli.export.model_card import adapters_card
from scen_cli.export.output_folder import make_readable, new_folder
from scen_cli.export.router import all_there, router_of
from scen_cli.model.base import hub_name

ROUTER = "router"
ABOUT = (
    "A prompt's tokens run through the base up to layer `layer`; its key is the input of `keys_at` at the last token "
    "(key_config.pooling). Centred on `mean`, at unit length, shrunk along `axes` by 1 + `scales` and at unit length again "
    "(if there are axes), its cosine with each row of `neurons`, less the row's bias, is the row's activation. The "
    "largest row whose subject occurs in the prompt's tokens, if any are listed in `subjects`, calls its adapter for "
    "the whole sequence if it passes `theta`; otherwise the base answers. With `cosine` false activations are "
    "sigmoid(neuron . key). With key_config.segments the last turn and the last sentence are read too, each as if asked "
    "alone, unless the whole prompt gives `own_activation_floor` or more; the largest activation counts. With `quantization` the base "
    "must be loaded in it: a `BitsAndBytesConfig` of transformers."
)


def export_adapters(
    patched: PatchedModel, folder: Path, *, base_name: str | None = None, license: str | None = None
) -> list[Path]:
    """Write `edit-000001/` and so on, `router.json`, `router.safetensors` and a card; returns all files.

    `base_name` is what the adapters' configs say of their base (an engine compares it with the name it serves); none:
    the project's own. Raises `UsageError` when there is nothing to export, the folder is not empty, or an expert is
    not low-rank.
    """
    with all_there(patched) as patch, new_folder(folder) as draft:
        for row in range(len(patch.edits)):
            write_adapter(patched, patch, row, draft / adapter_name(patch.edits[row]), base_name)
        router = router_of(patched, patch)
        adapters = [adapter_name(edit) for edit in patch.edits]
        told = {"about": ABOUT, "format": 1, "adapters": adapters, **router.settings}
        (draft / f"{ROUTER}.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        save_file(router.tensors, draft / f"{ROUTER}.safetensors", {"format": "pt"})
        card = adapters_card(patched, list(patch.expert_of), license)
        (draft / "README.md").write_text(card, encoding="utf-8")
    return sorted(path for path in folder.resolve().rglob("*") if path.is_file())


def adapter_name(edit: int) -> str:
    """`edit-000123`: the folder of an edit's LoRA, and the name that an engine serves it by."""
    return f"edit-{edit:06d}"


def write_adapter(
    patched: PatchedModel, patch: ProjectPatch, row: int, folder: Path, base_name: str | None = None
) -> None:
    """One expert as a folder that PEFT loads. Raises `UsageError` if it is a full one."""
    experts, module = patch.bank.experts, patched.edited.module_name
    rank, start = int(experts.ranks[row]), int(experts.starts[row])
    if not rank:
        raise UsageError(
            f"the expert of edit {patch.edits[row]} is a full matrix, not a LoRA",
            hint="`scen compress` makes low-rank experts of full ones",
        )
    place = slice(start, start + rank)
    a, b = experts.a[place].float().cpu(), experts.b[place].float().cpu()
    folder.mkdir()
    config = _config(rank, module, base_name or hub_name(patched.project.settings["model"]))
    config["fan_in_fan_out"] = isinstance(patched.edited.projection, Conv1D)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    names = [f"base_model.model.{module}.lora_{letter}.weight" for letter in "AB"]
    tensors = dict(zip(names, (a.contiguous(), b.T.contiguous()), strict=True))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def add_adapters(
    patched: PatchedModel,
    patch: ProjectPatch,
    folder: Path,
    base_name: str | None = None,
    known: set[int] | None = None,
) -> list[str]:
    """Write those adapters of a patch that a folder does not have yet, each whole or not at all; returns their names.
    (An engine that reads the folder as it is asked can serve them from then on.) Edits that are `known` to be there are
    passed over, and all others are known afterwards.

    Raises `UsageError` if the folder has another expert by one of these names: it is another project's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row, edit in enumerate(patch.edits):
        name = adapter_name(edit)
        if known is not None and edit in known:
            continue
        if patch.bank.experts.fetch(torch.tensor([row])).item() != row:
            continue  # quarantined
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as aside:
            made = Path(aside) / name
            write_adapter(patched, patch, row, made, base_name)
            make_readable(made)
            with suppress(OSError):  # it is there, perhaps since a moment ago
                made.replace(folder / name)
                written.append(name)
            if made.exists() and not _same(made, folder / name):
                raise UsageError(
                    f"`{folder / name}` is not this project's", hint="give each project a folder of its own"
                )
    return written


def _same(one: Path, other: Path) -> bool:
    return all(path.read_bytes() == (other / path.name).read_bytes() for path in one.iterdir())


def _config(rank: int, module: str, base_name: str) -> dict[str, Any]:
    """What PEFT's `LoraConfig` and vLLM's loader read."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": [module],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
