"""W_merge (equation 9): the indexing neurons of the active edits, stacked. `merged.safetensors` is a cache of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from scen_cli.errors import DamageFound
from scen_cli.project.disk import write_durably
from scen_cli.project.edit_files import EditFiles
from scen_cli.project.ledger import Ledger
from scen_cli.project.tensor_files import StoredFile, metadata, read_tensors, tensor_bytes

MERGED = "merged.safetensors"
MERGED_FORMAT = "scen-merged-2"
TENSORS = ("edits", "sums", "neurons", "keys", "key_counts", "refitted")
SUM = 64  # bytes of a sha256 in hexadecimal


@dataclass(frozen=True)
class MergedNeurons:
    """W_merge and what belongs to its rows.

    Attributes:
        experts: The expert of each row: the id of the first edit that has it.
        sums: The `index_sha256` of each row's edit, as text, (t, 64), uint8.
        neurons: W_merge (t, h), float32.
        keys: The keys of each row's edits, one after the other, (n, h), float32.
        key_counts: How many keys each row has, (t,), int64.
        refitted: How many neurons later edits refitted, (1,), int64.
        biases: (t,), float32.
        damaged: Active experts without a row, because their files are damaged, and what is wrong with each.
    """

    experts: list[int]
    sums: np.ndarray
    neurons: np.ndarray
    keys: np.ndarray
    key_counts: np.ndarray
    refitted: np.ndarray
    biases: np.ndarray
    damaged: dict[int, str] = field(default_factory=dict)

    def keys_by_row(self) -> list[np.ndarray]:
        """The keys (n, h) of each row."""
        ends = self.key_counts.cumsum().tolist()
        return [self.keys[end - count : end] for end, count in zip(ends, self.key_counts.tolist(), strict=True)]


def rebuild_w_merge(ledger: Ledger, files: EditFiles, reuse: bool = False) -> StoredFile:
    """Rebuild `merged.safetensors` from the edit files.

    Args:
        ledger: The ledger.
        files: The edit files.
        reuse: Take the rows of edits that stay active from the cache, if it is intact: not all files are read.

    Raises:
        DamageFound: An edit file is damaged.
    """
    merged = load_w_merge(ledger, files) if reuse else w_merge_of_files(ledger, files)
    if merged.damaged:
        raise DamageFound("\n".join(merged.damaged.values()), hint="run `scen verify` for details")
    content = merged_content(merged)
    write_durably(files.folder / MERGED, content)
    return StoredFile(MERGED, hashlib.sha256(content).hexdigest(), len(content))


def load_w_merge(ledger: Ledger, files: EditFiles) -> MergedNeurons:
    """W_merge of the active edits: from the cache, as far as it is intact and current, else from the edit files."""
    cached = None
    with suppress(DamageFound):
        cached = read_merged(ledger, files)
    if cached is not None and is_current(cached, ledger):
        return cached
    return w_merge_of_files(ledger, files, cached)


def is_current(merged: MergedNeurons, ledger: Ledger) -> bool:
    """Whether the rows are those of the active edits."""
    sums = ledger.active_index_sums()
    return merged.experts == list(sums) and np.array_equal(merged.sums, _as_bytes(list(sums.values())))


def w_merge_of_files(ledger: Ledger, files: EditFiles, cached: MergedNeurons | None = None) -> MergedNeurons:
    """W_merge from the edit files. A neuron that later edits refitted is that of the newest active one of them.

    Rows that `cached` has are taken from there, unless it has refitted neurons: an edit that refitted one may be active
    no more.
    """
    rows: dict[int, np.ndarray] = {}
    keys: dict[int, np.ndarray] = {}
    damaged: dict[int, str] = {}
    refits, sums = 0, ledger.active_index_sums()
    known = _known_rows(cached, sums) if cached and not cached.refitted[0] else {}
    for expert in sorted(set(ledger.active_experts().values())):
        if expert in known:
            rows[expert], keys[expert] = known[expert]
            continue
        try:
            edit = ledger.edit(expert)
            if edit is None:
                raise DamageFound(f"expert {expert} is active, but there is no edit {expert}")
            arrays = files.index(edit)
        except DamageFound as error:
            damaged[expert] = str(error)
            continue
        rows[expert], keys[expert] = arrays["neuron"], np.atleast_2d(arrays["key"])
        refitted = zip(arrays["refitted_of"].tolist(), arrays["refitted"], strict=True)
        refits += len(arrays["refitted"])
        rows.update({int(other): neuron for other, neuron in refitted if int(other) in rows})
    none = np.empty((0, files.width), np.float32)
    return MergedNeurons(
        list(rows),
        _as_bytes([sums[expert] for expert in rows]),
        np.stack(list(rows.values())) if rows else none,
        np.concatenate(list(keys.values())) if keys else none,
        np.array([len(own) for own in keys.values()], np.int64),
        np.array([refits], np.int64),
        _biases(ledger, list(rows)),
        damaged,
    )


def _known_rows(cached: MergedNeurons, sums: Mapping[int, str]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The neuron and keys of the cached experts that the ledger still has: {expert: (neuron, keys)}."""
    cached_sums = [bytes(row).decode("latin-1") for row in cached.sums]
    rows = zip(cached.experts, cached_sums, cached.neurons, cached.keys_by_row(), strict=True)
    return {expert: (neuron, keys) for expert, found, neuron, keys in rows if sums.get(expert) == found}


def _as_bytes(sums: Sequence[str]) -> np.ndarray:
    """Texts as rows of 64 bytes; longer ones, which scen does not write, are cut and fit no file."""
    text = b"".join(found.encode()[:SUM].ljust(SUM) for found in sums)
    return np.frombuffer(text, np.uint8).reshape(len(sums), SUM)


def merged_content(merged: MergedNeurons) -> bytes:
    """The bytes of `merged.safetensors`: the tensors, and the sha256 of all."""
    arrays = {
        "edits": np.asarray(merged.experts, np.int64),
        **{name: np.ascontiguousarray(getattr(merged, name)) for name in TENSORS[1:]},
    }
    return tensor_bytes(arrays, {"format": MERGED_FORMAT, "sha256": _digest(list(arrays.values()))})


def read_merged(ledger: Ledger, files: EditFiles) -> MergedNeurons:
    """The cache, which may be out of date. Raises `DamageFound` if it does not match its own sha256, or its rows are
    not those of this project."""
    arrays = read_tensors(files.folder, MERGED, TENSORS)
    if metadata(files.folder, MERGED).get("sha256") != _digest(arrays):
        raise DamageFound(f"`{MERGED}` is not what was written", hint="`scen merge` rebuilds it")
    experts, sums, neurons, keys, key_counts, refitted = arrays
    rows, width = len(experts), files.width
    shapes = [array.shape for array in arrays[1:]]
    expected = [(rows, SUM), (rows, width), (int(key_counts.sum()), width), (rows,), (1,)]
    if shapes != expected or {neurons.dtype, keys.dtype} != {np.dtype(np.float32)}:
        raise DamageFound(f"`{MERGED}` is not of this project", hint="`scen merge` rebuilds it")
    biases = _biases(ledger, experts.tolist())
    return MergedNeurons(experts.tolist(), sums, neurons, keys, key_counts, refitted, biases)


def _digest(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{list(array.shape)}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _biases(ledger: Ledger, experts: list[int]) -> np.ndarray:
    biases = ledger.active_biases()
    return np.array([biases.get(expert, 0.0) for expert in experts], np.float32)
