"""A second migration, as a later version of scen would have it, for the tests of the migration mechanism."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scen_cli.project.schema import migrations, new_ledger

MIGRATION = "add_edit_comment"


def add_edit_comment(db) -> None:
    db["edits"].add_column("comment", str)
    db["thresholds"].add_column("comment", str)


@contextmanager
def second_migration() -> Iterator[None]:
    """Inside this block the ledger's format has a second migration, which adds a column to two tables."""
    migrations(name=MIGRATION)(add_edit_comment)
    new_ledger.cache_clear()
    try:
        yield
    finally:
        migrations._migrations.pop()
        new_ledger.cache_clear()
