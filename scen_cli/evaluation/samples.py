"""Every prompt that an evaluation asks, and its answers: all figures are counted from these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite
from scen_cli.data.words import contains
from scen_cli.errors import UsageError
from scen_cli.evaluation.cached_generator import CachedGenerator
from scen_cli.evaluation.metrics import Figure, Share
from scen_cli.evaluation.robustness import ARE_YOU_SURE, perturbed_prompts
from scen_cli.model.template import Prompt
from scen_cli.project.ledger_rows import Edit

PAPER_ROLES = ("reliability", "generality", "locality")
REPHRASES = 3  # Generality is scored on the first three rephrases that an edit was not trained on
NEAR_THETA = 0.1  # how far below theta thresholds are tried (`curves.thetas_around`)
UNTOUCHED_TOKENS = 16  # shown of an answer that no edit can change
LOCALITY_PROMPTS = 1000  # Locality is scored on the first 1,000 unedited questions


@dataclass(frozen=True)
class Sample:
    """One prompt and its answers.

    Attributes:
        role: The figure it counts for, and the `kind` within that figure.
        wanted: The right answer: the target, or the base's own answer.
        edit: The edit that the prompt belongs to, if any.
        expected_edit: The edit whose expert should answer. Edits that share an expert are named by the first of them.
        routed_edit: The edit whose expert answered; None for the base.
    """

    role: str
    kind: str
    prompt: str
    wanted: str
    base: str
    patched: str
    edit: int | None
    expected_edit: int | None
    routed_edit: int | None
    right: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """A prompt to ask, before it is answered. Without a `target` the base's own answer is wanted."""

    role: str
    prompt: Prompt
    target: str | None = None
    kind: str = ""
    edit: Edit | None = None

    def is_right(self, answer: str, base_answer: str) -> bool:
        """Whether the patched model's answer is right. An answer that should follow from a failed edit is wrong
        whatever it is: nothing was edited."""
        if self.target is None:
            return answer == base_answer
        return _gives_target(answer, self.target, self.kind) and self.can_be_right()

    def tokens_needed(self, activation: float, theta: float) -> int | None:
        """How many tokens of an answer decide the figures; None: all.

        Args:
            activation: The largest activation of any neuron on the prompt.
            theta: The threshold.
        """
        if self.role in ("robustness", "portability") and self.target is not None and self.kind != ARE_YOU_SURE:
            return len(self.target.encode()) + 2  # only an exact match counts, and a token has at least one byte
        if self.target is None and activation <= theta - NEAR_THETA:
            return UNTOUCHED_TOKENS  # the base answers, whatever theta is tried: nothing is compared
        return None

    def can_be_right(self) -> bool:
        """Whether the edit was learned, if the probe belongs to one."""
        return self.edit is None or self.edit.state != "failed"

    def sample(self, base: str, patched: str, expected_edit: int | None, routed_edit: int | None) -> Sample:
        """The probe with its answers."""
        return Sample(
            role=self.role,
            kind=self.kind,
            prompt=str(self.prompt),
            wanted=base if self.target is None else self.target,
            base=base,
            patched=patched,
            edit=self.edit.id if self.edit else None,
            expected_edit=expected_edit,
            routed_edit=routed_edit,
            right=self.is_right(patched, base),
        )


@dataclass(frozen=True)
class Scored:
    """A record of the suite, and its edit in this project; a failed edit counts as wrong."""

    record: EditRecord
    edit: Edit


def scored_edits(edits: Sequence[Edit], active: set[int], suite: Suite) -> list[Scored]:
    """The suite's records that are scored: those of active edits, and of failed edits whose prompt has no newer one.

    Raises:
        UsageError: None of the records was edited.
    """
    tried: dict[tuple[str, str], Edit] = {}
    newest: dict[str, int] = {}  # the newest active edit, by prompt
    for edit in edits:
        if edit.id in active:
            newest[edit.prompt] = max(edit.id, newest.get(edit.prompt, 0))
        earlier = tried.get((edit.prompt, edit.target))
        if earlier is None or earlier.id not in active:
            tried[edit.prompt, edit.target] = edit
    counted = {
        key: edit
        for key, edit in tried.items()
        if edit.id in active or (edit.state == "failed" and edit.id > newest.get(edit.prompt, 0))
    }
    records = [record for record in suite.edits if (record.prompt, record.target) in counted]
    if not records:
        raise UsageError(
            f"none of the {len(suite.edits)} edits of suite `{suite.name}` is in this project",
            hint="make them with `scen edit`, with the same suite, data and project",
        )
    return [Scored(record, counted[record.prompt, record.target]) for record in records]


