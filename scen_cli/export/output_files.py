"""Writes an output folder completely or not at all, and casts its weights."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from scen_cli.errors import ScenError, UsageError

# Floating dtypes by their names in the format (https://github.com/huggingface/safetensors, "Format").
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHUNK = 4 << 20  # bytes; a multiple of every item size
_NAMES = {dtype: name for name, dtype in FLOATS.items()}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, and rename it to `folder` when the block ends without an error.

    Raises:
        UsageError: `folder` is not new or empty.
        ScenError: It cannot be written, as when the disk is full.
    """
    folder = folder.resolve()
    if folder == Path.cwd() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError(f"`{folder}` is not a new or empty folder", hint="choose another `--out`")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
        draft = Path(temporary) / "draft"
        draft.mkdir()
        try:
            yield draft
            make_readable(draft)
            draft.replace(folder)
        except (OSError, SafetensorError) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or str(error)
            hint = "is the disk full, or is a file missing that is read? Try again, or choose another `--out`"
            raise ScenError(f"`{folder}` could not be written, and nothing was exported: {why}", hint) from error


def make_readable(folder: Path) -> None:
    """Give all files the folder's read and write permissions: some libraries write files that only the owner reads."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def cast_file(path: Path, dtype: torch.dtype, keep: Callable[[str], bool]) -> None:
    """Cast the floating tensors of a file to `dtype`, except those whose name `keep` accepts.

    Only one chunk of a tensor is in memory at a time, and nothing is memory-mapped.
    """
    target_path = path.with_suffix(".cast")
    with path.open("rb") as source, target_path.open("wb") as target:
        (header_size,) = struct.unpack("<Q", source.read(8))
        old_header = json.loads(source.read(header_size))
        metadata = old_header.pop("__metadata__", None)
        tensors = sorted(old_header.items(), key=lambda item: item[1]["data_offsets"])
        new_header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        offset = 0
        for name, tensor in tensors:
            start, end = tensor["data_offsets"]
            size, changes = end - start, {}
            if tensor["dtype"] in FLOATS and not keep(name):
                size, changes = size // FLOATS[tensor["dtype"]].itemsize * dtype.itemsize, {"dtype": _NAMES[dtype]}
            new_header[name] = {**tensor, **changes, "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(new_header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        target.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            start, end = tensor["data_offsets"]
            source.seek(8 + header_size + start)
            for position in range(start, end, CHUNK):
                chunk: bytearray | memoryview = bytearray(source.read(min(CHUNK, end - position)))
                if tensor["dtype"] in FLOATS and not keep(name):
                    values = torch.frombuffer(chunk, dtype=FLOATS[tensor["dtype"]]).to(dtype)
                    chunk = values.view(torch.uint8).numpy().data
                target.write(chunk)
    target_path.replace(path)
