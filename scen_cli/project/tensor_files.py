"""Tensor files of a project: one per edit, the guard's, and the merged neurons. safetensors, never a pickle.

Tensors are float32; a low-rank expert, which was fitted in float32 and tried as it is stored, is float16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from scen_cli.errors import DamageFound
from scen_cli.project.disk import write_durably

FORMAT = "scen-edit-1"
MERGED_FORMAT = "scen-merged-1"
GUARD_FORMAT = "scen-guard-1"
MERGED = "merged.safetensors"
RESTORE_IT = "`scen verify --deep` tells more; restore the file from a backup, or `scen revert` its edit"
INDEX = ("neuron", "key", "refitted", "refitted_of")  # of an edit's tensors, those that routing is made of


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
    """A file as the ledger remembers it: its name within the project, its sha256 and its bytes; of an edit's, also
    the sha256 of what it holds for routing."""

    name: str
    sha256: str
    size: int
    index_sha256: str = ""


def write_edit(folder: Path, edit_id: int, tensors: EditTensors) -> StoredFile:
    """Write `edits/<id>-<sha8>.safetensors` durably. Raises `DamageFound` if `edits` is a link: the file would lie
    elsewhere."""
    if (folder / "edits").is_symlink():
        raise DamageFound("`edits` is a link: a project's files lie in its folder", hint=RESTORE_IT)
    there = {name: array for name, array in vars(tensors).items() if array is not None}
    if isinstance(tensors.expert, LowRankArrays):
        there |= vars(there.pop("expert"))
    # safetensors writes an array's memory as it lies: a transposed view would come back scrambled
    arrays = {name: np.ascontiguousarray(array, DTYPES.get(name, np.float32)) for name, array in there.items()}
    content = save(arrays, metadata={"scen": json.dumps({"format": FORMAT, "edit": edit_id})})
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"edits/{edit_id:06d}-{sha256[:8]}.safetensors"
    write_durably(folder / name, content)
    return StoredFile(name, sha256, len(content), digest_of_index(arrays))


DTYPES = {"refitted_of": np.int64, "lora_A": np.float16, "lora_B": np.float16}


def digest_of_index(arrays: Mapping[str, np.ndarray]) -> str:
    """What an edit's file holds for routing comes to: the sha256 of its neuron, keys and refitted neurons."""
    digest = hashlib.sha256()
    for name in INDEX:
        if name in arrays and arrays[name].size:
            digest.update(f"{name}{list(arrays[name].shape)}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def read_index(folder: Path, name: str, expected: str | None) -> dict[str, np.ndarray]:
    """What an edit's file holds for routing; what it lacks is empty. Raises `DamageFound` unless it comes to the
    `expected` sha256."""
    wanted = ("neuron", "key", "refitted?", "refitted_of?")
    arrays = dict(zip(INDEX, read_tensors(folder, name, wanted), strict=True))
    if digest_of_index(arrays) != expected:
        raise DamageFound(f"`{name}` is not what was committed: its neuron or key has changed", hint=RESTORE_IT)
    return arrays


def read_expert(folder: Path, name: str) -> np.ndarray | LowRankArrays:
    """The expert of an edit's file. Raises `DamageFound` as `read_tensors` does, and for one that is no expert."""
    expert, a, b = read_tensors(folder, name, ("expert?", "lora_A?", "lora_B?"))
    arrays, dtype = ([expert], np.float32) if expert.size else ([a, b], np.float16)
    if any(array.ndim != 2 or array.dtype != dtype or not np.isfinite(array).all() for array in arrays):
        raise DamageFound(f"`{name}` holds no expert: a matrix of finite numbers", hint=RESTORE_IT)
    return expert if expert.size else LowRankArrays(a, b)


def regular(folder: Path, name: str) -> Path:
    """The path of a file of the project. Raises `DamageFound` if it is not there, or is a link or anything else that
    would lead out of the folder."""
    path = folder / name
    if path.is_symlink() or path.parent.is_symlink():
        raise DamageFound(f"`{name}` is a link: a project's files lie in its folder", hint=RESTORE_IT)
    if not path.is_file():
        raise DamageFound(f"`{name}` is missing", hint=RESTORE_IT)
    return path


def checked_sum(folder: Path, name: str) -> str:
    """The sha256 of a file of the project. Raises `DamageFound` if it cannot be read."""
    try:
        return sha256_of(regular(folder, name))
    except OSError as error:
        raise DamageFound(f"`{name}` cannot be read: {error.strerror}", hint=RESTORE_IT) from error


def read_tensors(folder: Path, name: str, wanted: tuple[str, ...]) -> list[np.ndarray]:
    """The wanted tensors of one file, read without the others. One whose name ends in `?` may be lacking: it is
    then empty.

    Raises `DamageFound` when the file is missing, unreadable or lacks a tensor.
    """
    try:
        with safe_open(regular(folder, name), framework="np") as file:
            there = set(file.keys())
            return [
                np.empty(0, np.float32)
                if tensor.endswith("?") and tensor[:-1] not in there
                else file.get_tensor(tensor.rstrip("?"))
                for tensor in wanted
            ]
    except (OSError, SafetensorError, TypeError, ValueError) as error:  # the latter two: a dtype that numpy has not
        raise DamageFound(f"`{name}` cannot be read: {error}", hint=RESTORE_IT) from error


def metadata(folder: Path, name: str) -> dict[str, Any]:
    """What a file says of itself; nothing if it says what cannot be understood."""
    try:
        with safe_open(regular(folder, name), framework="np") as file:
            said = json.loads((file.metadata() or {}).get("scen", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def merged_content(edit_ids: list[int], neurons: np.ndarray) -> bytes:
    """What `merged.safetensors` is to hold: W_merge (t, h), the edit each row belongs to, and the sha256 of both. The
    same rows always give the same bytes (safetensors orders several metadata keys at random: one is used)."""
    arrays = {"neurons": np.ascontiguousarray(neurons), "edits": np.asarray(edit_ids, dtype=np.int64)}
    kept = {"format": MERGED_FORMAT, "sha256": _digest_of_merged(arrays["edits"], arrays["neurons"])}
    return save(arrays, metadata={"scen": json.dumps(kept)})


def write_merged(folder: Path, edit_ids: list[int], neurons: np.ndarray) -> StoredFile:
    """Write `merged.safetensors`."""
    content = merged_content(edit_ids, neurons)
    write_durably(folder / MERGED, content)
    return StoredFile(MERGED, hashlib.sha256(content).hexdigest(), len(content))


def read_merged(folder: Path) -> tuple[list[int], np.ndarray]:
    """The edit of each row, and W_merge. Raises `DamageFound` unless the file is whole, as its own sha256 tells."""
    ids, neurons = read_tensors(folder, MERGED, ("edits", "neurons"))
    if metadata(folder, MERGED).get("sha256") != _digest_of_merged(ids, neurons):
        raise DamageFound(f"`{MERGED}` is not what was written", hint="`scen merge` makes it anew")
    return ids.tolist(), neurons


def _digest_of_merged(ids: np.ndarray, neurons: np.ndarray) -> str:
    return hashlib.sha256(ids.tobytes() + f"{list(neurons.shape)}".encode() + neurons.tobytes()).hexdigest()


def write_guard(folder: Path, tensors: dict[str, np.ndarray]) -> StoredFile:
    """Write `guard-<sha8>.safetensors`: keys of the guard prompts, and the whitening they give."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    content = save(arrays, metadata={"scen": json.dumps({"format": GUARD_FORMAT})})
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"guard-{sha256[:8]}.safetensors"
    write_durably(folder / name, content)
    return StoredFile(name, sha256, len(content))


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
