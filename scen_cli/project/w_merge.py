"""W_merge (equation 9): the indexing neurons of the active edits, stacked. `merged.safetensors` is a cache of it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scen_cli.errors import DamageFound
from scen_cli.project.disk import write_durably
from scen_cli.project.edit_files import EditFiles
from scen_cli.project.ledger import Ledger
from scen_cli.project.tensor_files import StoredFile, metadata, read_tensors, tensor_bytes

MERGED = "merged.safetensors"
MERGED_FORMAT = "scen-merged-1"


@dataclass(frozen=True)
class MergedNeurons:
    """W_merge and what belongs to its rows.

    Attributes:
        experts: The expert of each row: the id of the first edit that has it.
        neurons: W_merge (t, h), float32.
        biases: (t,), float32.
        damaged: Active experts without a row, because their files are damaged, and what is wrong with each.
    """

    experts: list[int]
    neurons: np.ndarray
    biases: np.ndarray
    damaged: dict[int, str] = field(default_factory=dict)


def rebuild_w_merge(ledger: Ledger, files: EditFiles) -> StoredFile:
    """Rebuild `merged.safetensors` from the edit files. Raises `DamageFound` if one of them is damaged."""
    merged = w_merge_of_files(ledger, files)
    if merged.damaged:
        raise DamageFound("\n".join(merged.damaged.values()), hint="run `scen verify` for details")
    content = merged_content(merged.experts, merged.neurons)
    write_durably(files.folder / MERGED, content)
    return StoredFile(MERGED, hashlib.sha256(content).hexdigest(), len(content))


def load_w_merge(ledger: Ledger, files: EditFiles) -> MergedNeurons:
    """W_merge of the active edits: from the cache if it is intact and current, else from the edit files."""
    with suppress(DamageFound):
        experts, neurons = read_merged(files.folder)
        fits = neurons.dtype == np.float32 and neurons.shape == (len(experts), files.width)
        if fits and experts == sorted(set(ledger.active_experts().values())):
            return MergedNeurons(experts, neurons, _biases(ledger, experts))
    return w_merge_of_files(ledger, files)


def w_merge_of_files(ledger: Ledger, files: EditFiles) -> MergedNeurons:
    """W_merge from the edit files. A neuron that later edits refitted is that of the newest active one of them."""
    rows: dict[int, np.ndarray] = {}
    damaged: dict[int, str] = {}
    for expert in sorted(set(ledger.active_experts().values())):
        try:
            edit = ledger.edit(expert)
            if edit is None:
                raise DamageFound(f"expert {expert} is active, but there is no edit {expert}")
            arrays = files.index(edit)
        except DamageFound as error:
            damaged[expert] = str(error)
            continue
        rows[expert] = arrays["neuron"]
        refitted = zip(arrays["refitted_of"].tolist(), arrays["refitted"], strict=True)
        rows.update({int(other): neuron for other, neuron in refitted if int(other) in rows})
    neurons = np.stack(list(rows.values())) if rows else np.empty((0, files.width), np.float32)
    return MergedNeurons(list(rows), neurons, _biases(ledger, list(rows)), damaged)


def merged_content(experts: list[int], neurons: np.ndarray) -> bytes:
    """The bytes of `merged.safetensors`: W_merge (t, h), the expert of each row, and the sha256 of both."""
    arrays = {"neurons": np.ascontiguousarray(neurons), "edits": np.asarray(experts, dtype=np.int64)}
    sha256 = _digest(arrays["edits"], arrays["neurons"])
    return tensor_bytes(arrays, {"format": MERGED_FORMAT, "sha256": sha256})


def read_merged(folder: Path) -> tuple[list[int], np.ndarray]:
    """The expert of each row, and W_merge. Raises `DamageFound` if the file does not match its own sha256."""
    experts, neurons = read_tensors(folder, MERGED, ("edits", "neurons"))
    if metadata(folder, MERGED).get("sha256") != _digest(experts, neurons):
        raise DamageFound(f"`{MERGED}` is not what was written", hint="`scen merge` rebuilds it")
    return experts.tolist(), neurons


def _digest(experts: np.ndarray, neurons: np.ndarray) -> str:
    return hashlib.sha256(experts.tobytes() + f"{list(neurons.shape)}".encode() + neurons.tobytes()).hexdigest()


def _biases(ledger: Ledger, experts: list[int]) -> np.ndarray:
    biases = ledger.active_biases()
    return np.array([biases.get(expert, 0.0) for expert in experts], np.float32)
