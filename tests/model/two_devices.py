"""Two simulated devices: every tensor has a label, and operations on tensors with different labels fail.

The CPU computes everything. Tensors that no torch function made, such as gradients, have no label and go with both.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("xpu", 0), torch.device("xpu", 1)
FREE = {"copy_", "__setitem__", "set_", "__set__", "__get__", "requires_grad_"}  # may mix devices


class TwoDevices(TorchFunctionMode):
    """Inside this block, tensors carry the label of the device that they were sent to."""

    def __init__(self) -> None:
        super().__init__()
        self.of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def put(self, module: nn.Module, device: torch.device) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            self.of[tensor] = device

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function == Tensor.device.__get__:
            return self.of.get(args[0], CPU)
        if function == Tensor.is_cpu.__get__:
            return self.of.get(args[0], CPU) == CPU
        if function == Tensor.cpu:
            function, kwargs = Tensor.to, {"device": CPU}
        sent, args, kwargs = self._sent(function, args, kwargs)
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
        device = sent or self._common_device(function, args, tensors)
        out = function(*args, **kwargs)
        if device is not None:
            tree_map(lambda item: self._label(item, device), out)
        return out

    def _label(self, item: Any, device: torch.device) -> Any:
        if isinstance(item, Tensor):
            self.of[item] = device
        return item

    def _sent(self, function: Any, args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
        """The requested device, and the arguments with the CPU instead of it."""
        found = kwargs.get("device")
        if found is None and function.__name__ == "to":
            found = next((arg for arg in args[1:] if isinstance(arg, (torch.device, str, int))), None)
            like = next((arg for arg in args[1:] if isinstance(arg, Tensor)), None)
            if like is not None:
                return self.of.get(like, CPU), args, kwargs
        if found is None:
            creates = not any(isinstance(item, Tensor) for item in tree_flatten((args, kwargs))[0])
            return (CPU if creates else None), args, kwargs
        device = torch.device("xpu", found) if isinstance(found, int) else torch.device(found)
        if "device" in kwargs:
            kwargs["device"] = CPU
        on_cpu = tuple(CPU if index and arg is found else arg for index, arg in enumerate(args))
        if function.__name__ == "to" and device != self.of.get(args[0], CPU):
            kwargs["copy"] = True  # else torch returns the same tensor, which must keep its label
        return device, on_cpu, kwargs

    def _common_device(self, function: Any, args: Any, tensors: list[Tensor]) -> torch.device | None:
        """The device of a function's result. Raises `RuntimeError` if its arguments have different devices."""
        known = [(tensor, self.of[tensor]) for tensor in tensors if tensor in self.of]
        if not known:
            return None
        if function.__name__ in FREE:
            return self.of.get(args[0]) if isinstance(args[0], Tensor) else None
        if function.__name__ == "__getitem__":
            known = [known[0], *((index, device) for index, device in known[1:] if device != CPU)]
        devices = {device for tensor, device in known if tensor.dim() or device != CPU} or {CPU}  # CPU scalars may mix
        if len(devices) > 1:
            shapes = [(tuple(tensor.shape), str(device)) for tensor, device in known]
            raise RuntimeError(f"{function.__name__} of tensors on different devices: {shapes}")
        return devices.pop()


def spread(model: Any, devices: TwoDevices, last_of_first: int) -> None:
    """Put layers up to `last_of_first` on the first device, the rest on the second; accelerate's hooks move tensors."""
    parts = {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.norm": SECOND, "lm_head": SECOND}
    parts |= {
        f"model.layers.{index}": FIRST if index <= last_of_first else SECOND for index in range(len(model.model.layers))
    }
    for name, device in parts.items():
        devices.put(model.get_submodule(name), device)
    for name, device in {"": FIRST, **parts}.items():
        hook = AlignDevicesHook(io_same_device=name == "")
        add_hook_to_module(model.get_submodule(name), hook)
        hook.execution_device = device  # only now: `add_hook_to_module` would move the weights to it
