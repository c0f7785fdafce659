"""Tensor files of a project: safetensors, never a pickle. Each is written durably and named by its sha256."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from scen_cli.errors import DamageFound
from scen_cli.project import disk

RESTORE_HINT = "run `scen verify --deep` for details; restore the file from a backup, or `scen revert` its edit"


@dataclass(frozen=True)
class StoredFile:
    """A file as the ledger records it: its name in the project, its sha256 and its size in bytes.

    `index_sha256` is the sha256 of an edit file's routing tensors.
    """

    file: str
    sha256: str
    size: int
    index_sha256: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields that every kind of file has."""
        return {"file": self.file, "sha256": self.sha256, "size": self.size}


def tensor_bytes(tensors: Mapping[str, np.ndarray], header: dict[str, Any]) -> bytes:
    """A safetensors file. The same tensors always give the same bytes.

    Args:
        tensors: Arrays by name.
        header: JSON that the file holds under the metadata key `scen`. There is one key because safetensors writes
            several in random order.
    """
    # safetensors writes an array's memory as it is: a transposed view would be scrambled
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    return save(arrays, metadata={"scen": json.dumps(header)})


def write_tensors(folder: Path, prefix: str, tensors: Mapping[str, np.ndarray], header: dict[str, Any]) -> StoredFile:
    """Write `<prefix>-<sha8>.safetensors` durably. The file counts once the ledger names it."""
    content = tensor_bytes(tensors, header)
    sha256 = hashlib.sha256(content).hexdigest()
    stored = StoredFile(f"{prefix}-{sha256[:8]}.safetensors", sha256, len(content))
    disk.write_durably(folder / stored.file, content)
    return stored


def remove_older(folder: Path, pattern: re.Pattern[str], newest: str) -> None:
    """Remove the files whose names match, except the newest."""
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.name != newest:
            disk.remove(path)


def regular(folder: Path, name: str) -> Path:
    """The path of a file of the project.

    Raises:
        DamageFound: The file is missing, or it or its folder is a link, which could lead out of the project. The
            project's own folder may be one.
    """
    path = folder / name
    if path.is_symlink() or (path.parent != folder and path.parent.is_symlink()):
        raise DamageFound(f"`{name}` is a link: all files of a project are in its folder", hint=RESTORE_HINT)
    if not path.is_file():
        raise DamageFound(f"`{name}` is missing", hint=RESTORE_HINT)
    return path


def checked_sum(folder: Path, name: str) -> str:
    """The sha256 of a file of the project. Raises `DamageFound` if the file cannot be read."""
    try:
        return sha256_of(regular(folder, name))
    except OSError as error:
        raise DamageFound(f"`{name}` cannot be read: {error.strerror}", hint=RESTORE_HINT) from error


def read_tensors(folder: Path, name: str, wanted: tuple[str, ...]) -> list[np.ndarray]:
    """Read some tensors of a file, without the others.

    Args:
        folder: The project's folder.
        name: The file's name in the project.
        wanted: Names of tensors. A name that ends in `?` is optional: the result is empty if the file lacks it.

    Raises:
        DamageFound: The file is missing or unreadable, or lacks a tensor.
    """
    try:
        with safe_open(regular(folder, name), framework="np") as file:
            found = set(file.keys())
            return [
                np.empty(0, np.float32)
                if tensor.endswith("?") and tensor[:-1] not in found
                else file.get_tensor(tensor.rstrip("?"))
                for tensor in wanted
            ]
    except (OSError, SafetensorError, TypeError, ValueError) as error:  # the last two: a dtype that numpy lacks
        raise DamageFound(f"`{name}` cannot be read: {error}", hint=RESTORE_HINT) from error


def metadata(folder: Path, name: str) -> dict[str, Any]:
    """The JSON header that a file was written with; empty if it cannot be read."""
    try:
        with safe_open(regular(folder, name), framework="np") as file:
            header = json.loads((file.metadata() or {}).get("scen", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
