"""A project folder and the one door to it.

myproject/
  scen.db                          the ledger
  scen.db.sha256                   its seal
  edits/000001-<sha8>.safetensors  expert, indexing neuron and key of one edit
  guard-<sha8>.safetensors         keys of prompts that must stay the base's own
  merged.safetensors               W_merge: a cache, rebuilt from the files at will
  method-<sha8>.safetensors        in place of edits' files, if the project edits by another method than SCEN
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from scen_cli.errors import DamageFound, NoProject, ProjectLocked, UsageError
from scen_cli.project import disk, w_merge
from scen_cli.project.commit_rows import TrainedEdit, TrainingStats, edit_row
from scen_cli.project.edit_files import EditFiles
from scen_cli.project.event_log import digest_of_row, digest_of_rows
from scen_cli.project.guard import GUARD_FILE, Guard, NewGuard, add_guard, read_guard, write_guard_file
from scen_cli.project.ledger import Ledger, now
from scen_cli.project.ledger_rows import Edit, Threshold
from scen_cli.project.lock import AT_LEAST, locked
from scen_cli.project.method_state import put_state, write_state
from scen_cli.project.seal import LEDGER, seal
from scen_cli.project.settings import check_settings
from scen_cli.project.tensor_files import (
    EditTensors,
    LowRankArrays,
    StoredFile,
    write_edit,
)
from scen_cli.project.w_merge import MergedNeurons


class Project:
    """Opens one project folder. Reading needs no lock; writing needs `with project.writing():`."""

    def __init__(self, folder: Path | str, author: str | None = None, wait: float = AT_LEAST) -> None:
        """`author` stands beside every change (git's user or the login, unless it is given); `wait`: seconds that
        `writing` waits for another writer.

        Raises `NoProject`, `DamageFound` for a ledger that is not what scen writes, and `UsageError` for a project
        that a newer scen made.
        """
        self.folder, self.wait, self.is_writing = Path(folder), wait, False
        if not (self.folder / LEDGER).is_file() or (self.folder / LEDGER).is_symlink():
            raise NoProject(
                f"no scen project in `{self.folder}`",
                hint="`scen init --model MODEL --layer N` makes one; `--dir DIR` opens one elsewhere",
            )
        self.ledger = Ledger(self.folder / LEDGER, author)
        self.settings = self.ledger.settings()
        check_settings(self.settings, self.folder / LEDGER)
        self.ledger.check_settings(self.settings)
        self.files = EditFiles(self.folder, self.settings["ffn_width"])
        if self.ledger.updated and self.method is None:
            with suppress(DamageFound, ProjectLocked, OSError), self.writing():
                self.merge()

    @classmethod
    def create(
        cls,
        folder: Path | str,
        settings: dict[str, Any],
        theta: float,
        guard: NewGuard | None = None,
        author: str | None = None,
        state: Mapping[str, np.ndarray] | None = None,
    ) -> Project:
        """Make a project. It appears whole or not at all: the ledger is built aside, then renamed. `state` is that of
        a method other than SCEN, before its first edit.

        Raises `UsageError` when the folder already holds a project.
        """
        folder = Path(folder)
        refuse_existing(folder)
        disk.make_folder(folder / "edits")
        draft = folder / f"{LEDGER}.{os.getpid()}.new"
        draft.unlink(missing_ok=True)  # of a process of the same number that was killed
        ledger = Ledger(draft, author)
        try:
            with ledger.change("init", **settings) as told:
                rows = ({"name": name, "value": json.dumps(value)} for name, value in settings.items())
                ledger.db["settings"].insert_all(rows)
                told["nonce"] = secrets.token_hex(8)  # two projects made alike in one second are two
                told["threshold"] = ledger.set_threshold(Threshold(theta, "init", now()))["threshold"]
            if guard is not None:
                add_guard(ledger, guard, write_guard_file(folder, guard))
            if state is not None:
                put_state(ledger, write_state(folder, settings["method"], state), [])
            with locked(folder):  # two at once: one of them makes it
                refuse_existing(folder)
                seal(folder, ledger, draft.name)
                ledger.close()
                disk.rename(draft, folder / LEDGER)
        finally:
            ledger.close()
            draft.unlink(missing_ok=True)
        return cls(folder, author)

    @property
    def method(self) -> str | None:
        """The method other than SCEN that the project edits by, if it does."""
        return self.settings.get("method")

    def close(self) -> None:
        self.ledger.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the project's lock, and seal the ledger at the end. Raises `ProjectLocked`, naming the holder."""
        with locked(self.folder, self.wait):
            self.is_writing = True
            try:
                yield
            finally:
                self.is_writing = False
                with suppress(OSError):  # what was committed stands: the seal is then old, and `verify --deep` says so
                    seal(self.folder, self.ledger)

    def check_writing(self) -> None:
        """Raise `RuntimeError` outside `with project.writing():`."""
        if not self.is_writing:
            raise RuntimeError("the project can only be changed inside `with project.writing():`")

    def commit(
        self,
        edits: list[TrainedEdit],
        training: TrainingStats,
        tensors: EditTensors | None,
        bias: float | None = None,
        threshold: Threshold | None = None,
    ) -> list[Edit]:
        """Write one trained expert and its edits (one, unless they share it): the file first, then one
        transaction with everything about them: the `bias` of their neuron, the `threshold` they call for.

        An active edit of the same prompt becomes superseded, and so do those it says. A failed edit is recorded and
        changes nothing; if all failed there are no `tensors`.
        """
        self.check_writing()
        first_id = self.ledger.next_edit_id()
        ids = range(first_id, first_id + len(edits))
        expert = next((edit_id for edit_id, edit in zip(ids, edits, strict=True) if edit.active), None)
        stored = write_edit(self.folder, expert, tensors) if expert and tensors else None
        rank = tensors.expert.rank if tensors and isinstance(tensors.expert, LowRankArrays) else 0
        leaving = [self.leaving(edit) if stored and edit.active else set() for edit in edits]
        with self.ledger.db.atomic():
            for edit_id, edit, replaced in zip(ids, edits, leaving, strict=True):
                file = stored if edit.active else None
                row = edit_row(edit_id, expert, edit, training, file, len(edits), rank)
                with self.ledger.change("edit" if file else "edit-failed", edit_id) as told:
                    for older in replaced:
                        self.ledger.db["edits"].update(older, {"state": "superseded", "superseded_by": edit_id})
                    self.ledger.db["edits"].insert({**row, "bias": bias if file else None})
                    told |= self.event_payload(edit_id, sorted(replaced))
                    if len(ids) > 1:
                        told["together"] = list(ids)
                    if file and threshold and edit_id == expert:
                        told |= self.ledger.set_threshold(threshold)
        return [self.find(edit_id) for edit_id in ids]

    def event_payload(self, edit_id: int, supersedes: list[int]) -> dict[str, Any]:
        """What an edit's event says: all of its row, in clear or by its digest, and what it was made with."""
        row = dict(next(self.ledger.db["edits"].rows_where("id = ?", [edit_id])))
        names = ("prompt", "target", "state", "superseded_by", "file", "sha256", "size", "bias", "activation", "rank")
        told = {name: row[name] for name in (*names, "seed")}
        base, recipe = self.settings.get("weights_digest"), self.settings["recipe"].get("name")
        return {**told, "row": digest_of_row(row), "supersedes": supersedes, "base": base, "recipe": recipe}

    def leaving(self, edit: TrainedEdit) -> set[int]:
        """Edits active that one takes the place of."""
        active = (older for older in edit.superseding if self.find(older).state == "active")
        return {*self.ledger.active_edits_for(edit.record.prompt), *active}

    def set_threshold(self, threshold: Threshold) -> None:
        """Put a active threshold."""
        self.check_writing()
        with self.ledger.change("calibrate") as told:
            told |= self.ledger.set_threshold(threshold)

    def check_may_supersede(self, prompt: str) -> None:
        """Raise `UsageError` if the edit that a prompt has now shares its expert with others: its neuron
        would go on firing for it."""
        for edit in self.ledger.active_edits_for(prompt):
            mates = self.ledger.sharing(edit)
            if len(mates) > 1:
                raise UsageError(
                    f"{prompt!r} is edit {edit}, which shares its expert with others: it cannot be superseded alone",
                    hint=f"`scen revert {' '.join(map(str, mates))}`, then edit anew",
                )

    def guard(self) -> Guard | None:
        """The prompts that must stay the base's own, with their keys, if the project has any."""
        return read_guard(self.folder, self.ledger)

    def set_guard(self, guard: NewGuard) -> None:
        """Put a guard in the place of any other. What neurons were made with it stays as it is."""
        self.check_writing()
        add_guard(self.ledger, guard, write_guard_file(self.folder, guard))
        for old in self.folder.glob("guard-*"):
            if GUARD_FILE.fullmatch(old.name) and old.name != self.ledger.settings()["guard"]["file"]:
                disk.remove(old)

    def find(self, edit_id: int) -> Edit:
        edit = self.ledger.edit(edit_id)
        if edit is None:
            raise UsageError(f"there is no edit {edit_id}", hint="`scen status` lists the edits")
        return edit

    def merge(self) -> StoredFile:
        """Rebuild `merged.safetensors` from the edit files (equation 9). Raises `UsageError` where there are none: in a
        project that edits by another method than SCEN."""
        if self.method is not None:
            raise UsageError(f"this project edits by `{self.method}`: there are no neurons to merge")
        self.check_writing()
        return w_merge.rebuild_w_merge(self.folder, self.ledger, self.files)

    def w_merge(self) -> MergedNeurons:
        """W_merge as the ledger says it is."""
        return w_merge.load_w_merge(self.folder, self.ledger, self.files)

    def keys(self, edit: Edit) -> np.ndarray:
        """The keys (n, h) of an edit. Raises `DamageFound` if they are not what was committed."""
        return self.files.keys(edit)

    def expert(self, edit_id: int) -> np.ndarray | LowRankArrays:
        """The expert of one edit: (d, h) in W_down's place, or what is added to it. Raises `DamageFound` if the file
        is not, byte for byte, the one that was committed."""
        return self.files.expert(self.find(edit_id))

    def record_evaluation(
        self,
        suite: str,
        settings: dict[str, Any],
        metrics: dict[str, Any],
        last_change: int,
        samples: list[dict[str, Any]],
    ) -> int:
        """Keep figures, with the newest change of the ledger when they were begun, and every answer they
        were counted from. Returns the evaluation's id."""
        self.check_writing()
        with self.ledger.change("evaluation", suite=suite) as told:
            row = {
                "suite": suite,
                "settings": json.dumps(settings),
                "metrics": json.dumps(metrics),
                "last_change": last_change,
                "samples": json.dumps(samples),
                "created": now(),
            }
            told["id"] = int(self.ledger.db["evaluations"].insert(row).last_pk)
            told["row"] = digest_of_rows(self.ledger.db["evaluations"].rows_where("id = ?", [told["id"]]))
        return int(told["id"])


def refuse_existing(folder: Path) -> None:
    """Raise `UsageError` if the folder already holds a project."""
    if (folder / LEDGER).exists():
        raise UsageError(
            f"`{folder}` already holds a project",
            hint=f"`scen status --dir {folder}` shows it; another `--dir` makes another",
        )
