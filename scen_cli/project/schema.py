"""What a ledger may contain: the tables that migrations create, and nothing that SQLite runs by itself."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlite_utils import Database

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project.ledger_rows import unreadable
from scen_cli.project.migrations import migrations

Columns = dict[str, list[tuple[Any, ...]]]


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
