"""A base larger than a GPU: its matrices held in 8 or 4 bits, or its layers spread over the devices there are.

Both are transformers' own ways (`quantization_config`, `device_map`). Experts, neurons and keys stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from scen_cli.errors import UsageError

QUANTIZED = ("8bit", "4bit")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # of accelerate
_HINT = "pip install 'scen-cli[large]'"


def loading_options(
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    quantize: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `from_pretrained` is to be told of a base that is quantised or spread; nothing for any other.

    Raises `UsageError` for what is not known, or needs packages that are not here.
    """
    check_known(quantize, device_map if isinstance(device_map, str) else None)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    quantized_already = quantization_of(config) is not None
    if quantize is None and device_map is None and not quantized_already:
        return {}
    _need("accelerate")
    options: dict[str, Any] = {"device_map": device_map or {"": device}}
    if quantize is None:
        return options
    if quantized_already:
        raise UsageError("this base is quantised as it is", hint="leave out `--quantize`")
    _need("bitsandbytes")
    getLogger("bitsandbytes").setLevel(ERROR)  # of 8 bits it says at every step that they are computed with in 16
    told = quantization(quantize, dtype or config.dtype or torch.float32)
    return options | {"quantization_config": BitsAndBytesConfig(**told)}


def check_known(quantize: str | None, device_map: str | None) -> None:
    """Raise `UsageError` for a way of loading a base that is not known."""
    if quantize is not None and quantize not in QUANTIZED:
        raise UsageError(f"a base cannot be loaded in `{quantize}`", hint=f"one of: {', '.join(QUANTIZED)}")
    if device_map is not None and device_map not in DEVICE_MAPS:
        raise UsageError(f"device map `{device_map}` is not known", hint=f"one of: {', '.join(DEVICE_MAPS)}")


def check_held(model: PreTrainedModel, folder: Path, quantize: str | None) -> None:
    """Raise `UsageError` unless a model that was loaded from a folder is held as it is said to be."""
    if quantization_of(AutoConfig.from_pretrained(folder, trust_remote_code=False)) is not None:
        return  # it is quantised however it is loaded
    told = getattr(model.config, "quantization_config", None)
    held = next((bits for bits in QUANTIZED if getattr(told, f"load_in_{bits}", False)), None)
    if held != quantize:
        raise UsageError(
            f"the base is held in {held or 'its own dtype'}, and is to be in {quantize or 'its own dtype'}",
            hint="load it so: `load_base(..., quantize=...)`",
        )


def quantization(quantize: str, dtype: torch.dtype) -> dict[str, Any]:
    """Settings of a `BitsAndBytesConfig`, plain data: LLM.int8() (Dettmers et al. 2022), or NF4 (Dettmers et al. 2023)
    computed with in `dtype`."""
    if quantize == "8bit":
        return {"load_in_8bit": True}
    compute = str(dtype).removeprefix("torch.")
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}


def quantization_of(config: Any) -> str | None:
    """How a base's matrices are quantised (`bitsandbytes`, `gptq`, ...), if they are."""
    told = getattr(config, "quantization_config", None)
    if told is None:
        return None
    method = told.get("quant_method") if isinstance(told, dict) else told.quant_method
    return "bitsandbytes" if method is None else str(getattr(method, "value", method)).split("_")[0]


def is_whole(model: PreTrainedModel) -> bool:
    """Whether all weights are here, as the checkpoint has them: not quantised, none kept away from its device."""
    return quantization_of(model.config) is None and not any(one.is_meta for one in model.parameters())


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a matrix as it is stored, a copy in float32, on the device where it computes."""
    with _here(module):
        weight: Any = module.weight
        if quantized_by_bitsandbytes(module):
            from transformers.integrations.bitsandbytes import dequantize_bnb_weight

            weight = dequantize_bnb_weight(weight, getattr(module, "state", None))
        own: Tensor = weight.detach().to(torch.float32, copy=True)
        return own


def quantized_by_bitsandbytes(module: nn.Module) -> bool:
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def _here(module: nn.Module) -> AbstractContextManager[Any]:
    """A block in which a module's weights are where it computes."""
    if not module.weight.is_meta:
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module)


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise UsageError(f"`{package}` is not installed, which a base that is quantised or spread needs", hint=_HINT)
