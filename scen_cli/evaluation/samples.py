"""Every prompt that an evaluation asks, what was wanted and what came: all figures are counted from these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.errors import UsageError
from scen_cli.evaluation.cached_generator import CachedGenerator
from scen_cli.evaluation.metrics import Figure, Share
from scen_cli.evaluation.robustness import variants
from scen_cli.model.template import Prompt
from scen_cli.project.ledger_rows import Edit

PAPERS_ROLES = ("reliability", "generality", "locality")
REPHRASES = 3  # Generality is scored on the first three rephrases of each edit that it did not learn
LOCALITY_PROMPTS = 1000  # Locality on the first 1,000 unedited questions


@dataclass(frozen=True)
class Asked:
    """A prompt to ask: its `role` in the evaluation, the `kind` within it, the edit it belongs to if any.
    Without a target the base's own answer is wanted."""

    role: str
    prompt: Prompt
    target: str | None = None
    kind: str = ""
    edit: Edit | None = None

    def is_right(self, answer: str, by_base: str) -> bool:
        """Whether the patched model's answer is right. What should follow from an edit that failed is wrong
        whatever is answered: nothing was edited."""
        if self.target is None:
            return answer == by_base
        return answer == self.target and (self.edit is None or self.edit.state != "failed")


@dataclass(frozen=True)
class Sample:
    """One prompt and its answers. `edit` is the edit it belongs to, `fired` the one whose expert answered,
    `expected_edit` the one whose expert should (an expert that edits share goes by the first of them; a failed edit
    owns its prompts and never fires)."""

    role: str
    kind: str
    prompt: str
    wanted: str
    base: str
    patched: str
    edit: int | None
    expected_edit: int | None
    fired: int | None
    right: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scored:
    """A record of the suite that this project has edited, or tried to: failed edits count as wrong."""

    record: EditRecord
    edit: Edit


def scored_edits(edits: Sequence[Edit], active: set[int], suite: Suite) -> list[Scored]:
    """The suite's records that are to be scored: active those, and those that failed unless another target
    has been edited in for the same prompt since. Raises `UsageError` if none of them was edited."""
    tried: dict[tuple[str, str], Edit] = {}
    newest: dict[str, int] = {}  # the newest active edit, by prompt
    for edit in edits:
        if edit.id in active:
            newest[edit.prompt] = max(edit.id, newest.get(edit.prompt, 0))
        earlier = tried.get((edit.prompt, edit.target))
        if earlier is None or earlier.id not in active:
            tried[edit.prompt, edit.target] = edit
    standing = {
        key: edit
        for key, edit in tried.items()
        if edit.id in active or (edit.state == "failed" and edit.id > newest.get(edit.prompt, 0))
    }
    scored = [
        Scored(record, standing[record.prompt, record.target])
        for record in suite.edits
        if (record.prompt, record.target) in standing
    ]
    if not scored:
        raise UsageError(
            f"none of the {len(suite.edits)} edits of suite `{suite.name}` is in this project",
            hint="`scen edit`, with the same suite, data and project, makes them",
        )
    return scored


def not_learned(scored: Sequence[Scored]) -> int:
    return sum(one.edit.state == "failed" for one in scored)


def left_out(edits: Sequence[Edit], scored: Sequence[Scored], suite: Suite) -> int:
    """How many of the suite's records were edited once, but are not scored: superseded or reverted since."""
    gone = {(edit.prompt, edit.target) for edit in edits} - {(one.record.prompt, one.record.target) for one in scored}
    return sum((record.prompt, record.target) in gone for record in suite.edits)


def papers_prompts(scored: Sequence[Scored], locality: Sequence[str]) -> Iterator[Asked]:
    """Reliability, Generality and Locality (the paper's equations 1 to 3)."""
    for one in scored:
        yield Asked("reliability", one.record.prompt, one.record.target, edit=one.edit)
    for one in scored:
        for text in [text for text in one.record.rephrases if text not in one.edit.train_rephrases][:REPHRASES]:
            yield Asked("generality", text, one.record.target, edit=one.edit)
    for prompt in locality:
        yield Asked("locality", prompt)


def further_prompts(scored: Sequence[Scored], earlier: tuple[str, str]) -> Iterator[Asked]:
    """Portability and near-miss locality, where the data has them, and robustness."""
    for one in scored:
        for question in one.record.portability:
            yield Asked("portability", question.prompt, question.target, question.kind or "unnamed", one.edit)
    for one in scored:
        for neighbour in one.record.locality:
            yield Asked("near-miss", neighbour.prompt, kind=neighbour.kind or "unnamed", edit=one.edit)
    for one in scored:
        for kind, prompt in variants(one.record.prompt, one.edit.id, earlier):
            yield Asked("robustness", prompt, one.record.target, kind, one.edit)


def ask(asker: CachedGenerator, asked: Sequence[Asked]) -> list[Sample]:
    """Route and answer every prompt, by the patched model and by the base."""
    prompts = [one.prompt for one in asked]
    fired = asker.route(prompts)
    patched = asker.texts(prompts, fired)
    base = asker.texts(prompts, [None] * len(prompts))
    return [
        Sample(
            role=one.role,
            kind=one.kind,
            prompt=str(one.prompt),
            wanted=own if one.target is None else one.target,
            base=own,
            patched=answer,
            edit=one.edit.id if one.edit else None,
            expected_edit=(one.edit.expert or one.edit.id) if one.edit and one.target is not None else None,
            fired=expert,
            right=one.is_right(answer, own),
        )
        for one, own, answer, expert in zip(asked, base, patched, fired, strict=True)
    ]


def figures_of(samples: Sequence[Sample]) -> dict[str, Figure]:
    """A figure for each role, and for each kind within one: `locality`, `near-miss/same-subject`."""
    groups: dict[str, list[Sample]] = {role: [] for role in PAPERS_ROLES}
    for sample in samples:
        groups.setdefault(sample.role, []).append(sample)
        if sample.kind:
            groups.setdefault(f"{sample.role}/{sample.kind}", []).append(sample)
    return {name: _figure(name, group) for name, group in groups.items()}


def _figure(name: str, samples: list[Sample]) -> Figure:
    stays = name.split("/")[0] in ("locality", "near-miss")
    return Figure(
        patched=Share.of([sample.right for sample in samples]),
        base=None if stays else Share.of([sample.base == sample.wanted for sample in samples]),
        fired=Share.of([sample.fired is not None for sample in samples]),
        routed=None
        if stays
        else Share.of([sample.fired is not None and sample.fired == sample.expected_edit for sample in samples]),
    )
