"""What a ledger may consist of: the tables that migrations make, and nothing that runs by itself."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlite_utils import Database

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project.ledger_rows import unreadable
from scen_cli.project.migrations import migrations

Columns = dict[str, list[tuple[Any, ...]]]


def refuse_what_runs(db: Database) -> None:
    """Raise `DamageFound` if there are triggers or views: they run as rows are read and written, and no ledger of ours
    has one."""
    foreign = db.execute("select type, name from sqlite_master where type in ('trigger', 'view')").fetchall()
    if foreign:
        kind, name = foreign[0]
        raise DamageFound(f"`scen.db` holds a {kind}, {name!r}: no scen makes one", hint=VERIFY_HINT)


def refuse_other_tables(db: Database) -> None:
    """Raise `DamageFound` unless every table has its columns: what is read would be missing, or mean something else."""
    found = _columns(db)
    for table, columns in _columns(_new_ledger()).items():
        if found.get(table) != columns:
            differing = sorted({name for name, *_ in {*columns} ^ {*found.get(table, [])}})
            raise unreadable(f"table `{table}`", f"its columns differ: {', '.join(differing)}")


def schema_problems(db: Database) -> list[str]:
    """What is not as migrations make it, or was added by others."""
    expected, found = _schema(_new_ledger()), _schema(db)
    differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return [f"table or index `{name}` is not as scen makes it" for name in differing]


@lru_cache(maxsize=1)
def _new_ledger() -> Database:
    """A ledger as it is when it is new, in memory."""
    db = Database(memory=True)
    migrations.apply(db)
    return db


def _schema(db: Database) -> dict[str, Any]:
    others = db.execute("select name, type, tbl_name, sql from sqlite_master where type <> 'table'").fetchall()
    rest = {name: (kind, table, " ".join((sql or "").split())) for name, kind, table, sql in others}
    return {**_columns(db), **{name: what for name, what in rest.items() if not name.startswith("sqlite_")}}


def _columns(db: Database) -> Columns:
    """Of every table, each column's name, type and constraints."""
    tables: Columns = {}
    for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
        if not table.startswith("sqlite_"):
            query = 'select name, type, "notnull", dflt_value, pk from pragma_table_xinfo(?)'
            tables[table] = sorted(db.execute(query, [table]).fetchall())
    return tables
