"""A project folder and the one door to it.

myproject/
  scen.db                          the ledger
  edits/000001-<sha8>.safetensors  expert, indexing neuron and key of one edit
  merged.safetensors               W_merge: a cache, rebuilt from the files at will
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.errors import DamageFound, NoProject, ProjectLocked, UsageError
from scen_cli.project.ledger import Edit, Ledger, now
from scen_cli.project.store import EditTensors, StoredFile, read_tensors, sha256_of, write_edit, write_merged

LEDGER = "scen.db"
FORMAT = 1  # of the whole folder; a newer one is refused
MERGED = "merged.safetensors"


@dataclass(frozen=True)
class Training:
    """How an edit was trained, for the ledger: `activation` is its neuron's on its own key, `failure`
    says why it is not in force, if it is not."""

    seed: int
    seconds: float
    expert_losses: list[float] = field(default_factory=list)
    neuron_losses: list[float] = field(default_factory=list)
    activation: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Merged:
    """W_merge (t, h) and the edit id of each row."""

    edits: list[int]
    neurons: np.ndarray


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
    def create(cls, folder: Path | str, settings: dict[str, Any], theta: float) -> Project:
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
            db["thresholds"].insert({"theta": theta, "chosen_by": "init", "created": now()})
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

    def commit(self, record: EditRecord, where: SourceLine, training: Training, tensors: EditTensors | None) -> Edit:
        """Write one trained edit: its file first, then one transaction with everything about it.

        An active edit of the same prompt becomes superseded. Without tensors the edit is recorded
        as failed, and the model stays as it was.
        """
        edit_id = self.ledger.next_edit_id()
        stored = write_edit(self.folder, edit_id, tensors) if tensors else None
        in_force = self.ledger.prompts_in_force() if stored else []
        kind, sha256 = ("edit", stored.sha256) if stored else ("edit-failed", None)
        with self.ledger.change(kind, edit_id, prompt=record.prompt, target=record.target, sha256=sha256) as db:
            for older in [other for other, prompt in in_force if prompt == record.prompt]:
                db["edits"].update(older, {"state": "superseded", "superseded_by": edit_id})
            db["edits"].insert(_edit_row(edit_id, record, where, training, stored))
        edit = self.ledger.edit(edit_id)
        assert edit is not None
        return edit

    def revert(self, edit_id: int) -> Edit:
        """Take an edit out of routing, at once; its row and file stay.

        Raises `UsageError` when there is no such edit or it is not in force.
        """
        edit = self.find(edit_id)
        if edit.state != "active":
            raise UsageError(f"edit {edit_id} is not in force: it is {edit.state}")
        with self.ledger.change("revert", edit_id) as db:
            db["edits"].update(edit_id, {"state": "reverted"})
        with suppress(DamageFound):  # another edit's file may be lost: the cache is old, and not believed
            self.merge()
        return self.find(edit_id)

    def find(self, edit_id: int) -> Edit:
        edit = self.ledger.edit(edit_id)
        if edit is None:
            raise UsageError(f"there is no edit {edit_id}", hint="`scen status` lists the edits")
        return edit

    def merge(self) -> StoredFile:
        """Rebuild `merged.safetensors` from the edit files (equation 9)."""
        merged = self._merge_files(self.ledger.edits("active"))
        return write_merged(self.folder, merged.edits, merged.neurons)

    def merged(self) -> Merged:
        """W_merge as the ledger says it is: the cache if it fits the ledger, else from the files."""
        if (self.folder / MERGED).is_file():
            with suppress(DamageFound):  # a cache: what cannot be read is made anew
                ids, neurons = read_tensors(self.folder, MERGED, ("edits", "neurons"))
                if ids.tolist() == [edit_id for edit_id, _prompt in self.ledger.prompts_in_force()]:
                    return Merged(ids.tolist(), neurons)
        return self._merge_files(self.ledger.edits("active"))

    def key(self, edit_id: int) -> np.ndarray:
        """The key (h,) of one edit."""
        return read_tensors(self.folder, self._path_of(self.find(edit_id)), ("key",))[0]

    def expert(self, edit_id: int) -> np.ndarray:
        """The expert (d, h) of one edit.

        Raises `DamageFound` if the file is not, byte for byte, the one that was committed.
        """
        edit = self.find(edit_id)
        name = self._path_of(edit)
        if (self.folder / name).is_file() and sha256_of(self.folder / name) != edit.sha256:
            raise DamageFound(
                f"`{name}` is not what was committed as edit {edit_id}",
                hint=f"restore it from a copy, or `scen revert {edit_id}`",
            )
        return read_tensors(self.folder, name, ("expert",))[0]

    def record_evaluation(
        self, suite: str, settings: dict[str, Any], metrics: dict[str, Any], last_change: int
    ) -> None:
        """Keep figures, with the newest change of the ledger when they were begun."""
        with self.ledger.change("evaluation", suite=suite) as db:
            db["evaluations"].insert(
                {
                    "suite": suite,
                    "settings": json.dumps(settings),
                    "metrics": json.dumps(metrics),
                    "last_change": last_change,
                    "created": now(),
                }
            )

    def _merge_files(self, active: list[Edit]) -> Merged:
        rows = [read_tensors(self.folder, self._path_of(edit), ("neuron",))[0] for edit in active]
        neurons = np.stack(rows) if rows else np.empty((0, self.settings["ffn_width"]), np.float32)
        return Merged([edit.id for edit in active], neurons)

    def _path_of(self, edit: Edit) -> str:
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


def _edit_row(
    edit_id: int, record: EditRecord, where: SourceLine, training: Training, stored: StoredFile | None
) -> dict[str, Any]:
    return {
        "id": edit_id,
        "prompt": record.prompt,
        "target": record.target,
        "subject": record.subject,
        "rephrases": json.dumps(record.rephrases),
        "state": "active" if stored else "failed",
        "superseded_by": None,
        "reason": training.failure or None,
        "file": stored.name if stored else None,
        "sha256": stored.sha256 if stored else None,
        "size": stored.size if stored else None,
        "expert_losses": json.dumps(training.expert_losses),
        "neuron_losses": json.dumps(training.neuron_losses),
        "activation": training.activation,
        "seed": training.seed,
        "seconds": training.seconds,
        "created": now(),
        "source": where.source,
        "source_line": where.line,
    }
