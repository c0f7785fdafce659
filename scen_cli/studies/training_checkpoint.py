"""The checkpoint of a fine-tuning run: weights, Adam's moments and the run's state in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from scen_cli.errors import UsageError

CHECKPOINT = "checkpoint.safetensors"
WEIGHT = "weight"  # the tensor name is NAME|weight for a parameter and NAME|KEY for an entry of Adam's state


def save_checkpoint(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write the file under a temporary name, then rename it: an interrupted write leaves the previous checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in {WEIGHT: parameter.detach(), **optimizer.state[parameter]}.items():
            tensors[f"{name}|{key}"] = torch.as_tensor(value).contiguous().clone()
    temporary = path.with_name(f"{path.name}.tmp")
    save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    temporary.replace(path)


def load_checkpoint(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Load weights and moments into model and optimizer; return the run's state, or None if there is no checkpoint.

    Raises:
        UsageError: the checkpoint belongs to a run with other settings.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
        check_same_run(path.parent, state, settings)
        parameters = dict(model.named_parameters())
        for tensor_name in file.keys():  # noqa: SIM118 (the file object is no dictionary)
            name, _, key = tensor_name.rpartition("|")
            parameter, value = parameters[name], file.get_tensor(tensor_name)
            if key == WEIGHT:
                parameter.data.copy_(value)
            else:  # Adam keeps `step` on the CPU
                optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    return state


def check_same_run(folder: Path, state: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise `UsageError` if the saved state differs from the settings of this run."""
    different = next((name for name, value in settings.items() if state.get(name) != value), None)
    if different is not None:
        raise UsageError(
            f"`{folder}` holds a run with another {different}: {state.get(different)}", hint="give another --out"
        )
