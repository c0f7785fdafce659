"""What can be read from the ledger. Its rows are not trusted: each is checked as it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sqlite_utils import Database

from scen_cli.errors import VERIFY_HINT, DamageFound, UsageError
from scen_cli.project.event_log import SIGNED, settings_of_init
from scen_cli.project.ledger_rows import Edit, GuardPrompt, Threshold, decoded, read_row, unreadable

CHANGES = "'edit', 'edit-failed', 'revert', 'calibrate', 'compress'"  # events that may change an answer
FORMAT = 1  # of the whole folder; a newer one is refused
REQUIRED: dict[str, type] = {"format": int, "model": str, "layer": int, "ffn_width": int, "recipe": dict}
OPTIONAL: dict[str, type] = {"quantize": str, "device_map": str}  # how the base is loaded


class LedgerQueries:
    """The queries of `Ledger`. All of them raise `DamageFound` for a row that cannot be read."""

    @property
    def db(self) -> Database:
        """The database."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        return {row["name"]: decoded(f"setting `{row['name']}`", row["value"]) for row in self.db["settings"].rows}

    def file_setting(self, name: str, pattern: re.Pattern[str], fields: tuple[str, ...]) -> dict[str, Any] | None:
        """A setting that names a file, such as the guard's; None if the project has no such file.

        Args:
            name: The setting.
            pattern: What its `file` must match.
            fields: The fields that it must have.
        """
        setting = self.settings().get(name)
        well_formed = isinstance(setting, dict) and set(setting) == set(fields)
        if setting is not None and not (well_formed and pattern.fullmatch(str(setting["file"]))):
            raise DamageFound(f"setting `{name}` in `scen.db` names no file of a {name}", hint=VERIFY_HINT)
        return setting

    def edits(self, *states: str) -> list[Edit]:
        """Edits in the given states (all edits if there are none), in the order they were made."""
        where = f"state in ({','.join('?' * len(states))})" if states else None
        return [_edit(row) for row in self.db["edits"].rows_where(where, states, order_by="id")]

    def newest_edits(self, count: int) -> list[Edit]:
        """The last `count` edits, in the order they were made."""
        rows = self.db["edits"].rows_where(order_by="id desc", limit=count)
        return [_edit(row) for row in rows][::-1]

    def state_counts(self) -> dict[str, int]:
        """How many edits are in each state."""
        return dict(self.db.execute("select state, count(*) from edits group by state").fetchall())

    def edit_bytes(self) -> int:
        """The size of all edit files."""
        return int(self.db.execute("select total(size) from edits where typeof(size) = 'integer'").fetchone()[0])

    def edit(self, edit_id: int) -> Edit | None:
        return next((_edit(row) for row in self.db["edits"].rows_where("id = ?", [edit_id])), None)

    def find(self, edit_id: int) -> Edit:
        """An edit by its id. Raises `UsageError` if there is none."""
        edit = self.edit(edit_id)
        if edit is None:
            raise UsageError(f"there is no edit {edit_id}", hint="`scen status` lists the edits")
        return edit

    def find_exact(self, prompt: str, target: str) -> list[Edit]:
        """Edits of exactly this prompt and target, newest first."""
        rows = self.db["edits"].rows_where("prompt = ? and target = ?", [prompt, target], order_by="id desc")
        return [_edit(row) for row in rows]

    def edits_superseded_by(self, edit_id: int) -> list[int]:
        """Ids of the edits that an edit superseded."""
        return self._ids("superseded_by = ? order by id", edit_id)

    def active_edits_for(self, prompt: str) -> list[int]:
        """Active edits of exactly this prompt."""
        return self._ids("prompt = ? and state = 'active'", prompt)

    def sharing(self, edit_id: int) -> list[int]:
        """Active edits that have the same expert as this edit, which is one of them."""
        own = "select expert from edits where id = ?"
        return self._ids(f"state = 'active' and expert = ({own}) order by id", edit_id)

    def active_prompts(self) -> list[tuple[int, str]]:
        """(id, prompt) of each active edit, in order."""
        return self.db.execute("select id, prompt from edits where state = 'active' order by id").fetchall()

    def active_experts(self) -> dict[int, int]:
        """The expert of each active edit: {edit: expert}, in order of the edits."""
        return dict(self.db.execute("select id, expert from edits where state = 'active' order by id").fetchall())

    def active_index_sums(self) -> dict[int, str]:
        """`index_sha256` of each active expert: {expert: sum}, in order of the experts."""
        query = "select id, index_sha256 from edits where id in (select expert from edits where state = 'active')"
        return {expert: str(found) for expert, found in self.db.execute(f"{query} order by id").fetchall()}

    def active_biases(self) -> dict[int, float]:
        """The bias of each active expert's neuron: {expert: bias}."""
        return {expert: bias or 0.0 for expert, bias in self._numbers("bias")}

    def active_ranks(self) -> dict[int, int]:
        """The rank of each active expert, 0 for a full one: {expert: rank}."""
        return {expert: int(rank or 0) for expert, rank in self._numbers("rank")}

    def active_subject_names(self) -> dict[int, list[str]]:
        """The names by which prompts are routed to each active edit; none if its prompt does not name its subject."""
        rows = self.db.execute("select id, subject_names from edits where state = 'active'").fetchall()
        return {edit: self._names(edit, text) for edit, text in rows}

    def _names(self, edit: int, text: Any) -> list[str]:
        names = decoded(f"`subject_names` of edit {edit}", text)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise unreadable(f"`subject_names` of edit {edit}", "it is no list of texts")
        return names

    def min_own_activation(self) -> float | None:
        """The lowest activation of an active edit's neuron on its own key; None if no edit is active."""
        numbers = "typeof(activation) in ('real', 'integer')"
        query = f"select min(activation) from edits where state = 'active' and {numbers}"
        lowest: float | None = self.db.execute(query).fetchone()[0]
        return lowest

    def long_targets(self, size: int) -> list[tuple[str, str]]:
        """(prompt, target) of active edits whose target has at least `size` bytes."""
        query = "select prompt, target from edits where state = 'active' and length(cast(target as blob)) >= ?"
        return self.db.execute(query, [size]).fetchall()

    def next_edit_id(self) -> int:
        return int(self.db.execute("select coalesce(max(id), 0) + 1 from edits").fetchone()[0])

    def theta(self) -> float:
        """The active threshold."""
        return self.threshold().theta

    def threshold(self) -> Threshold:
        """The active threshold, and how it was chosen."""
        return self.thresholds(1)[0]

    def thresholds(self, newest: int | None = None) -> list[Threshold]:
        """The history of the threshold, newest first; `newest` limits how many are returned."""
        rows = list(self.db["thresholds"].rows_where(order_by="id desc", limit=newest))
        if not rows:
            raise unreadable("theta", "the table `thresholds` is empty")
        return [read_row(Threshold, "theta", row) for row in rows]

    def guard(self) -> list[GuardPrompt]:
        """The guard prompts, in the order of the rows of their keys."""
        return [read_row(GuardPrompt, "the guard", row) for row in self.db["guard"].rows_where(order_by="id")]

    def evaluation(self, evaluation_id: int) -> dict[str, Any] | None:
        """One evaluation, with its `settings`, `metrics` and `samples` decoded."""
        rows = self.db["evaluations"].rows_where("id = ?", [evaluation_id])
        return next((_evaluation(row, "settings", "metrics", "samples") for row in rows), None)

    def evaluations(self) -> list[dict[str, Any]]:
        """Every evaluation without its samples, oldest first."""
        columns = "id, suite, created, last_change, settings, metrics"
        rows = self.db["evaluations"].rows_where(select=columns, order_by="id")
        return [_evaluation(row, "settings", "metrics") for row in rows]

    def current_evaluations(self) -> dict[str, dict[str, Any]]:
        """Metrics of the newest evaluation of each suite, of those that scored the edits now active."""
        rows = self.db["evaluations"].rows_where("last_change = ?", [self.last_change()], order_by="id")
        return {row["suite"]: _evaluation(row, "metrics")["metrics"] for row in rows}

    def events(self) -> list[dict[str, Any]]:
        """Every event, its `detail` decoded, in order."""
        return [_event(row) for row in self.db["events"].rows_where(order_by="id")]

    def changes(self) -> list[dict[str, Any]]:
        """The event that made the project, and the events that may change an answer, in order."""
        return list(self.newest_changes())[::-1]

    def newest_changes(self) -> Iterator[dict[str, Any]]:
        """As `changes`, the newest first. Only what the caller takes is read."""
        for row in self.db["events"].rows_where(f"kind in ('init', {CHANGES})", order_by="id desc"):
            yield _event(row)

    def last_change(self) -> int:
        """Id of the newest event that may change an answer; 0 if there is none."""
        row = self.db.execute(f"select id from events where kind in ({CHANGES}) order by id desc limit 1").fetchone()
        return int(row[0]) if row else 0

    def provenance(self, edit_id: int) -> dict[str, Any]:
        """Who made an edit, with which version, recipe and base."""
        rows = self.db["events"].rows_where("edit = ? and kind like 'edit%'", [edit_id], limit=1)
        detail: dict[str, Any] = next((_event(row)["detail"] for row in rows), {})
        return {name: detail.get(name) for name in (*SIGNED, "recipe", "base")}

    def has_event(self, event_hash: str) -> bool:
        """Whether an event of this hash is in the log."""
        return self.db.execute("select 1 from events where hash = ?", [event_hash]).fetchone() is not None

    def head(self) -> str:
        """The newest event's hash, which stands for the whole log."""
        row = self.db.execute("select hash from events order by id desc limit 1").fetchone()
        return str(row[0]) if row else ""

    def _ids(self, where: str, value: object) -> list[int]:
        return [row[0] for row in self.db.execute(f"select id from edits where {where}", [value]).fetchall()]

    def _numbers(self, column: str) -> list[tuple[int, float | None]]:
        """(expert, number) of each active expert."""
        query = f"select expert, max({column}) from edits where state = 'active' group by expert"
        rows = self.db.execute(query).fetchall()
        if wrong := [row for row in rows if not isinstance(row[1], int | float | None)]:
            raise unreadable(f"the {column} of expert {wrong[0][0]}", wrong[0][1])
        return rows


