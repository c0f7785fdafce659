"""Attacks on a project's `scen.db`: its file, its tables, its rows."""

from __future__ import annotations

import random

from tests.attacks.attack import Attack, Ground, replace_by, replace_by_fifo
from tests.attacks.experts import ASK, EXPORT, MORE, VERIFY

NOISE = random.Random(0).randbytes(1 << 20)
STATUS, LOG, SHOW, REVERT = "status --dir {p}", "log --dir {p}", "show 1 --dir {p}", "revert 1 --dir {p}"


def database(content: bytes | None):
    return lambda ground: replace_by(ground.project / "scen.db", content)


def cut(ground: Ground) -> None:
    path = ground.project / "scen.db"
    path.write_bytes(path.read_bytes()[:5000])


def overwritten(ground: Ground) -> None:
    """The first page stays; the others become noise."""
    path = ground.project / "scen.db"
    content = path.read_bytes()
    path.write_bytes(content[:4096] + NOISE[4096 : len(content)])


def sql(*statements):
    return lambda ground: ground.sql(*statements)


def file_is(name: str):
    """The row of edit 1 names another file, which exists."""

    def prepare(ground: Ground) -> None:
        content = ground.edit_file().read_bytes()
        for path in (ground.folder / "x.safetensors", ground.project / "x.safetensors"):
            path.write_bytes(content)
        ground.sql(("update edits set file = ? where id = 1", (name,)))

    return prepare


def linked_folder(ground: Ground) -> None:
    """`edits/` is a link that leads out of the project."""
    (ground.project / "edits").rename(ground.folder / "elsewhere")
    (ground.project / "edits").symlink_to(ground.folder / "elsewhere")


def row(column: str, value: object):
    return sql((f"update edits set {column} = ? where id = 1", (value,)))


TRIGGER = """create trigger sly after insert on events begin
    update edits set target = 'Atlantis' where id = 1; end"""
GROWING = """create trigger sly after update on edits begin
    insert into edits select max(id) + 1, prompt, target, subject, rephrases, 'active', null, null, file, sha256, size,
    expert_losses, neuron_losses, activation, seed, seconds, created, source, source_line, expert, bias,
    train_rephrases, rank, subject_names, index_sha256 from edits; end"""
AS_VIEW = ("alter table edits rename to hidden", "create view edits as select * from hidden")
NEWER = "insert into _sqlite_migrations (migration_set, name, applied_at) values ('scen', 'of_the_future', '2099')"
ESCAPES = "Where is \x1b]0;owned\x07\x1b[2J\x9b31m it?"

