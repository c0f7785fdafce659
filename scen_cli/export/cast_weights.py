"""A safetensors file in another dtype, piece by piece: the library writes whole files at once, from memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch

# What can be cast, by the format's names (https://github.com/huggingface/safetensors, "Format").
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PIECE = 4 << 20  # bytes, a whole number of values of any kind
_NAMES = {dtype: name for name, dtype in FLOATS.items()}


def cast_file(path: Path, dtype: torch.dtype, keep: Callable[[str], bool]) -> None:
    """Rewrite a file with its floating tensors in `dtype`, but for those whose name says `keep`. Only a piece of a
    tensor is in memory at a time, and nothing is mapped."""
    cast = path.with_suffix(".cast")
    with path.open("rb") as source, cast.open("wb") as target:
        (length,) = struct.unpack("<Q", source.read(8))
        told = json.loads(source.read(length))
        metadata = told.pop("__metadata__", None)
        in_order = sorted(told.items(), key=lambda item: item[1]["data_offsets"])
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        at = 0
        for name, tensor in in_order:
            begin, end = tensor["data_offsets"]
            changed = tensor["dtype"] in FLOATS and not keep(name)
            size = (end - begin) // FLOATS[tensor["dtype"]].itemsize * dtype.itemsize if changed else end - begin
            kind = _NAMES[dtype] if changed else tensor["dtype"]
            header[name] = {"dtype": kind, "shape": tensor["shape"], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        target.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in in_order:
            begin, end = tensor["data_offsets"]
            source.seek(8 + length + begin)
            for start in range(begin, end, PIECE):
                piece = bytearray(source.read(min(PIECE, end - start)))
                if tensor["dtype"] in FLOATS and not keep(name):
                    values = torch.frombuffer(piece, dtype=FLOATS[tensor["dtype"]]).to(dtype)
                    target.write(values.view(torch.uint8).numpy().data)
                else:
                    target.write(piece)
    cast.replace(path)
