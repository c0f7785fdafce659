"""Make edits again from their files, without training: the ledger is lost, or does not know the files.

An edit file names its records and its base. Neurons, biases and theta are computed again, as for any new edit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from scen_cli.data.records import EditRecord, SourceLine, check_record
from scen_cli.editing.edit_plan import Outcome, outcome_of
from scen_cli.editing.editor import Editor
from scen_cli.errors import DamageFound, UsageError
from scen_cli.experts.fit import ExpertFit
from scen_cli.experts.fit_records import FittedExpert
from scen_cli.model.expert_stack import Expert, LowRank
from scen_cli.project.edit_files import BASE_SETTINGS
from scen_cli.project.tensor_files import checked_sum, metadata, read_tensors

FILE = re.compile(r"\d{6,}-(?P<sum>[0-9a-f]{8})\.safetensors")
FOLDERS = (".", "edits", "lost", "lost/edits")  # of a project, or of what is left of one


def edit_files_in(folder: Path) -> list[Path]:
    """The edit files in what is left of a project, in the order of their edits.

    Raises:
        UsageError: There are none.
    """
    found = {path.name: path for name in FOLDERS for path in (folder / name).glob("*") if FILE.fullmatch(path.name)}
    if not found:
        raise UsageError(f"there are no edit files in `{folder}`", hint="name a project's folder, or its `edits`")
    return sorted(found.values(), key=lambda path: (int(path.name.split("-")[0]), path.name))


def rebuild(editor: Editor, files: Sequence[Path]) -> Iterator[list[Outcome]]:
    """Commit the experts in these files as new edits. Call inside `project.writing()`.

    Yields:
        The outcomes of the records of each file.
    """
    for file in files:
        try:
            yield _rebuild(editor, file)
        except (UsageError, DamageFound) as error:
            yield [Outcome(file.name, "failed", reason=str(error))]


def _rebuild(editor: Editor, file: Path) -> list[Outcome]:
    records = _records(editor, file)
    where = SourceLine(file.name, 1)
    ledger, active = editor.project.ledger, []
    for record in records:
        active += [edit for edit in ledger.find_exact(record.prompt, record.target) if edit.state == "active"]
    if len(active) == len(records):
        return [Outcome(file.name, "skipped", edit.id, f"already edit {edit.id}") for edit in active]
    fit = ExpertFit(_expert(editor, file), [], [[] for _record in records], math.nan)
    edits = editor.edit_group([(record, where) for record in records], fitted=FittedExpert(fit, 0.0))
    return [outcome_of(editor.project, edit, where) for edit in edits]


def _records(editor: Editor, file: Path) -> list[EditRecord]:
    """The records that a file names, if it is whole and of this project's base."""
    match = FILE.fullmatch(file.name)
    if match is None or not checked_sum(file.parent, file.name).startswith(match["sum"]):
        raise DamageFound("the file is not what was written")
    header = metadata(file.parent, file.name)
    if "records" not in header:
        raise UsageError("it does not name its records: an older scen wrote it")
    wanted = {name: editor.project.settings.get(name) for name in BASE_SETTINGS}
    if header.get("base") != wanted:
        raise UsageError("its expert was trained on another base, layer or target module")
    try:
        return [check_record(item) for item in header["records"]]
    except (TypeError, ValueError) as error:
        raise DamageFound(f"its records cannot be read: {error}") from error


def _expert(editor: Editor, file: Path) -> Expert:
    full, a, b = read_tensors(file.parent, file.name, ("expert?", "lora_A?", "lora_B?"))
    d, h = editor.edited.projection_shape
    rank = len(a)
    shapes = [full.shape] if full.size else [a.shape, b.shape]
    if shapes != ([(d, h)] if full.size else [(rank, h), (d, rank)]) or not _finite(full, a, b):
        raise DamageFound("it holds no expert of this base")
    if full.size:
        return torch.from_numpy(full)
    return LowRank(torch.from_numpy(a).float(), torch.from_numpy(b).float())


def _finite(*arrays: np.ndarray) -> bool:
    return all(np.isfinite(array).all() for array in arrays)
