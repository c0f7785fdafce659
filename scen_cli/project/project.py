"""A project folder and the one door to it.

myproject/
  scen.db                          the ledger
  edits/000001-<sha8>.safetensors  expert, indexing neuron and key of one edit
  guard-<sha8>.safetensors         keys of prompts that must stay the base's own
  merged.safetensors               W_merge: a cache, rebuilt from the files at will
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from scen_cli.errors import DamageFound, NoProject, ProjectLocked, UsageError
from scen_cli.project.guard import Guard, NewGuard, add_guard, read_guard, write_guard_file
from scen_cli.project.ledger import Edit, Ledger, Threshold, now
from scen_cli.project.store import (
    EditTensors,
    LowRankArrays,
    StoredFile,
    read_expert,
    read_tensors,
    sha256_of,
    write_edit,
    write_merged,
)
from scen_cli.project.trained import Trained, Training, edit_row

LEDGER = "scen.db"
FORMAT = 1  # of the whole folder; a newer one is refused
MERGED = "merged.safetensors"


@dataclass(frozen=True)
class Merged:
    """W_merge (t, h), the biases (t,), and the expert of each row, by the id of its (first) edit."""

    experts: list[int]
    neurons: np.ndarray
    biases: np.ndarray


class Project:
    """Opens one project folder. Reading needs no lock; writing needs `with project.writing():`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / LEDGER).is_file():
            raise NoProject(
                f"no scen project in `{self.folder}`",
                hint="`scen init --model MODEL --layer N` makes one; `--dir DIR` opens one elsewhere",
            )
        self.ledger = Ledger(self.folder / LEDGER)
        self.settings = self.ledger.settings()
        if not self.settings:
            raise DamageFound(f"`{self.folder / LEDGER}` holds no project", hint="restore it from a copy")
        if self.settings["format"] != FORMAT:
            raise UsageError(f"this project has format {self.settings['format']}; this scen reads format {FORMAT}")
        self._lock = FileLock(self.folder / "scen.lock")

    @classmethod
    def create(
        cls, folder: Path | str, settings: dict[str, Any], theta: float, guard: NewGuard | None = None
    ) -> Project:
        """Make a project. It appears whole or not at all: the ledger is built aside, then renamed.

        Raises `UsageError` when the folder already holds a project.
        """
        folder = Path(folder)
        refuse_existing(folder)
        (folder / "edits").mkdir(parents=True, exist_ok=True)
        draft = folder / f"{LEDGER}.{os.getpid()}.new"
        ledger = Ledger(draft)
        with ledger.change("init", **settings) as db:
            db["settings"].insert_all({"name": name, "value": json.dumps(value)} for name, value in settings.items())
            ledger.set_threshold(Threshold(theta, "init", now()))
        if guard is not None:
            add_guard(ledger, guard, write_guard_file(folder, guard))
        ledger.close()
        with FileLock(folder / "scen.lock"):  # two at once: one of them makes it
            if (folder / LEDGER).exists():
                draft.unlink()
            refuse_existing(folder)
            draft.rename(folder / LEDGER)
        return cls(folder)

    def close(self) -> None:
        self.ledger.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the project's lock. Raises `ProjectLocked`, naming the holder, if it is taken."""
        try:
            self._lock.acquire(timeout=1)
        except Timeout as error:
            holder = self.folder / "scen.lock.holder"
            who = holder.read_text().strip() if holder.is_file() else "another process"
            raise ProjectLocked(
                f"{who} is writing to this project", hint="wait for it to end, then run again"
            ) from error
        try:
            (self.folder / "scen.lock.holder").write_text(f"process {os.getpid()}\n")
            yield
        finally:
            self._lock.release()

    def commit(
        self,
        edits: list[Trained],
        training: Training,
        tensors: EditTensors | None,
        bias: float | None = None,
        threshold: Threshold | None = None,
    ) -> list[Edit]:
        """Write one trained expert and its edits (one, unless they share it): the file first, then one
        transaction with everything about them: the `bias` of their neuron, the `threshold` they call for.

        An active edit of the same prompt becomes superseded, and so do those it says. A failed edit is recorded and
        changes nothing; if all failed there are no `tensors`.
        """
        first_id = self.ledger.next_edit_id()
        ids = range(first_id, first_id + len(edits))
        expert = next((edit_id for edit_id, edit in zip(ids, edits, strict=True) if edit.in_force), None)
        stored = write_edit(self.folder, expert, tensors) if expert and tensors else None
        rank = tensors.expert.rank if tensors and isinstance(tensors.expert, LowRankArrays) else 0
        leaving = [self._leaving(edit) if stored and edit.in_force else set() for edit in edits]
        with self.ledger.db.atomic():
            for edit_id, edit, replaced in zip(ids, edits, leaving, strict=True):
                told: dict[str, Any] = {"prompt": edit.record.prompt, "target": edit.record.target}
                file = stored if edit.in_force else None
                kind, told["sha256"] = ("edit", file.sha256) if file else ("edit-failed", None)
                told["bias"] = bias if file else None
                if file and threshold and edit_id == expert:
                    self.ledger.set_threshold(threshold)
                    told["theta"] = threshold.theta
                with self.ledger.change(kind, edit_id, **told) as db:
                    for older in replaced:
                        db["edits"].update(older, {"state": "superseded", "superseded_by": edit_id})
                    row = edit_row(edit_id, expert, edit, training, file, len(edits), rank)
                    db["edits"].insert({**row, "bias": told["bias"]})
        return [self.find(edit_id) for edit_id in ids]

    def _leaving(self, edit: Trained) -> set[int]:
        """Edits in force that one takes the place of."""
        active = (older for older in edit.superseding if self.find(older).state == "active")
        return {*self.ledger.in_force_for(edit.record.prompt), *active}

    def set_threshold(self, threshold: Threshold) -> None:
        """Put a threshold in force."""
        with self.ledger.change("calibrate", theta=threshold.theta, chosen_by=threshold.chosen_by):
            self.ledger.set_threshold(threshold)

    def check_may_supersede(self, prompt: str) -> None:
        """Raise `UsageError` if the edit that a prompt has now shares its expert with others: its neuron
        would go on firing for it."""
        for edit in self.ledger.in_force_for(prompt):
            mates = self.ledger.sharing(edit)
            if len(mates) > 1:
                raise UsageError(
                    f"{prompt!r} is edit {edit}, which shares its expert with others: it cannot be superseded alone",
                    hint=f"`scen revert {' '.join(map(str, mates))}`, then edit anew",
                )

    def revert(self, *edit_ids: int) -> list[Edit]:
        """Take edits out of routing, at once; their rows and files stay.

        Raises `UsageError` when there is no such edit, one is not in force, or one shares its expert
        with an edit that is to stay.
        """
        for edit_id in edit_ids:
            edit = self.find(edit_id)
            if edit.state != "active":
                raise UsageError(f"edit {edit_id} is not in force: it is {edit.state}")
            mates = self.ledger.sharing(edit_id)
            if not set(mates) <= set(edit_ids):
                raise UsageError(
                    f"edit {edit_id} shares its expert and neuron with others",
                    hint=f"`scen revert {' '.join(map(str, mates))}` takes them all back",
                )
        with self.ledger.db.atomic():
            for edit_id in edit_ids:
                with self.ledger.change("revert", edit_id) as db:
                    db["edits"].update(edit_id, {"state": "reverted"})
        with suppress(DamageFound):  # another edit's file may be lost: the cache is old, and not believed
            self.merge()
        return [self.find(edit_id) for edit_id in edit_ids]

    def guard(self) -> Guard | None:
        """The prompts that must stay the base's own, with their keys, if the project has any."""
        return read_guard(self.folder, self.ledger)

    def set_guard(self, guard: NewGuard) -> None:
        """Put a guard in the place of any other. What neurons were made with it stays as it is."""
        add_guard(self.ledger, guard, write_guard_file(self.folder, guard))
        for stray in self.folder.glob("guard-*"):
            if stray.name != self.ledger.settings()["guard"]["file"]:
                stray.unlink()

    def find(self, edit_id: int) -> Edit:
        edit = self.ledger.edit(edit_id)
        if edit is None:
            raise UsageError(f"there is no edit {edit_id}", hint="`scen status` lists the edits")
        return edit

    def merge(self) -> StoredFile:
        """Rebuild `merged.safetensors` from the edit files (equation 9)."""
        merged = self.merged_files()
        return write_merged(self.folder, merged.experts, merged.neurons)

    def merged(self) -> Merged:
        """W_merge as the ledger says it is: the cache if it fits the ledger, else from the files."""
        if (self.folder / MERGED).is_file():
            with suppress(DamageFound):  # a cache: what cannot be read is made anew
                ids, neurons = read_tensors(self.folder, MERGED, ("edits", "neurons"))
                if ids.tolist() == sorted(set(self.ledger.experts_in_force().values())):
                    return Merged(ids.tolist(), neurons, self._biases(ids.tolist()))
        return self.merged_files()

    def keys(self, edit: Edit) -> np.ndarray:
        """The keys (n, h) that an edit's neuron was trained to fire on: its own, or those of all edits that
        share its expert."""
        return np.atleast_2d(read_tensors(self.folder, self.path_of(edit), ("key",))[0])

    def expert(self, edit_id: int) -> np.ndarray | LowRankArrays:
        """The expert of one edit: (d, h) in W_down's place, or what is added to it.

        Raises `DamageFound` if the file is not, byte for byte, the one that was committed.
        """
        edit = self.find(edit_id)
        name = self.path_of(edit)
        if (self.folder / name).is_file() and sha256_of(self.folder / name) != edit.sha256:
            raise DamageFound(
                f"`{name}` is not what was committed as edit {edit_id}",
                hint=f"restore it from a copy, or `scen revert {edit_id}`",
            )
        return read_expert(self.folder, name)

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
        with self.ledger.change("evaluation", suite=suite) as db:
            row = {
                "suite": suite,
                "settings": json.dumps(settings),
                "metrics": json.dumps(metrics),
                "last_change": last_change,
                "samples": json.dumps(samples),
                "created": now(),
            }
            return int(db["evaluations"].insert(row).last_pk)

    def merged_files(self) -> Merged:
        """W_merge from the edit files. Where an edit had earlier neurons fitted again, theirs are those of the
        newest edit in force that did."""
        rows: dict[int, np.ndarray] = {}
        for expert in sorted(set(self.ledger.experts_in_force().values())):
            file = self.path_of(self.find(expert))
            rows[expert], refitted, of = read_tensors(self.folder, file, ("neuron", "refitted?", "refitted_of?"))
            rows.update({int(other): row for other, row in zip(of, refitted, strict=True) if int(other) in rows})
        neurons = np.stack(list(rows.values())) if rows else np.empty((0, self.settings["ffn_width"]), np.float32)
        return Merged(list(rows), neurons, self._biases(list(rows)))

    def _biases(self, experts: list[int]) -> np.ndarray:
        biases = self.ledger.biases_in_force()
        return np.array([biases.get(expert, 0.0) for expert in experts], np.float32)

    def path_of(self, edit: Edit) -> str:
        """The edit's file; a name that would lead out of the project's `edits/` is refused."""
        name = edit.file or ""
        if Path(name).parent.as_posix() != "edits" or Path(name).name in ("", ".", ".."):
            raise DamageFound(f"edit {edit.id} has no file in `edits/`: {name!r}", hint="run `scen verify`")
        return name


def refuse_existing(folder: Path) -> None:
    """Raise `UsageError` if the folder already holds a project."""
    if (folder / LEDGER).exists():
        raise UsageError(
            f"`{folder}` already holds a project",
            hint=f"`scen status --dir {folder}` shows it; another `--dir` makes another",
        )
