"""The files of a project against the rows that name them."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from scen_cli.errors import DamageFound
from scen_cli.project import w_merge
from scen_cli.project.edit_files import DTYPES, FORMAT, digest_of_index
from scen_cli.project.guard import guard_setting, read_guard
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.lock_and_seal import LEDGER
from scen_cli.project.method_state import read_state, state_setting
from scen_cli.project.project import Project
from scen_cli.project.tensor_files import checked_sum, metadata, regular
from scen_cli.project.w_merge import MERGED


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file of the project.

    Attributes:
        where: The file.
        what: What is wrong.
        edit: The edit that it belongs to, if any.
        kind: `stray`: no row names the file; `cache` and `seal`: repair rebuilds it; `damage`: a backup is needed.
    """

    where: str
    what: str
    edit: int | None = None
    kind: Literal["damage", "stray", "cache", "seal"] = "damage"


def edit_problems(project: Project, edit: Edit, deep: bool) -> list[Problem]:
    """What is wrong with an edit's file; `deep` reads it."""
    if edit.file is None:
        lost = edit.state in ("active", "superseded") and project.method is None
        return [Problem(LEDGER, f"edit {edit.id} is {edit.state} but has no file", edit.id)] if lost else []
    if edit.expert != edit.id:  # it shares the file of that edit
        return []
    what = _wrong_file(project, edit, deep)
    return [Problem(edit.file, what, edit.id)] if what else []


def _wrong_file(project: Project, edit: Edit, deep: bool) -> str:
    """What is wrong with an edit's file; empty if nothing is."""
    try:
        path = regular(project.folder, project.files.name(edit))
    except DamageFound as error:
        return f"{error} (edit {edit.id})"
    if path.stat().st_size != edit.size:
        return f"is {path.stat().st_size} bytes; edit {edit.id} was {edit.size}"
    if not deep:
        return ""
    with suppress(DamageFound):  # it cannot be read
        if checked_sum(project.folder, project.files.name(edit)) == edit.sha256:
            wrong = _wrong_tensors(project, edit, path)
            return f"edit {edit.id}: {wrong}" if wrong else ""
    return f"content of edit {edit.id} is not what was committed"


def _wrong_tensors(project: Project, edit: Edit, path: Path) -> str:
    """What is wrong with the tensors of a file that is what was committed; empty if nothing is."""
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        return f"cannot be read: {error}"
    header = metadata(project.folder, str(edit.file))
    if (header.get("format"), header.get("edit")) != (FORMAT, edit.expert):
        return f"its header is {header}"
    required = {"neuron", "key", *(("lora_A", "lora_B") if edit.rank else ("expert",))}
    if not required <= set(arrays) <= {*required, "refitted", "refitted_of"}:
        return f"holds {', '.join(sorted(arrays))}"
    width = project.settings["ffn_width"]
    shapes = {"neuron": (width,), "key": (*arrays["key"].shape[:-1], width)}
    if edit.rank:
        shapes |= {"lora_A": (edit.rank, arrays["lora_A"].shape[-1]), "lora_B": (arrays["lora_B"].shape[0], edit.rank)}
    for name, array in arrays.items():
        if array.dtype != DTYPES.get(name, np.float32) or array.shape != shapes.get(name, array.shape):
            return f"`{name}` is {array.dtype} {list(array.shape)}"
        if not np.isfinite(array).all():
            return f"`{name}` is not finite"
    return "" if digest_of_index(arrays) == edit.index_sha256 else "its neuron or key is not what was committed"


def guard_problems(project: Project, deep: bool) -> list[Problem]:
    """What is wrong with the guard's file; `deep` reads it."""
    if setting := guard_setting(project.ledger):
        return _setting_problems(project, setting, "guard", deep)
    lost = bool(project.ledger.guard())
    return [Problem(LEDGER, "there are guard prompts, but their file is not named")] if lost else []


def state_problems(project: Project, deep: bool) -> list[Problem]:
    """What is wrong with the file of a method other than SCEN; `deep` reads it."""
    if setting := state_setting(project.ledger):
        return _setting_problems(project, setting, "state", deep)
    return [Problem(LEDGER, "the method's state is not named")] if project.method else []


def _setting_problems(project: Project, setting: dict[str, Any], what: str, deep: bool) -> list[Problem]:
    """What is wrong with the file of the guard or of a method's state, which a setting names, and with its tensors."""
    name = str(setting["file"])
    try:
        if (size := regular(project.folder, name).stat().st_size) != setting["size"]:
            return [Problem(name, f"is {size} bytes; the {what} was {setting['size']}")]
        tensors: dict[str, np.ndarray] = {}
        if deep and what == "guard" and (guard := read_guard(project.folder, project.ledger)):
            tensors = vars(guard.tensors)
        elif deep and what == "state":
            tensors = read_state(project.folder, project.ledger) or {}
        floats = {key: array for key, array in tensors.items() if array.dtype.kind in "fc"}
    except DamageFound as error:
        return [Problem(name, str(error))]
    return [Problem(name, f"`{key}` is not finite") for key, array in floats.items() if not np.isfinite(array).all()]


def merged_problems(project: Project, deep: bool) -> list[Problem]:
    """Whether `merged.safetensors` matches the edit files, which must be intact.

    A cache of other edits is out of date, which is not a problem: it is not used. Only `deep` reports it.
    """
    path = project.folder / MERGED
    if not os.path.lexists(path):
        return []
    if not path.is_file():
        return [Problem(MERGED, "is not a file")]
    try:
        cached = w_merge.read_merged(project.ledger, project.files)
    except DamageFound as error:
        return [Problem(MERGED, str(error), kind="cache")]
    if not deep and not w_merge.is_current(cached, project.ledger):
        return []
    merged = w_merge.w_merge_of_files(project.ledger, project.files)
    if merged.damaged:
        files = {edit.id: edit.file for edit in project.ledger.edits()}
        return [Problem(files.get(expert) or LEDGER, what, expert) for expert, what in merged.damaged.items()]
    intact = path.read_bytes() == w_merge.merged_content(merged)
    return [] if intact else [Problem(MERGED, "is not what the edit files give", kind="cache")]
