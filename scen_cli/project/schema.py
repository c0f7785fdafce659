"""The tables of the ledger, and the check that it contains nothing else, above all nothing that SQLite runs by itself.

A later format adds a migration here; `Ledger` applies those that are pending.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlite_utils import Database, Migrations

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project.ledger_rows import unreadable

migrations = Migrations("scen")
Columns = dict[str, list[tuple[Any, ...]]]


@migrations()
def create_tables(db: Database) -> None:
    """Format 1."""
    db["settings"].create({"name": str, "value": str}, pk="name", not_null={"value"})  # value: JSON
    db["edits"].create(
        {
            "id": int,
            "prompt": str,
            "target": str,
            "subject": str,
            "rephrases": str,  # JSON list: scored as Generality
            "train_rephrases": str,  # JSON list: the expert and the neuron were trained on them, never scored
            "state": str,  # active | superseded | reverted | failed
            "superseded_by": int,
            "reason": str,  # why a failed edit failed, or a remark on an active one
            "expert": int,  # id of the edit whose file holds the expert and the neuron; its own id as a rule
            "file": str,
            "sha256": str,
            "index_sha256": str,  # of the tensors in the file that routing needs: neuron, keys, refitted neurons
            "size": int,
            "rank": int,  # of the expert; 0 for a full one
            "bias": float,  # of the neuron
            "activation": float,  # of the neuron on the edit's own key
            "expert_losses": str,  # JSON list, one per step
            "neuron_losses": str,  # JSON list, one per step
            "seed": int,
            "seconds": float,
            "created": str,
            "source": str,
            "source_line": int,
            "subject_forms": str,  # JSON list of lists of token ids: how the subject is tokenised
        },
        pk="id",
        not_null={"prompt", "target", "state", "created"},
    )
    db["edits"].create_index(["prompt"])
    db["thresholds"].create(
        {
            "id": int,
            "theta": float,
            "chosen_by": str,  # init | calibration | hand
            "created": str,
            "false_activation": float,  # the rate that was asked for
            "fpr_expected": float,  # the rate to expect on fresh prompts
            "fpr_low": float,  # its 95 % interval
            "fpr_high": float,
            "n_guard": int,  # how many guard prompts it was calibrated on
        },
        pk="id",
    )
    db["guard"].create({"id": int, "prompt": str, "split": str, "source": str}, pk="id")  # fit|calibration|report
    db["evaluations"].create(
        {
            "id": int,
            "suite": str,
            "settings": str,
            "metrics": str,
            "samples": str,  # JSON list: every prompt and its answers
            "last_change": int,
            "created": str,
        },
        pk="id",
    )
    db["events"].create({"id": int, "created": str, "kind": str, "edit": int, "detail": str, "hash": str}, pk="id")


@migrations()
def name_subjects(db: Database) -> None:
    """Format 2: subjects are found by their names, no longer by lists of token ids (`subject_forms`)."""
    db["edits"].add_column("subject_names", str)  # JSON list: the names by which prompts are routed to the edit
    db.execute(
        "update edits set subject_names = "
        "case when coalesce(subject_forms, '[]') = '[]' then '[]' else json_array(subject) end"
    )
    db["edits"].transform(drop={"subject_forms"})


def refuse_triggers_and_views(db: Database) -> None:
    """Raise `DamageFound` if there is a trigger or a view: SQLite runs it when rows are read or written."""
    found = db.execute("select type, name from sqlite_master where type in ('trigger', 'view')").fetchone()
    if found:
        kind, name = found
        raise DamageFound(f"`scen.db` holds a {kind}, {name!r}: scen creates none", hint=VERIFY_HINT)


def refuse_other_tables(db: Database) -> None:
    """Raise `DamageFound` unless every table has exactly the columns that migrations create."""
    found = _columns(db)
    for table, columns in _columns(new_ledger()).items():
        if found.get(table) != columns:
            differing = sorted({name for name, *_ in {*columns} ^ {*found.get(table, [])}})
            raise unreadable(f"table `{table}`", f"its columns differ: {', '.join(differing)}")


def schema_problems(db: Database) -> list[str]:
    """Tables and indexes that differ from what migrations create, or that somebody added."""
    expected, found = _schema(new_ledger()), _schema(db)
    differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return [f"table or index `{name}` is not as scen creates it" for name in differing]


@lru_cache(maxsize=1)
def new_ledger() -> Database:
    """An empty ledger in memory."""
    db = Database(memory=True)
    migrations.apply(db)
    return db


def _schema(db: Database) -> dict[str, Any]:
    others = db.execute("select name, type, tbl_name, sql from sqlite_master where type <> 'table'").fetchall()
    rest = {name: (kind, table, " ".join((sql or "").split())) for name, kind, table, sql in others}
    return {**_columns(db), **{name: entry for name, entry in rest.items() if not name.startswith("sqlite_")}}


def _columns(db: Database) -> Columns:
    """Name, type and constraints of every column, by table."""
    tables: Columns = {}
    for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
        if not table.startswith("sqlite_"):
            query = 'select name, type, "notnull", dflt_value, pk from pragma_table_xinfo(?)'
            tables[table] = sorted(db.execute(query, [table]).fetchall())
    return tables
