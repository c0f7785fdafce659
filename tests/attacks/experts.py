"""Attacks on a project's tensor files: experts, merged neurons, guard."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tests.attacks.attack import THIRD, Attack, Canary, Ground, header, replace_by, replace_by_fifo, tensor

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
ASK, VERIFY, DEEP, EXPORT = (
    "ask {q} --dir {p}",
    "verify --dir {p}",
    "verify --deep --dir {p}",
    "export --out {o} --dir {p}",
)
SCORE = "eval --quick --suite demo --dir {p}"
MORE = f'edit --prompt "{THIRD.prompt}" --target "{THIRD.target}" --dir {{p}}'
ROUTED, QUARANTINED = "edit 1 was activated", "damaged"
RANK, H, D = 4, 768, 96


def expert(content, known: bool = False):
    """Replace the content of edit 1's file; `known`: change the ledger too, as somebody who can write to it would."""

    def prepare(ground: Ground) -> None:
        path = ground.edit_file()
        replace_by(path, content(ground) if callable(content) else content)
        if known:
            ground.acknowledge(path)

    return prepare


def tensors(**changes):
    """Change tensors in edit 1's file, and its sha256 in the ledger."""
    return lambda ground: ground.tensors(ground.edit_file(), known_to_ledger=True, **changes)


def merged(content):
    return lambda ground: replace_by(ground.merged(), content(ground) if callable(content) else content)


def merged_tensors(**changes):
    return lambda ground: ground.tensors(ground.merged(), **changes)


def guard(content):
    return lambda ground: replace_by(ground.guard_file(), content(ground) if callable(content) else content)


def pickled(ground: Ground) -> bytes:
    return pickle.dumps(Canary(ground.canary))