def not_learned(scored: Sequence[Scored]) -> int:
    """How many of the scored edits failed."""
    return sum(item.edit.state == "failed" for item in scored)


def left_out(edits: Sequence[Edit], scored: Sequence[Scored], suite: Suite) -> int:
    """How many of the suite's records were edited, but are not scored: superseded or reverted since."""
    counted = {(item.record.prompt, item.record.target) for item in scored}
    gone = {(edit.prompt, edit.target) for edit in edits} - counted
    return sum((record.prompt, record.target) in gone for record in suite.edits)


def paper_probes(scored: Sequence[Scored], locality: Sequence[str]) -> Iterator[Probe]:
    """Reliability, Generality and Locality (the paper's equations 1 to 3)."""
    for item in scored:
        yield Probe("reliability", item.record.prompt, item.record.target, edit=item.edit)
    for item in scored:
        rephrases = [text for text in item.record.rephrases if text not in item.edit.train_rephrases]
        for text in rephrases[:REPHRASES]:
            yield Probe("generality", text, item.record.target, edit=item.edit)
    for prompt in locality:
        yield Probe("locality", prompt)


def further_probes(scored: Sequence[Scored], earlier_turn: tuple[str, str]) -> Iterator[Probe]:
    """Portability and near-miss locality, where the data has them, and robustness."""
    for item in scored:
        for question in item.record.portability:
            yield Probe("portability", question.prompt, question.target, question.kind or "unnamed", item.edit)
    for item in scored:
        for neighbour in item.record.locality:
            yield Probe("near-miss", neighbour.prompt, kind=neighbour.kind or "unnamed", edit=item.edit)
    for item in scored:
        target = item.record.target
        for kind, prompt in perturbed_prompts(item.record.prompt, target, item.edit.id, earlier_turn):
            yield Probe("robustness", prompt, item.record.target, kind, item.edit)


def answer_probes(generator: CachedGenerator, probes: Sequence[Probe], quick: bool = False) -> list[Sample]:
    """Route and answer every probe, by the patched model and by the base.

    `quick`: prompts that must not change and are routed to no edit get no answer. The base gives it, twice the same.
    """
    prompts = [probe.prompt for probe in probes]
    routed = generator.route(prompts)
    activations = [activation for _expert, activation in generator.strongest(prompts)]
    limits = [
        probe.tokens_needed(activation, generator.patch.theta)
        for probe, activation in zip(probes, activations, strict=True)
    ]
    asked = [
        number
        for number, (probe, expert) in enumerate(zip(probes, routed, strict=True))
        if not quick or probe.target is not None or expert is not None
    ]
    wanted = [limits[number] for number in asked]
    base, patched = (
        dict(zip(asked, generator.texts([prompts[n] for n in asked], experts, wanted), strict=True))
        for experts in ([None] * len(asked), [routed[number] for number in asked])
    )
    samples = []
    for number, (probe, expert) in enumerate(zip(probes, routed, strict=True)):
        of_base, answer = base.get(number, ""), patched.get(number, "")
        expected = (probe.edit.expert or probe.edit.id) if probe.edit and probe.target is not None else None
        samples.append(probe.sample(of_base, answer, expected, expert))
    return samples


def figures_of(samples: Sequence[Sample], routed: bool = True) -> dict[str, Figure]:
    """A figure for each role, and for each kind within a role: `locality`, `near-miss/same-subject`.

    `routed`: whether SCEN routed the samples. If not, the figures do not tell which edit answered.
    """
    groups: dict[str, list[Sample]] = {role: [] for role in PAPER_ROLES}
    for sample in samples:
        groups.setdefault(sample.role, []).append(sample)
        if sample.kind:
            groups.setdefault(f"{sample.role}/{sample.kind}", []).append(sample)
    return {name: _figure(name, group, routed) for name, group in groups.items()}


def _gives_target(answer: str, target: str, kind: str) -> bool:
    """Whether an answer is exactly the target; to a doubt, whether it contains the target."""
    return contains(answer, target) if kind == ARE_YOU_SURE else answer == target


def _figure(name: str, samples: list[Sample], routed: bool) -> Figure:
    unchanged_wanted = name.split("/")[0] in ("locality", "near-miss")
    right_edit = [sample.routed_edit is not None and sample.routed_edit == sample.expected_edit for sample in samples]
    return Figure(
        patched=Share.of([sample.right for sample in samples]),
        base=None if unchanged_wanted else Share.of([_gives_target(s.base, s.wanted, s.kind) for s in samples]),
        fired=Share.of([sample.routed_edit is not None for sample in samples]) if routed else None,
        routed=Share.of(right_edit) if routed and not unchanged_wanted else None,
    )
