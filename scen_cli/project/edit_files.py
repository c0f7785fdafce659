"""The files of a project's edits, each believed only as far as the ledger's sums bear it out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.tensor_files import LowRankArrays, checked_sum, read_expert, read_index

EDIT_FILE = re.compile(r"edits/\d{6,}-[0-9a-f]{8}\.safetensors")


class EditFiles:
    """Reads what edits come to: keys and neurons `width` wide, and experts."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width

    def name(self, edit: Edit) -> str:
        """The edit's file; a name that no scen gives is refused: it might lead out of the project."""
        name = edit.file or ""
        if not EDIT_FILE.fullmatch(name):
            raise DamageFound(f"edit {edit.id} has no file in `edits/`: {name!r}", hint=VERIFY_HINT)
        return name

    def index(self, edit: Edit) -> dict[str, np.ndarray]:
        """What an expert's file holds for routing: its `neuron` (h,), `key` (h,) or (n, h), and the neurons that were
        `refitted` (m, h) for its sake, of the experts `refitted_of` (m,).

        Raises `DamageFound` if it is not what was committed.
        """
        name = self.name(edit)
        arrays = read_index(self.folder, name, edit.index_sha256)
        vectors = [arrays["neuron"], arrays["key"], *([arrays["refitted"]] if arrays["refitted"].size else [])]
        if any(one.shape[-1:] != (self.width,) or one.dtype != np.float32 for one in vectors):
            raise DamageFound(f"`{name}` holds no neuron of width {self.width}", hint=VERIFY_HINT)
        return arrays

    def keys(self, edit: Edit) -> np.ndarray:
        """The keys (n, h) that an edit's neuron was trained to fire on: its own, or those of all edits that
        share its expert."""
        return np.atleast_2d(self.index(edit)["key"])

    def expert(self, edit: Edit) -> np.ndarray | LowRankArrays:
        """The expert of an edit: (d, h) in W_down's place, or what is added to it.

        Raises `DamageFound` if the file is not, byte for byte, the one that was committed.
        """
        self._check_sum(edit)
        return read_expert(self.folder, self.name(edit))

    def _check_sum(self, edit: Edit) -> None:
        name = self.name(edit)
        if checked_sum(self.folder, name) != edit.sha256:
            raise DamageFound(
                f"`{name}` is not what was committed as edit {edit.id}",
                hint=f"restore it from a backup, or `scen revert {edit.id}`",
            )
