"""Tensor files of a project: one per edit, and the merged neurons.

A file is written to a temporary name, flushed to the disk, and only then given its real name,
so that a name in the folder always stands for whole content. Tensors are float32; a low-rank expert, which
was fitted in float32 and tried as it is stored, is float16.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from scen_cli.errors import DamageFound

FORMAT = "scen-edit-1"
MERGED_FORMAT = "scen-merged-1"
GUARD_FORMAT = "scen-guard-1"


@dataclass(frozen=True)
class LowRankArrays:
    """A low-rank expert: `lora_A` (r, h), `lora_B` (d, r), float16."""

    lora_A: np.ndarray  # noqa: N815 (LoRA's own names)
    lora_B: np.ndarray  # noqa: N815

    @property
    def rank(self) -> int:
        return len(self.lora_A)


@dataclass(frozen=True)
class EditTensors:
    """What an expert weighs: `expert`, (d, h) or low-rank; its `neuron` (h,) and `key` (h,). Of edits that share it,
    `key` (n, h) holds one each. `refitted` (m, h) are neurons of earlier experts `refitted_of` (m,) that
    had to be fitted again for this one's sake."""

    expert: np.ndarray | LowRankArrays
    neuron: np.ndarray
    key: np.ndarray
    refitted: np.ndarray | None = None
    refitted_of: np.ndarray | None = None


@dataclass(frozen=True)
class StoredFile:
    """A file as the ledger remembers it: its name within the project, its sha256 and its bytes."""

    name: str
    sha256: str
    size: int


def write_edit(folder: Path, edit_id: int, tensors: EditTensors) -> StoredFile:
    """Write `edits/<id>-<sha8>.safetensors` durably."""
    there = {name: array for name, array in vars(tensors).items() if array is not None}
    if isinstance(tensors.expert, LowRankArrays):
        there |= vars(there.pop("expert"))
    # safetensors writes an array's memory as it lies: a transposed view would come back scrambled
    arrays = {name: np.ascontiguousarray(array, _DTYPES.get(name, np.float32)) for name, array in there.items()}
    content = save(arrays, metadata={"scen": json.dumps({"format": FORMAT, "edit": edit_id})})
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"edits/{edit_id:06d}-{sha256[:8]}.safetensors"
    write_durably(folder / name, content)
    return StoredFile(name, sha256, len(content))


_DTYPES = {"refitted_of": np.int64, "lora_A": np.float16, "lora_B": np.float16}


def read_expert(folder: Path, name: str) -> np.ndarray | LowRankArrays:
    """The expert of an edit's file. Raises `DamageFound` as `read_tensors` does."""
    expert, a, b = read_tensors(folder, name, ("expert?", "lora_A?", "lora_B?"))
    if not len(expert) and not (len(a) and len(b)):
        raise DamageFound(f"`{name}` holds no expert", hint="run `scen verify`")
    return expert if len(expert) else LowRankArrays(a, b)


def read_tensors(folder: Path, name: str, wanted: tuple[str, ...]) -> list[np.ndarray]:
    """The wanted tensors of one file, read without the others. One whose name ends in `?` may be lacking: it is
    then empty.

    Raises `DamageFound` when the file is missing, unreadable or lacks a tensor.
    """
    try:
        with safe_open(folder / name, framework="np") as file:
            there = set(file.keys())
            return [
                np.empty(0, np.float32)
                if tensor.endswith("?") and tensor[:-1] not in there
                else file.get_tensor(tensor.rstrip("?"))
                for tensor in wanted
            ]
    except (OSError, SafetensorError) as error:
        raise DamageFound(f"`{name}` cannot be read: {error}", hint="run `scen verify`") from error


def write_merged(folder: Path, edit_ids: list[int], neurons: np.ndarray) -> StoredFile:
    """Write `merged.safetensors`: W_merge (t, h) and the edit each row belongs to. The same rows
    always give the same bytes (safetensors orders several metadata keys at random: one is used)."""
    arrays = {"neurons": np.ascontiguousarray(neurons), "edits": np.asarray(edit_ids, dtype=np.int64)}
    content = save(arrays, metadata={"scen": json.dumps({"format": MERGED_FORMAT})})
    write_durably(folder / "merged.safetensors", content)
    return StoredFile("merged.safetensors", hashlib.sha256(content).hexdigest(), len(content))


def write_guard(folder: Path, tensors: dict[str, np.ndarray]) -> StoredFile:
    """Write `guard-<sha8>.safetensors`: keys of the guard prompts, and the whitening they give."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    content = save(arrays, metadata={"scen": json.dumps({"format": GUARD_FORMAT})})
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"guard-{sha256[:8]}.safetensors"
    write_durably(folder / name, content)
    return StoredFile(name, sha256, len(content))


def write_durably(path: Path, content: bytes) -> None:
    """Temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot fsync a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
