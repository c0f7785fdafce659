"""One file per edit: the expert, its indexing neuron and the edit's key. Read only as far as the ledger's sums match.

Tensors are float32. A low-rank expert is float16.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scen_cli.data.records import EditRecord
from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.tensor_files import RESTORE_HINT, StoredFile, checked_sum, read_tensors, write_tensors

EDIT_FILE = re.compile(r"edits/\d{6,}-[0-9a-f]{8}\.safetensors")
BASE_SETTINGS = ("weights_digest", "layer", "target_module")  # without these an expert means nothing
FORMAT = "scen-edit-1"
INDEX = ("neuron", "key", "refitted", "refitted_of")  # the tensors that routing needs
DTYPES = {"refitted_of": np.int64, "lora_A": np.float16, "lora_B": np.float16}


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
    """Tensors in one edit file.

    Attributes:
        expert: (d, h), or low-rank.
        neuron: (h,).
        key: (h,), or (n, h) for n edits that share the expert.
        refitted: (m, h), new neurons of earlier experts that collided with this edit.
        refitted_of: (m,), the ids of these experts.
    """

    expert: np.ndarray | LowRankArrays
    neuron: np.ndarray
    key: np.ndarray
    refitted: np.ndarray | None = None
    refitted_of: np.ndarray | None = None


def header_of(records: Sequence[EditRecord], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an edit file says of itself, so that `scen rebuild` can do without the ledger: its records and its base."""
    fields = {"prompt", "target", "subject", "rephrases", "train_rephrases"}
    return {
        "records": [record.model_dump(mode="json", include=fields, exclude_defaults=True) for record in records],
        "base": {name: settings.get(name) for name in BASE_SETTINGS},
    }


def write_edit(folder: Path, edit_id: int, tensors: EditTensors, header: Mapping[str, Any]) -> StoredFile:
    """Write `edits/<id>-<sha8>.safetensors` durably, with this header (`header_of`).

    Raises:
        DamageFound: `edits` is a link. The file would be outside the project.
    """
    if (folder / "edits").is_symlink():
        raise DamageFound("`edits` is a link: all files of a project are in its folder", hint=RESTORE_HINT)
    present = {name: array for name, array in vars(tensors).items() if array is not None}
    if isinstance(tensors.expert, LowRankArrays):
        present |= vars(present.pop("expert"))
    arrays = {name: np.asarray(array, DTYPES.get(name, np.float32)) for name, array in present.items()}
    stored = write_tensors(folder, f"edits/{edit_id:06d}", arrays, {**header, "format": FORMAT, "edit": edit_id})
    return replace(stored, index_sha256=digest_of_index(arrays))


def digest_of_index(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of an edit's routing tensors: neuron, keys and refitted neurons."""
    digest = hashlib.sha256()
    for name in INDEX:
        if name in arrays and arrays[name].size:
            digest.update(f"{name}{list(arrays[name].shape)}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


class EditFiles:
    """Reads a project's edit files. Keys and neurons are `width` wide."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width

    def name(self, edit: Edit) -> str:
        """The edit's file. Raises `DamageFound` for a name that scen does not write, which could lead elsewhere."""
        name = edit.file or ""
        if not EDIT_FILE.fullmatch(name):
            raise DamageFound(f"edit {edit.id} has no file in `edits/`: {name!r}", hint=VERIFY_HINT)
        return name

    def index(self, edit: Edit) -> dict[str, np.ndarray]:
        """The routing tensors of an edit's file: all of `INDEX`. A tensor that the file lacks is empty.

        Raises:
            DamageFound: They are not what was committed.
        """
        name = self.name(edit)
        tensors = read_tensors(self.folder, name, ("neuron", "key", "refitted?", "refitted_of?"))
        arrays = dict(zip(INDEX, tensors, strict=True))
        if digest_of_index(arrays) != edit.index_sha256:
            raise DamageFound(f"`{name}` is not what was committed: its neuron or key has changed", hint=RESTORE_HINT)
        vectors = [arrays["neuron"], arrays["key"], *([arrays["refitted"]] if arrays["refitted"].size else [])]
        if any(vector.shape[-1:] != (self.width,) or vector.dtype != np.float32 for vector in vectors):
            raise DamageFound(f"`{name}` holds no neuron of width {self.width}", hint=VERIFY_HINT)
        return arrays

    def keys(self, edit: Edit) -> np.ndarray:
        """The keys (n, h) that the edit's neuron was trained on: one for each edit that shares its expert."""
        return np.atleast_2d(self.index(edit)["key"])

    def expert(self, edit: Edit) -> np.ndarray | LowRankArrays:
        """The expert of an edit: (d, h), which replaces W_down, or low-rank, which is added to it.

        Raises:
            DamageFound: The file is not byte for byte what was committed, or holds no expert.
        """
        name = self.name(edit)
        if checked_sum(self.folder, name) != edit.sha256:
            hint = f"restore it from a backup, or `scen revert {edit.id}`"
            raise DamageFound(f"`{name}` is not what was committed as edit {edit.id}", hint=hint)
        expert, a, b = read_tensors(self.folder, name, ("expert?", "lora_A?", "lora_B?"))
        arrays, dtype = ([expert], np.float32) if expert.size else ([a, b], np.float16)
        if any(array.ndim != 2 or array.dtype != dtype or not np.isfinite(array).all() for array in arrays):
            raise DamageFound(f"`{name}` holds no expert: a matrix of finite numbers", hint=RESTORE_HINT)
        return expert if expert.size else LowRankArrays(a, b)
