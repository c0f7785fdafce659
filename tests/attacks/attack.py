"""One attack, the folder it runs in, and tools that attacks share."""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from scen_cli.data.suites import demo_edits

FIRST, SECOND, THIRD = demo_edits()[:3]  # the two edits of the healthy project, and a further one
FIFO_SECONDS = 6  # a reader that waits at a pipe is released after this: a hang becomes a failure


@dataclass(frozen=True)
class Attack:
    """An attack and the expected outcome.

    Attributes:
        name: What is attacked, and how.
        prepare: Tampers with the files.
        command: Runs in this process, and must not end with a traceback. `{p}` is the project, `{f}` an input file,
            `{m}` a checkpoint's folder, `{o}` a path that does not exist, `{q}` the prompt of edit 1.
        code: The exit code that it must have.
        says: What its output must contain.
        seconds: How long it may take.
    """

    name: str
    prepare: Callable[[Ground], object]
    command: str
    code: int
    says: str
    seconds: float = 20.0


@dataclass(frozen=True)
class Ground:
    """A folder with a healthy project `p`, for one attack."""

    folder: Path

    @property
    def project(self) -> Path:
        return self.folder / "p"

    @property
    def input(self) -> Path:
        return self.folder / "input.jsonl"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def canary(self) -> Path:
        """A file that no attack may create."""
        return self.folder / "canary"

    def edit_file(self, edit: int = 1) -> Path:
        (path,) = (self.project / "edits").glob(f"{edit:06d}-*")
        return path

    def guard_file(self) -> Path:
        (path,) = self.project.glob("guard-*")
        return path

    def merged(self) -> Path:
        return self.project / "merged.safetensors"

    def words(self, command: str) -> list[str]:
        """The command's words, with paths and prompts filled in."""
        names = {"p": self.project, "f": self.input, "m": self.model, "o": self.folder / "out", "q": FIRST.prompt}
        return [word.format(**names) if word.startswith("{") else word for word in shlex.split(command)]

    def sql(self, *statements: str | tuple[str, tuple]) -> None:
        """Run statements on the ledger without scen."""
        db = sqlite3.connect(self.project / "scen.db")
        with db:
            for statement in statements:
                db.execute(*((statement,) if isinstance(statement, str) else statement))
        db.close()

    def setting(self, name: str, value: Any) -> None:
        """Change one setting of the project."""
        self.sql(("insert or replace into settings (name, value) values (?, ?)", (name, json.dumps(value))))

    def recipe(self, **changes: Any) -> None:
        db = sqlite3.connect(self.project / "scen.db")
        (value,) = db.execute("select value from settings where name = 'recipe'").fetchone()
        db.close()
        self.setting("recipe", {**json.loads(value), **changes})

    def tensors(self, path: Path, known_to_ledger: bool = False, **changes: np.ndarray | None) -> None:
        """Change tensors of a file (None removes one), and its sha256 in the ledger if `known_to_ledger`."""
        tensors = {**load_file(path), **changes}
        save_file({name: value for name, value in tensors.items() if value is not None}, path)
        if known_to_ledger:
            self.acknowledge(path)

    def acknowledge(self, path: Path) -> None:
        """Write a file's sha256 and size into its edit's row, as somebody who can write to the ledger would."""
        from scen_cli.project.tensor_files import sha256_of

        name = path.relative_to(self.project).as_posix()
        row = (sha256_of(path), path.stat().st_size, name)
        self.sql(("update edits set sha256 = ?, size = ? where file = ?", row))

    def write(self, content: str | bytes) -> None:
        """Write the input file."""
        self.input.write_bytes(content if isinstance(content, bytes) else content.encode())


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def replace_by(path: Path, content: bytes | None) -> None:
    """Replace a file's content; None removes the file."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def replace_by_fifo(path: Path) -> None:
    """Replace a file by a pipe. A process that opens it waits; another process releases it after a while."""
    path.unlink()
    os.mkfifo(path)
    subprocess.Popen(  # opening a pipe for reading and writing never waits; it is closed at once
        ["sh", "-c", f"sleep {FIFO_SECONDS}; [ -p {shlex.quote(str(path))} ] && : <> {shlex.quote(str(path))}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def header(content: dict[str, Any] | bytes, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with this header; `length` is the header length that it claims."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}