def _edit(row: dict[str, Any]) -> Edit:
    return read_row(Edit, f"edit {row['id']}", row)


def _event(row: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(row[name], str) for name in ("created", "kind", "detail", "hash")):
        raise unreadable(f"event {row['id']}", "a column does not hold text")
    return {**row, "detail": decoded(f"event {row['id']}", row["detail"])}


def _evaluation(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """A row with some of its columns decoded from JSON."""
    return {**row, **{name: decoded(f"evaluation {row['id']}", row[name]) for name in columns}}


def read_settings(ledger: LedgerQueries) -> dict[str, Any]:
    """The settings of a project.

    Raises:
        DamageFound: They are not a project's settings, or not those that the project was created with.
        UsageError: They are those of another format.
    """
    settings = ledger.settings()
    if not settings:
        raise DamageFound("`scen.db` holds no project", hint="restore it from a backup")
    present = {name: kind for name, kind in OPTIONAL.items() if settings.get(name) is not None}
    for name, kind in {**REQUIRED, **present}.items():
        if type(settings.get(name)) is not kind:
            raise DamageFound(f"setting `{name}` in `scen.db` is {settings.get(name)!r}", hint=VERIFY_HINT)
    if settings["format"] != FORMAT:
        raise UsageError(
            f"this project has format {settings['format']}; this version of scen reads format {FORMAT}",
            hint="update scen: `pip install -U scen-cli`",
        )
    # The guard and the state have sums of their own.
    first = next(ledger.db["events"].rows_where("kind = 'init'", order_by="id", limit=1), None)
    created = settings_of_init(decoded("event 1", first["detail"])) if first else {}
    for name in sorted({*created, *settings} - {"guard", "state"}):
        if created.get(name) != settings.get(name):
            was = f"it was set to {created.get(name)!r}"
            raise DamageFound(f"setting `{name}` in `scen.db` is {settings.get(name)!r}; {was}", hint=VERIFY_HINT)
    return settings
