"""`TrainingWorker`: trains experts in another process and sends them as safetensors, never as pickled tensors.
`process_pool` and `ray_pool` run it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from scen_cli.experts.fit import ExpertFit
from scen_cli.experts.fit_records import FittedExpert, Group, fit
from scen_cli.model.expert_stack import LowRank
from scen_cli.model.loaded_base import LoadedBase
from scen_cli.recipe import stored_recipe

_METADATA = "metadata"  # a tensor of bytes: JSON


def experts_to_bytes(experts: Sequence[FittedExpert]) -> bytes:
    """Serialise experts with their losses, status and training time."""
    tensors: dict[str, Tensor] = {}
    metadata: list[dict[str, Any]] = []
    for index, fitted in enumerate(experts):
        fit, expert = fitted.fit, fitted.fit.expert
        parts = {"full": expert} if isinstance(expert, Tensor) else {"a": expert.a, "b": expert.b}
        tensors |= {f"{index}.{name}": part.detach().cpu().contiguous() for name, part in parts.items()}
        status = {"losses": fit.losses, "wrong_tokens": fit.wrong_tokens, "logit_margin": fit.logit_margin}
        metadata.append({"fit": status, "seconds": fitted.seconds})
    text = json.dumps(metadata).encode()
    return bytes(save({**tensors, _METADATA: torch.frombuffer(bytearray(text), dtype=torch.uint8)}))


def experts_from_bytes(data: bytes) -> list[FittedExpert]:
    """The experts that `experts_to_bytes` serialised, bit for bit."""
    tensors = load(data)
    experts = []
    for index, entry in enumerate(json.loads(bytes(tensors[_METADATA].tolist()))):
        full = tensors.get(f"{index}.full")
        expert = LowRank(tensors[f"{index}.a"], tensors[f"{index}.b"]) if full is None else full
        experts.append(FittedExpert(ExpertFit(expert, **entry["fit"]), entry["seconds"]))
    return experts


class TrainingWorker:
    """Has its own copy of the base, loaded with the first batch. It knows the project's settings, but never touches the
    project's folder: only the parent process writes.

    Args:
        settings: The project's settings.
        device: As in `base.pick_device`.
        threads: Torch's number of threads: the parent's, because the last digits of results depend on it.
    """

    def __init__(self, settings: Mapping[str, Any], device: str, threads: int) -> None:
        self._settings, self._device, self._threads = settings, device, threads

    @cached_property
    def _loaded(self) -> LoadedBase:
        torch.set_num_threads(self._threads)
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        return LoadedBase(self._settings, self._device)

    def fit(self, groups: Sequence[Group]) -> bytes:
        """Train a batch; returns `experts_to_bytes`. Raises `UsageError` if the project's base cannot be loaded."""
        return experts_to_bytes(fit(self._loaded, groups, stored_recipe(dict(self._settings))))

    def ping(self) -> None:
        """Return as soon as the worker runs."""
