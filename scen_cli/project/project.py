"""A project folder, and the class that reads and writes it.

myproject/
  scen.db                          the ledger
  scen.db.sha256                   its seal
  edits/000001-<sha8>.safetensors  expert, indexing neuron and key of one edit
  guard-<sha8>.safetensors         keys of prompts that no edit may claim
  merged.safetensors               W_merge: a cache, which can be rebuilt from the edit files
  method-<sha8>.safetensors        instead of edit files, if the project edits by another method than SCEN
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from scen_cli.errors import DamageFound, NoProject, ProjectLocked, UsageError
from scen_cli.project import disk, w_merge
from scen_cli.project.edit_files import EditFiles, EditTensors, LowRankArrays, header_of, write_edit
from scen_cli.project.event_log import digest_of_rows
from scen_cli.project.guard import GUARD_FILE, Guard, NewGuard, put_guard, read_guard
from scen_cli.project.ledger import Ledger, now
from scen_cli.project.ledger_queries import read_settings
from scen_cli.project.ledger_rows import Edit, Threshold
from scen_cli.project.lock_and_seal import LEDGER, MIN_WAIT, NOT_SEALED, locked, rolled_back, seal
from scen_cli.project.method_state import put_state, write_state
from scen_cli.project.new_edits import TrainedEdit, TrainingStats, insert_edits, superseded_edits
from scen_cli.project.tensor_files import StoredFile, remove_older
from scen_cli.project.w_merge import MergedNeurons

OLDER_HINT = "put the newer one back, or restore a backup; `scen verify --repair --accept-ledger` goes on with this one"


class Project:
    """One project folder. Reading needs no lock; writing needs `with project.writing():`."""

    def __init__(self, folder: Path | str, author: str | None = None, wait: float = MIN_WAIT) -> None:
        """Open a project.

        Args:
            folder: The project's folder.
            author: Recorded with every change; None for git's user or the login.
            wait: Seconds that `writing` waits for another writer.

        Raises:
            NoProject: The folder holds no project.
            DamageFound: The ledger is not what scen writes.
            UsageError: A newer scen made the project.
        """
        self.folder, self.wait, self.is_writing = Path(folder), wait, False
        self.neurons_changed = False  # since W_merge was rebuilt
        if not (self.folder / LEDGER).is_file() or (self.folder / LEDGER).is_symlink():
            hint = "`scen init --model MODEL --layer N` makes one; `--dir DIR` opens one elsewhere"
            raise NoProject(f"no scen project in `{self.folder}`", hint=hint)
        self.ledger = Ledger(self.folder / LEDGER, author, wait)
        self.settings = read_settings(self.ledger)
        self.files = EditFiles(self.folder, self.settings["ffn_width"])
        if self.ledger.migrated:
            self.neurons_changed = self.method is None
            with suppress(ProjectLocked, OSError, DamageFound), self.writing():
                pass  # the end rebuilds W_merge and seals the ledger

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
        """Create a project. It appears complete or not at all: the ledger is built under another name, then renamed.

        Args:
            folder: The project's folder.
            settings: What stays fixed: base, layer, recipe.
            theta: The first threshold.
            guard: The guard, if the recipe needs one.
            author: As in `Project`.
            state: The first state of a method other than SCEN.

        Raises:
            UsageError: The folder already holds a project.
        """
        folder = Path(folder)
        refuse_existing(folder)
        unused = [path for path in (folder / "edits", folder) if not path.exists()]
        disk.make_folder(folder / "edits")
        draft = folder / f"{LEDGER}.{os.getpid()}.new"
        draft.unlink(missing_ok=True)  # left by a killed process of the same number
        draft.touch()  # SQLite would take away a group's right to write, which the other files have
        with ExitStack() as at_end:
            at_end.callback(lambda: None if (folder / LEDGER).exists() else disk.remove_empty(unused))
            at_end.callback(draft.unlink, missing_ok=True)
            ledger = at_end.enter_context(closing(Ledger(draft, author)))
            with ledger.change("init", **settings) as payload:
                rows = ({"name": name, "value": json.dumps(value)} for name, value in settings.items())
                ledger.db["settings"].insert_all(rows)
                payload["nonce"] = secrets.token_hex(8)  # so that two equal projects of one second differ in their log
                payload |= ledger.set_threshold(Threshold(theta, "init", now()))
            if guard is not None:
                put_guard(folder, ledger, guard)
            if state is not None:
                put_state(ledger, write_state(folder, settings["method"], state), [])
            with locked(folder):  # of two processes, one creates the project
                refuse_existing(folder)
                seal(folder, ledger, draft.name)
                ledger.close()
                disk.rename(draft, folder / LEDGER)
        return cls(folder, author)

    @property
    def method(self) -> str | None:
        """The method that the project edits by; None for SCEN."""
        return self.settings.get("method")

    def close(self) -> None:
        self.ledger.close()

    @contextmanager
    def writing(self, even_if_older: bool = False) -> Iterator[None]:
        """Hold the project's lock; rebuild W_merge, if edits changed, and seal the ledger at the end.

        Args:
            even_if_older: Also if the ledger is an older copy of the sealed one. It is not sealed then.

        Raises:
            ProjectLocked: Another process is writing; the message names it.
            DamageFound: The ledger is an older copy of the sealed one, or another one: a change would seal it, and the
                files of newer edits would belong to nothing.
            RuntimeError: This object is writing already: it would wait for itself.
        """
        if self.is_writing:
            raise RuntimeError("`writing` is entered already: the change belongs to it, without another `writing`")
        with locked(self.folder, self.wait):
            older = rolled_back(self.folder, self.ledger)
            if older and not even_if_older:
                raise DamageFound(f"`{LEDGER}` {NOT_SEALED} Nothing is changed", hint=OLDER_HINT)
            self.is_writing = True
            try:
                yield
            finally:
                if self.neurons_changed:
                    # W_merge is a cache: if it cannot be written, readers use the edit files.
                    with suppress(DamageFound, OSError):
                        self.merge(reuse=True)
                self.is_writing = False
                if not older:
                    with suppress(OSError):  # the commits are on disk; `verify --deep` says that the seal is old
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
        """Write one trained expert and its edits: first the file, then all rows in one transaction.

        Args:
            edits: The edits that share the expert, usually one. An active edit of the same prompt becomes superseded,
                and so do the edits in `superseding`. A failed edit is recorded and changes nothing.
            training: How they were trained.
            tensors: The content of the file; None if all edits failed.
            bias: The bias of the neuron.
            threshold: The new threshold, if the edit raised it.

        Returns:
            The new edits.
        """
        self.check_writing()
        expert = next((self.ledger.next_edit_id() + index for index, edit in enumerate(edits) if edit.active), None)
        if expert is None or tensors is None:
            return insert_edits(self.ledger, edits, training, [[]] * len(edits), None)
        rank = tensors.expert.rank if isinstance(tensors.expert, LowRankArrays) else 0
        header = header_of([edit.record for edit in edits if edit.active], self.settings)
        stored = write_edit(self.folder, expert, tensors, header)
        columns = {**vars(stored), "expert": expert, "rank": rank, "bias": bias}
        try:
            supersedes = [superseded_edits(self.ledger, edit) if edit.active else [] for edit in edits]
            inserted = insert_edits(self.ledger, edits, training, supersedes, columns, threshold)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):  # nothing was committed; after other errors `verify` tells
                disk.remove(self.folder / stored.file)
            raise
        self.neurons_changed = True
        return inserted

    def set_threshold(self, threshold: Threshold) -> None:
        """Make a threshold the active one."""
        self.check_writing()
        with self.ledger.change("calibrate") as payload:
            payload |= self.ledger.set_threshold(threshold)

    def check_may_supersede(self, prompt: str) -> None:
        """Raise `UsageError` if the prompt's active edit shares its expert: its neuron would stay active."""
        for edit in self.ledger.active_edits_for(prompt):
            sharing = self.ledger.sharing(edit)
            if len(sharing) > 1:
                raise UsageError(
                    f"{prompt!r} is edit {edit}, which shares its expert with others: it cannot be superseded alone",
                    hint=f"`scen revert {' '.join(map(str, sharing))}`, then edit again",
                )

    def guard(self) -> Guard | None:
        """The guard, if the project has one."""
        return read_guard(self.folder, self.ledger)

    def set_guard(self, guard: NewGuard) -> None:
        """Replace the guard. Neurons that were fitted with the old one stay as they are."""
        self.check_writing()
        remove_older(self.folder, GUARD_FILE, put_guard(self.folder, self.ledger, guard).file)

    def find(self, edit_id: int) -> Edit:
        """An edit by its id. Raises `UsageError` if there is none."""
        return self.ledger.find(edit_id)

    def merge(self, reuse: bool = False) -> StoredFile:
        """Rebuild `merged.safetensors` from the edit files (equation 9).

        Args:
            reuse: Take the rows of edits that stay active from the file, if it is intact.

        Raises:
            UsageError: The project edits by another method than SCEN: it has no neurons.
        """
        if self.method is not None:
            raise UsageError(f"this project edits by `{self.method}`: there are no neurons to merge")
        self.check_writing()
        self.neurons_changed = False
        return w_merge.rebuild_w_merge(self.ledger, self.files, reuse)

    def w_merge(self) -> MergedNeurons:
        """W_merge of the active edits."""
        return w_merge.load_w_merge(self.ledger, self.files)

    def expert(self, edit_id: int) -> np.ndarray | LowRankArrays:
        """The expert of an edit: (d, h), which replaces W_down, or low-rank, which is added to it.

        Raises:
            DamageFound: The file is not byte for byte what was committed.
        """
        return self.files.expert(self.find(edit_id))

    def record_evaluation(
        self,
        suite: str,
        settings: dict[str, Any],
        metrics: dict[str, Any],
        last_change: int,
        samples: list[dict[str, Any]],
    ) -> int:
        """Record an evaluation.

        Args:
            suite: The suite's name.
            settings: How it was scored.
            metrics: The figures.
            last_change: `ledger.last_change()` when the evaluation began.
            samples: Every prompt and its answers, which the figures count.

        Returns:
            The evaluation's id.
        """
        self.check_writing()
        with self.ledger.change("evaluation", suite=suite) as payload:
            content = {"settings": settings, "metrics": metrics, "samples": samples}
            row = {"suite": suite, "last_change": last_change, "created": now()}
            row |= {name: json.dumps(value) for name, value in content.items()}
            payload["id"] = int(self.ledger.db["evaluations"].insert(row).last_pk)
            payload["row"] = digest_of_rows(self.ledger.db["evaluations"].rows_where("id = ?", [payload["id"]]))
        return int(payload["id"])


def refuse_existing(folder: Path) -> None:
    """Raise `UsageError` if the folder already holds a project."""
    if (folder / LEDGER).exists():
        hint = f"`scen status --dir {folder}` shows it; another `--dir` makes another"
        raise UsageError(f"`{folder}` already holds a project", hint=hint)
