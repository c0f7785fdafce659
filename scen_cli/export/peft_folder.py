"""Export for PEFT and engines that load its adapters, such as vLLM: one LoRA per expert, and the router as data.

An expert is the projection plus B A: a LoRA of rank r with alpha = r, whose scaling is 1.
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

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.editing.project_patch import ProjectPatch
from scen_cli.errors import UsageError
from scen_cli.export.model_card import write_card
from scen_cli.export.output_files import make_readable, new_folder
from scen_cli.export.router import exportable_patch, router_of
from scen_cli.model.known_bases import hub_name

# One line for each step of the routing, for somebody who implements it: written into router.json.
ABOUT = Path(__file__).with_name("routing_steps.txt").read_text(encoding="utf-8").splitlines()


def export_adapters(
    patched: PatchedModel, folder: Path, *, base_name: str | None = None, license: str | None = None
) -> list[Path]:
    """Write `edit-000001/` and so on, `router.json`, `router.safetensors` and a model card.

    Args:
        patched: The project's model.
        folder: A new or empty folder.
        base_name: The base's name in the adapters' configs, which an engine compares with the model that it serves;
            None: the project's name of the base.
        license: The licence of the edits, for the model card.

    Returns:
        All files.

    Raises:
        UsageError: No edit is active, the folder is not empty, or an expert is not low-rank.
    """
    with exportable_patch(patched) as patch, new_folder(folder) as draft:
        adapters = [adapter_name(edit) for edit in patch.edits]
        for row, name in enumerate(adapters):
            write_adapter(patched, patch, row, draft / name, base_name)
        router = router_of(patched, patch)
        _write_json(draft / "router.json", {"about": ABOUT, "format": 1, "adapters": adapters, **router.settings})
        save_file(router.tensors, draft / "router.safetensors", {"format": "pt"})
        write_card("adapters", draft, patched, list(patch.expert_of), license)
    return sorted(path for path in folder.resolve().rglob("*") if path.is_file())


def adapter_name(edit: int) -> str:
    """`edit-000123`: the folder of an edit's LoRA, and its name in an engine."""
    return f"edit-{edit:06d}"


def write_adapter(
    patched: PatchedModel, patch: ProjectPatch, row: int, folder: Path, base_name: str | None = None
) -> None:
    """Write one expert as a folder that PEFT loads. Raises `UsageError` if the expert is a full matrix."""
    experts, module = patch.bank.experts, patched.edited.module_name
    rank, start = int(experts.ranks[row]), int(experts.starts[row])
    if not rank:
        hint = "`scen compress` makes low-rank experts of full ones"
        raise UsageError(f"the expert of edit {patch.edits[row]} is a full matrix, not a LoRA", hint=hint)
    rows = slice(start, start + rank)
    a, b = experts.a[rows].float().cpu(), experts.b[rows].float().cpu()
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or hub_name(patched.project.settings["model"]),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": [module],
        "fan_in_fan_out": isinstance(patched.edited.projection, Conv1D),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    _write_json(folder / "adapter_config.json", config)
    prefix = f"base_model.model.{module}"
    tensors = {f"{prefix}.lora_A.weight": a.contiguous(), f"{prefix}.lora_B.weight": b.T.contiguous()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def add_adapters(
    patched: PatchedModel,
    patch: ProjectPatch,
    folder: Path,
    base_name: str | None = None,
    known: set[int] | None = None,
) -> list[str]:
    """Write the adapters of a patch that a folder does not have yet, for an engine that loads LoRAs on demand.

    Args:
        patched: The project's model.
        patch: The active edits.
        folder: The folder of adapters. Each adapter is written completely or not at all.
        base_name: As in `export_adapters`.
        known: Edits whose adapters are in the folder: they are skipped. New ones are added to the set.

    Returns:
        The names of the new adapters.

    Raises:
        UsageError: The folder has a different adapter of the same name, from another project.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = set() if known is None else known
    written = []
    for row, edit in enumerate(patch.edits):
        damaged = edit not in known and patch.bank.experts.fetch(torch.tensor([row])).item() != row
        if edit in known or damaged:  # the base replaces a damaged expert
            continue
        name = adapter_name(edit)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as temporary:
            draft = Path(temporary) / name
            write_adapter(patched, patch, row, draft, base_name)
            make_readable(draft)
            with suppress(OSError):  # the adapter exists; another process may have written it just now
                draft.replace(folder / name)
                written.append(name)
            if any(path.read_bytes() != (folder / name / path.name).read_bytes() for path in draft.glob("*")):
                raise UsageError(f"`{folder / name}` belongs to another project", hint="use one folder per project")
        known.add(edit)
    return written


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
