"""W_merge (equation 9): the indexing neurons of the active edits, from their files or from the cache of them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scen_cli.errors import DamageFound
from scen_cli.project.edit_files import EditFiles
from scen_cli.project.ledger import Ledger
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.tensor_files import StoredFile, read_merged, write_merged


@dataclass(frozen=True)
class MergedNeurons:
    """W_merge (t, h), the biases (t,), and the expert of each row, by the id of its (first) edit; and the experts in
    force that have no row because their files are damaged, with what is wrong with each."""

    experts: list[int]
    neurons: np.ndarray
    biases: np.ndarray
    damaged: dict[int, str] = field(default_factory=dict)


def rebuild_w_merge(folder: Path, ledger: Ledger, files: EditFiles) -> StoredFile:
    """Rebuild `merged.safetensors` from the edit files. Raises `DamageFound` if one of them is not whole."""
    found = w_merge_of_files(ledger, files)
    if found.damaged:
        raise DamageFound("\n".join(found.damaged.values()), hint="`scen verify` tells more")
    return write_merged(folder, found.experts, found.neurons)


def load_w_merge(folder: Path, ledger: Ledger, files: EditFiles) -> MergedNeurons:
    """W_merge as the ledger says it is: the cache if it is whole and fits the ledger, else from the files."""
    with suppress(DamageFound):  # a cache: what cannot be believed is made anew
        experts, neurons = read_merged(folder)
        fits = neurons.dtype == np.float32 and neurons.shape == (len(experts), files.width)
        if fits and experts == sorted(set(ledger.active_experts().values())):
            return MergedNeurons(experts, neurons, _biases(ledger, experts))
    return w_merge_of_files(ledger, files)


def w_merge_of_files(ledger: Ledger, files: EditFiles) -> MergedNeurons:
    """W_merge from the edit files. Where an edit had earlier neurons fitted again, theirs are those of the newest edit
    active that did."""
    rows: dict[int, np.ndarray] = {}
    damaged: dict[int, str] = {}
    for expert in sorted(set(ledger.active_experts().values())):
        try:
            arrays = files.index(_first(ledger, expert))
        except DamageFound as error:
            damaged[expert] = str(error)
            continue
        rows[expert] = arrays["neuron"]
        again = zip(arrays["refitted_of"].tolist(), arrays["refitted"], strict=True)
        rows.update({int(other): row for other, row in again if int(other) in rows})
    neurons = np.stack(list(rows.values())) if rows else np.empty((0, files.width), np.float32)
    return MergedNeurons(list(rows), neurons, _biases(ledger, list(rows)), damaged)


def _first(ledger: Ledger, expert: int) -> Edit:
    """The edit under whose id an expert stands."""
    edit = ledger.edit(expert)
    if edit is None:
        raise DamageFound(f"expert {expert} is active, but there is no edit {expert}")
    return edit


def _biases(ledger: Ledger, experts: list[int]) -> np.ndarray:
    biases = ledger.active_biases()
    return np.array([biases.get(expert, 0.0) for expert in experts], np.float32)