def swapped(ground: Ground) -> None:
    one, other = ground.edit_file(1), ground.edit_file(2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def linked(ground: Ground) -> None:
    """The same content, but outside the project."""
    outside = ground.folder / "outside.safetensors"
    path = ground.edit_file()
    path.rename(outside)
    path.symlink_to(outside)


def folder_for(path_of):
    def prepare(ground: Ground) -> None:
        path = path_of(ground)
        path.unlink()
        path.mkdir()

    return prepare


def many_tensors(ground: Ground) -> bytes:
    """A header of 2 MB: a table of 50,000 tensors without content."""
    one = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return header(b"{" + b",".join(one % number for number in range(50_000)) + b"}")


def shaped(shape: list[int], offsets: list[int], data: int = 64) -> bytes:
    """A file whose header gives the neuron this shape."""
    tensors = {"neuron": tensor(shape, offsets), "key": tensor([0], [0, 0]), "lora_A": tensor([0], [0, 0])}
    return header(tensors, data=bytes(data))


NAN, INF = np.full((RANK, H), np.nan, np.float16), np.full((RANK, H), np.inf, np.float16)
UNREADABLE = {
    "a header of 2^63-1 bytes": header({}, 2**63 - 1),
    "a header of 2^64-1 bytes": header({}, 2**64 - 1),
    "a header of 100 MB that is not there": header({}, 100 << 20),
    "a header of the file's size and one": header({}, 11),
    "a header that is no JSON": header(b"{{{{"),
    "2^40 elements": shaped([2**40], [0, 64]),
    "elements that overflow": shaped([2**62, 2**62], [0, 64]),
    "a negative shape": shaped([-16], [0, 64]),
    "offsets beyond the end": shaped([2**20], [0, 2**22]),
    "offsets backwards": shaped([16], [64, 0]),
    "overlapping tensors": header({"neuron": tensor([8], [0, 32]), "key": tensor([8], [16, 48])}, data=bytes(48)),
    "an empty file": b"",
    "a file of text": b"not a tensor in it",
    "a pickle": pickled,
}

ATTACKS = [
    *(
        Attack(f"expert: {name}, exported", expert(c, True), EXPORT, 12, "edits/000001-")
        for name, c in UNREADABLE.items()
    ),
    *(Attack(f"expert: {name}, verified", expert(c), VERIFY, 12, "edits/000001-") for name, c in UNREADABLE.items()),
    Attack("expert: 50,000 tensors", expert(many_tensors, True), EXPORT, 12, "edits/000001-"),
    Attack("expert: a pickle, asked", expert(pickled), ASK, 0, QUARANTINED),
    Attack("expert: a pickle, shown", expert(pickled), "show 1 --dir {p}", 0, "In which country is"),
    Attack("expert: a pickle, reverted", expert(pickled), "revert 1 --dir {p}", 0, "edit 1 reverted"),
    Attack("expert: missing, asked", expert(None), ASK, 0, QUARANTINED),
    Attack("expert: missing, reverted", expert(None), "revert 1 --dir {p}", 0, "edit 1 reverted"),
    Attack("expert: missing, another edit", expert(None), MORE, 0, "1 edited"),  # its key is in the cache
    Attack("expert: NaN, verified", tensors(lora_A=NAN), DEEP, 12, "edits/000001-"),
    Attack("expert: NaN, asked", tensors(lora_A=NAN), ASK, 0, QUARANTINED),
    Attack("expert: infinite, verified", tensors(lora_A=INF), DEEP, 12, "edits/000001-"),
    Attack("neuron: NaN", tensors(neuron=np.full(H, np.nan, np.float32)), DEEP, 12, "edits/000001-"),
    Attack("expert: its tensors under other names", tensors(lora_A=None, A=NAN), EXPORT, 12, "holds no expert"),
    Attack("expert: no neuron", tensors(neuron=None), DEEP, 12, "edits/000001-"),
    Attack("expert: another dtype", tensors(lora_A=np.ones((RANK, H))), DEEP, 12, "edits/000001-"),
    Attack("expert: whole numbers", tensors(lora_A=np.ones((RANK, H), np.int64)), ASK, 0, QUARANTINED),
    Attack("expert: too narrow", tensors(lora_A=np.ones((RANK, 5), np.float16)), ASK, 0, QUARANTINED),
    Attack("expert: another rank", tensors(lora_A=np.ones((9, H), np.float16)), EXPORT, 12, "does not have the rank"),
    Attack("expert: one dimension", tensors(lora_B=np.ones(7, np.float16)), EXPORT, 12, "edits/000001-"),
    Attack("neuron: too short", tensors(neuron=np.ones(5, np.float32)), DEEP, 12, "edits/000001-"),
    Attack("expert: zero length", tensors(lora_A=np.ones((0, H), np.float16)), EXPORT, 12, "nothing was exported"),
    Attack("expert: two swapped, verified", swapped, DEEP, 12, "edits/000001-"),
    Attack("expert: two swapped, exported", swapped, EXPORT, 12, "is not what was committed"),
    Attack("expert: two swapped, asked", swapped, ASK, 0, QUARANTINED),
    Attack("expert: a folder, verified", folder_for(Ground.edit_file), VERIFY, 12, "edits/000001-"),
    Attack("expert: a folder, exported", folder_for(Ground.edit_file), EXPORT, 12, "edits/000001-"),
    Attack(
        "expert: a pipe, verified", lambda g: replace_by_fifo(g.edit_file()), VERIFY, 12, "edits/000001-", seconds=5
    ),
    Attack("expert: a pipe, asked", lambda g: replace_by_fifo(g.edit_file()), ASK, 0, QUARANTINED, seconds=5),
    Attack("expert: a link out of the project", linked, VERIFY, 12, "edits/000001-"),
    Attack(
        "expert: another project's",
        expert(next(GOLDEN.glob("v1/edits/000001-*")).read_bytes()),
        EXPORT,
        12,
        "is not what was committed",
    ),
    Attack(
        "expert: another project's, a full one",
        expert(save({"expert": np.ones((D, H), "f"), "neuron": np.ones(H, "f"), "key": np.ones(H, "f")}), True),
        EXPORT,
        12,
        "does not have the rank",
    ),
    Attack("merged: a pickle, asked", merged(pickled), ASK, 0, ROUTED),
    Attack("merged: a pickle, verified", merged(pickled), VERIFY, 12, "merged.safetensors"),
    Attack("merged: a pickle, mended", merged(pickled), "verify --repair --dir {p}", 0, "rebuilt `merged.safetensors`"),
    Attack("merged: missing", merged(None), ASK, 0, ROUTED),
    Attack("merged: a header of 2^63-1 bytes", merged(header({}, 2**63 - 1)), ASK, 0, ROUTED),
    Attack("merged: NaN, asked", merged_tensors(neurons=np.full((2, H), np.nan, "f")), ASK, 0, ROUTED),
    Attack("merged: NaN, verified", merged_tensors(neurons=np.full((2, H), np.nan, "f")), VERIFY, 12, "merged"),
    Attack("merged: too narrow, asked", merged_tensors(neurons=np.ones((2, 5), "f")), ASK, 0, ROUTED),
    Attack("merged: a row too many", merged_tensors(neurons=np.ones((3, H), "f")), ASK, 0, ROUTED),
    Attack("merged: other edits'", merged_tensors(edits=np.array([2, 1])), ASK, 0, ROUTED),
    Attack("merged: whole numbers", merged_tensors(neurons=np.ones((2, H), int)), ASK, 0, ROUTED),
    Attack("merged: a folder, asked", folder_for(Ground.merged), ASK, 0, ROUTED),
    Attack("merged: a folder, verified", folder_for(Ground.merged), VERIFY, 12, "merged.safetensors"),
    Attack("merged: a pipe, asked", lambda g: replace_by_fifo(g.merged()), ASK, 0, ROUTED, seconds=5),
    Attack("guard: a pickle, verified", guard(pickled), VERIFY, 12, "guard-"),
    Attack("guard: a pickle, asked", guard(pickled), ASK, 12, "is not the guard that was committed"),
    Attack("guard: a pickle, more edits", guard(pickled), MORE, 12, "is not the guard that was committed"),
    Attack("guard: a pickle, scored", guard(pickled), SCORE, 12, "is not the guard that was committed"),
    Attack("guard: missing", guard(None), ASK, 12, "is missing"),
    Attack("guard: a folder", folder_for(Ground.guard_file), VERIFY, 12, "guard-"),
    Attack("guard: a pipe", lambda g: replace_by_fifo(g.guard_file()), ASK, 12, "guard-", seconds=5),
]
