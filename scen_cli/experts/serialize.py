"""Send experts from a worker process: safetensors with JSON metadata, never pickled tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from scen_cli.experts.fit import ExpertFit
from scen_cli.experts.fit_records import FittedExpert
from scen_cli.model.expert_stack import LowRank

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