ATTACKS = [
    Attack(
        "ledger: not a database", database(b"this is no database, whatever it is called" * 99), STATUS, 12, "ledger"
    ),
    Attack("ledger: not a database, verified", database(NOISE[:9000]), VERIFY, 12, "ledger"),
    Attack("ledger: empty", database(b""), STATUS, 12, "holds no project"),
    Attack("ledger: missing", database(None), STATUS, 10, "no scen project"),
    Attack("ledger: cut", cut, STATUS, 12, "ledger"),
    Attack("ledger: noise behind the first page", overwritten, STATUS, 12, "ledger"),
    Attack("ledger: noise behind the first page, verified", overwritten, VERIFY, 12, "ledger"),
    Attack(
        "ledger: a pipe", lambda g: replace_by_fifo(g.project / "scen.db"), STATUS, 10, "no scen project", seconds=5
    ),
    Attack("ledger: a trigger that alters an edit", sql(TRIGGER), MORE, 12, "trigger"),
    Attack("ledger: a trigger, verified", sql(TRIGGER), VERIFY, 12, "trigger"),
    Attack("ledger: a trigger that writes edits", sql(GROWING), REVERT, 12, "trigger"),
    Attack("ledger: a view in a table's place", sql(*AS_VIEW), STATUS, 12, "edits"),
    Attack("ledger: a view, verified", sql(*AS_VIEW), VERIFY, 12, "edits"),
    Attack("ledger: no table of edits", sql("drop table edits"), STATUS, 12, "edits"),
    Attack("ledger: no table of events", sql("drop table events"), LOG, 12, "events"),
    Attack("ledger: no thresholds", sql("drop table thresholds"), ASK, 12, "thresholds"),
    Attack("ledger: an empty table of thresholds", sql("delete from thresholds"), STATUS, 12, "theta"),
    Attack("ledger: a column is missing", sql("alter table edits drop column rank"), STATUS, 12, "rank"),
    Attack("ledger: a column too many", sql("alter table edits add column more"), STATUS, 12, "more"),
    Attack("ledger: an extra table", sql("create table more (x)"), STATUS, 0, "2 active"),
    Attack("ledger: an extra table, verified", sql("create table more (x)"), VERIFY, 12, "more"),
    Attack("ledger: a migration of the future", sql(NEWER), STATUS, 2, "newer"),
    *(
        Attack(f"row: its file is {name!r}", file_is(name), EXPORT, 12, "edit 1")
        for name in ("../../x.safetensors", "/etc/passwd", "../x.safetensors", "edits/..", "x.safetensors", "")
    ),
    *(
        Attack(f"row: its file is {name!r}, verified", file_is(name), VERIFY, 12, "edit 1")
        for name in ("../../x.safetensors", "/etc/passwd", "edits/../../x.safetensors")
    ),
    Attack("row: its file leads out and back", file_is("edits/../x.safetensors"), EXPORT, 12, "edit 1"),
    Attack("row: NUL in its file", file_is("edits/a\0b"), EXPORT, 12, "edits/a"),
    Attack("row: NUL in its file, verified", file_is("edits/a\0b"), VERIFY, 12, "edits/a"),
    Attack("row: a newline in its file", file_is("edits/a\nok"), EXPORT, 12, "edits/a"),
    Attack("row: a file of 100,000 letters", file_is("edits/" + "a" * 100_000), VERIFY, 12, "edits/a"),
    Attack("edits/ leads out of the project", linked_folder, VERIFY, 12, "edits"),
    Attack("row: text in theta", sql("update thresholds set theta = 'high'"), ASK, 12, "theta"),
    Attack("row: theta is null", sql("update thresholds set theta = null"), ASK, 12, "theta"),
    Attack("row: theta is infinite", sql("update thresholds set theta = 9e999"), VERIFY, 12, "theta"),
    Attack("row: a negative rank", row("rank", -3), ASK, 0, "edit 1"),
    Attack("row: a negative rank, verified", row("rank", -3), VERIFY, 12, "rank"),
    Attack("row: a rank of 2^62", row("rank", 2**62), VERIFY, 12, "rank"),
    Attack("row: a rank of 2^40, asked", row("rank", 2**40), ASK, 0, "edit 1"),
    Attack("row: an expert that is not there", row("expert", 99), VERIFY, 12, "its record"),
    Attack("row: an expert of -2^63", row("expert", -(2**63)), ASK, 0, "no prompt is routed to it"),
    Attack("row: text for a bias", row("bias", "much"), ASK, 12, "bias"),
    Attack("row: text for a size", row("size", "many"), STATUS, 12, "size"),
    Attack("row: bytes for a prompt", row("prompt", b"\xff\xfe"), STATUS, 12, "prompt"),
    Attack("row: no JSON in rephrases", row("rephrases", "{not"), STATUS, 12, "rephrases"),
    Attack("row: a number in losses", row("expert_losses", "7"), SHOW, 12, "expert_losses"),
    Attack("row: words in losses", row("expert_losses", '["a", {}]'), SHOW, 12, "expert_losses"),
    Attack("row: brackets without end", row("train_rephrases", "[" * 100_000), STATUS, 12, "train_rephrases"),
    Attack("row: subject names that are lists", row("subject_names", '[["a"]]'), ASK, 12, "subject_names"),
    Attack("row: an unknown state", row("state", "sleeping"), VERIFY, 12, "state"),
    Attack("row: another target", row("target", "Atlantis"), VERIFY, 12, "edit 1 is not as it was committed"),
    Attack("row: superseded by itself", row("superseded_by", 1), VERIFY, 12, "superseded"),
    Attack("row: an edit of the number -1", row("id", -1), VERIFY, 12, "edit 1"),
    Attack("row: no JSON in an event", sql("update events set detail = '{'"), LOG, 12, "event"),
    Attack("row: no JSON in an event, verified", sql("update events set detail = '{'"), VERIFY, 12, "event"),
    Attack("row: an event rewritten", sql("update events set kind = 'revert' where id = 3"), VERIFY, 12, "event 3"),
    Attack("row: an event taken out", sql("delete from events where id = 3"), VERIFY, 12, "does not follow"),
    Attack("row: terminal escapes in a prompt, listed", row("prompt", ESCAPES), STATUS, 0, "Where is"),
    Attack("row: terminal escapes in a prompt, shown", row("prompt", ESCAPES), SHOW, 0, "Where is"),
    Attack("row: terminal escapes in a prompt, as JSON", row("prompt", ESCAPES), f"{STATUS} --json", 0, "Where is"),
    Attack("row: terminal escapes in a prompt, taken back", row("prompt", ESCAPES), REVERT, 0, "Where is"),
    Attack(
        "row: markup in a prompt", row("prompt", "[red]Where[/red] [link=x]is[/"), STATUS, 0, "[red]Where[/red] [link"
    ),
]
