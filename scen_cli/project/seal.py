"""The ledger's seal: the sha256 of `scen.db` as the last writer left it, and the newest hash of its log.

SQLite keeps no sums of its pages. The seal names the file's change counter too, which every commit raises: a seal that
is older than the ledger (its writer was killed) is told from a ledger that was changed behind SQLite's back. A ledger
whose log does not know the sealed hash is an older copy of it, or another one: the files may be ahead of its rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scen_cli.project.disk import write_durably
from scen_cli.project.ledger import Ledger
from scen_cli.project.tensor_files import sha256_of

LEDGER = "scen.db"
SEAL = "scen.db.sha256"
NAMES = {"counter", "sha256", "head"}
LONGEST = 1000  # bytes


def seal(folder: Path, ledger: Ledger, name: str = LEDGER) -> None:
    """Write the seal if the ledger has changed since. Call with the project's lock, and no transaction open."""
    counter = _counter(folder / name)
    if _sealed(folder).get("counter") != counter:
        kept = {"counter": counter, "sha256": sha256_of(folder / name), "head": ledger.head()}
        write_durably(folder / SEAL, json.dumps(kept).encode())


def rolled_back(folder: Path, ledger: Ledger) -> bool:
    """Whether the ledger is not the one that was sealed, nor one that followed from it."""
    head = _sealed(folder).get("head")
    return bool(head) and not ledger.has_event(str(head))


def seal_problem(folder: Path) -> str | None:
    """What is wrong with the seal, if anything is."""
    kept = _sealed(folder)
    if not kept:
        return "is missing or cannot be read"
    if kept["counter"] != _counter(folder / LEDGER):
        return "is of another state of the ledger: whoever wrote last did not end"
    if kept["sha256"] != sha256_of(folder / LEDGER):
        return f"is not that of `{LEDGER}`: bytes have changed that no commit changed"
    return None


def _sealed(folder: Path) -> dict[str, Any]:
    """The seal, empty if there is none that is whole."""
    path = folder / SEAL
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LONGEST:
            return {}
        content = path.read_bytes()
        kept = json.loads(content)
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict) or set(kept) != NAMES or json.dumps(kept).encode() != content:
        return {}
    return kept


def _counter(ledger: Path) -> int:
    with ledger.open("rb") as file:
        return int.from_bytes(file.read(28)[24:], "big")
