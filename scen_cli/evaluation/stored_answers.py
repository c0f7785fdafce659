"""Answers that earlier evaluations generated: kept in the user's cache, for all projects on one base.

An answer depends on the base, on the prompt's tokens and on the expert that gives it. All of these are part of its key,
an expert by the digest of its file. Whatever fails here only means that an answer is generated again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from typing import Any

from sqlite_utils import Database

from scen_cli.data.user_cache import cache_folder
from scen_cli.data.write_files import digest
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.editing.project_patch import ProjectPatch

OF_BASE, OF_EXPERT = ("weights_digest", "dtype", "quantize", "device_map"), ("layer", "target_module")  # settings
BUSY_SECONDS = 5.0  # until another evaluation has written
AT_ONCE = 500  # keys in one SQL statement

# Token ids of a prompt, the expert that answers (None: the base), options of `generate`.
Question = tuple[Sequence[int], int | None, Mapping[str, Any]]


class StoredAnswers:
    """Generated tokens by what they depend on.

    Args:
        patched: The model that answers.
        patch: Its active edits.
    """

    def __init__(self, patched: PatchedModel, patch: ProjectPatch) -> None:
        edits = patched.project.ledger.edits("active")
        of_base, place = ([patched.project.settings[name] for name in names] for names in (OF_BASE, OF_EXPERT))
        self._expert = {edit.expert: [edit.sha256, *place] for edit in edits if edit.expert in patch.edits}
        end_ids = sorted(patched.template.end_ids)
        versions = [version("torch"), version("transformers"), str(patched.base.device)]
        self._path = cache_folder() / "answers" / f"{digest([of_base, end_ids, versions])[:16]}.db"

    def find(self, questions: Sequence[Question]) -> list[list[int] | None]:
        """The stored answer to each question; None if there is none."""
        keys = [self._key(*question) for question in questions]
        try:
            with closing(self._open()) as database:
                found: dict[str, list[int]] = {}
                for start in range(0, len(keys), AT_ONCE):
                    some = keys[start : start + AT_ONCE]
                    rows = database.table("answers").rows_where(f"key in ({', '.join('?' * len(some))})", some)
                    found |= {row["key"]: [int(token) for token in json.loads(row["tokens"])] for row in rows}
        except (OSError, sqlite3.Error, ValueError, TypeError):
            return [None] * len(keys)
        return [found.get(key) for key in keys]

    def put(self, questions: Sequence[Question], answers: Iterable[list[int]]) -> None:
        """Store answers. On a full or read-only disk nothing is stored."""
        rows = [
            {"key": self._key(*question), "tokens": json.dumps(answer)}
            for question, answer in zip(questions, answers, strict=True)
        ]
        try:
            with closing(self._open()) as database:
                database.table("answers").insert_all(rows, replace=True)
        except (OSError, sqlite3.Error):
            return

    def _key(self, tokens: Sequence[int], expert: int | None, options: Mapping[str, Any]) -> str:
        return digest([list(tokens), None if expert is None else self._expert[expert], sorted(options.items())])

    def _open(self) -> Database:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = Database(sqlite3.connect(self._path, timeout=BUSY_SECONDS))
        database.table("answers").create({"key": str, "tokens": str}, pk="key", if_not_exists=True)
        return database
