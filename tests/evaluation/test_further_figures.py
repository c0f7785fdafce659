"""Portability, near-miss locality, robustness, drift: each on prompts made so that the figure is known."""

from __future__ import annotations

import pytest

from scen_cli.data.records import EditRecord, Neighbour, Question
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.demo.facts import right_facts
from scen_cli.errors import UsageError
from scen_cli.evaluation.diff import changes, moved
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.gates import FURTHER, PAPERS, check_gates, not_met, parse_gates
from scen_cli.evaluation.metrics import Figure, Mean, Share
from scen_cli.evaluation.robustness import PREFIXES, typing_error, variants
from scen_cli.model.template import SecondTurn
from tests.conftest import edit_all, take_back


def test_each_figure_counts_its_own_prompts(make_editor):
    editor = make_editor("key")
    first, second = demo_edits()[:2]
    known = right_facts()[0]
    record = first.model_copy(
        update={
            "portability": (
                Question(prompt=known.phrasings[0], target=known.answer, kind="easy"),  # the base has it right
                Question(prompt=known.phrasings[1], target="no such answer", kind="hard"),
            ),
            "locality": (
                Neighbour(prompt=known.phrasings[2], kind="same-subject"),
                Neighbour(prompt=second.prompt, kind="same-relation"),  # an edit itself: not asked
                Neighbour(prompt=first.rephrases[0], kind="same-relation"),  # an edit's rephrase: not asked
            ),
        }
    )
    edit_all(editor, [first, second])
    suite = Suite(
        "s", [record, second.model_copy(update={"locality": ()})], [fact.phrasings[0] for fact in right_facts()[:5]]
    )
    found = evaluate(editor, suite)
    figures = found.figures
    assert (figures["portability/easy"].patched.right, figures["portability/hard"].patched.right) == (1, 0)
    assert figures["portability/easy"].base.right == 1
    assert figures["portability"].patched.total == 2
    assert "near-miss/same-relation" not in figures
    assert figures["near-miss/same-subject"].patched.total == 1
    assert figures["robustness/prefix"].patched.total == figures["robustness/second-turn"].patched.total == 2
    assert figures["drift-changed"].patched.total == figures["drift-kl"].patched.total == 5
    quick = evaluate(editor, suite, quick=True)
    assert set(quick.figures) == {"reliability", "generality", "locality", "generality-given-expert"}
    assert {sample.role for sample in quick.samples} == {"reliability", "generality", "locality"}


def test_robustness_is_wrong_where_nothing_fires_and_asks_no_prompt_for_itself(make_editor):
    lowered = demo_edits()[0].model_copy(update={"prompt": demo_edits()[0].prompt.lower(), "rephrases": ()})
    editor = make_editor("key")
    edit_all(editor, [lowered])
    capital = demo_edits()[0].model_copy(update={"rephrases": ()})
    suite = Suite("s", [lowered], [])
    assert "robustness/lower-case" not in evaluate(editor, suite).figures  # it is in small letters already
    edit_all(editor, [capital])
    take_back(editor.project, 1)
    deaf = make_editor("key", theta=0.999)
    edit_all(deaf, [capital])
    figures = evaluate(deaf, Suite("s", [capital], [])).figures
    for kind in ("prefix", "second-turn", "typo", "lower-case"):
        assert figures[f"robustness/{kind}"].fired.right == 0
        assert figures[f"robustness/{kind}"].patched.right == 0


def test_robustness_counts_the_answers_to_the_variants(edited):
    suite = Suite("s", demo_edits()[:40], [fact.phrasings[0] for fact in right_facts()[:3]])
    figures = evaluate(edited, suite).figures
    earlier = (suite.locality[0], right_facts()[0].answer)
    right, total = {}, {}
    for number, record in enumerate(suite.edits, start=1):
        for kind, prompt in variants(record.prompt, number, earlier):
            right[kind] = right.get(kind, 0) + (edited.answer([prompt]).texts == [record.target])
            total[kind] = total.get(kind, 0) + 1
    assert right["typo"] > right["second-turn"]
    for kind, count in right.items():
        figure = figures[f"robustness/{kind}"].patched
        assert (figure.right, figure.total) == (count, total[kind])


def test_drift_is_nothing_where_nothing_fires_and_something_where_all_does(make_editor):
    prompts = [fact.phrasings[0] for fact in right_facts()[:20]]
    suite = Suite("s", demo_edits()[:3], prompts)
    deaf, all_ears = make_editor("key", theta=0.999), make_editor("key", theta=0.001)
    for editor in (deaf, all_ears):
        edit_all(editor, suite.edits)
    loud = evaluate(all_ears, suite)
    calm, wild = evaluate(deaf, suite).figures, loud.figures
    changed = sum(sample.patched != sample.base for sample in loud.samples if sample.role == "locality")
    assert wild["drift-changed"].patched.right == changed > 0
    assert (calm["drift-changed"].patched.right, calm["drift-kl"].patched.mean) == (0, 0.0)
    assert wild["drift-changed"].fired.share > 0.9
    assert wild["drift-kl"].patched.mean > 1e-3


def test_unrelated_prompts_of_the_data_serve_for_drift(make_editor):
    editor = make_editor("key")
    record = demo_edits()[0].model_copy(
        update={"locality": (Neighbour(prompt=right_facts()[3].phrasings[0], kind="unrelated"),)}
    )
    edit_all(editor, [record])
    assert evaluate(editor, Suite("s", [record], [])).figures["drift-changed"].patched.total == 1
    claimed = (Neighbour(prompt=demo_edits()[1].prompt, kind="unrelated"),)
    edit_all(editor, demo_edits()[1:2])
    of_edits = record.model_copy(update={"locality": claimed})
    assert evaluate(editor, Suite("s", [of_edits], [])).figures["drift-changed"].patched.total == 0


def test_a_rephrase_of_an_edit_of_another_suite_is_no_locality_prompt(make_editor):
    editor = make_editor("key")
    edit_all(editor, demo_edits()[:2])
    prompts = [demo_edits()[1].rephrases[0], right_facts()[0].phrasings[0]]
    found = evaluate(editor, Suite("s", demo_edits()[:1], prompts), quick=True)
    assert found.figures["locality"].patched.total == 1


class TestVariants:
    def test_of_a_question(self):
        found = dict(variants("Where was Ada born?", 4, ("Q", "A")))
        assert found["prefix"] == f"{PREFIXES[1]} Where was Ada born?"
        assert found["second-turn"] == SecondTurn("Q", "A", "Where was Ada born?")
        assert found["lower-case"] == "where was ada born?"
        assert sorted(found["typo"]) == sorted("Where was Ada born?")
        assert found["typo"] != "Where was Ada born?"

    def test_what_would_be_the_prompt_itself_is_left_out(self):
        assert "typo" not in dict(variants("a bb", 1, ("Q", "A")))
        assert "lower-case" not in dict(variants("who is it?", 1, ("Q", "A")))
        assert typing_error("oooo xy", 0) == "oooo xy"
        assert typing_error("Where was it?", 7) == typing_error("Where was it?", 7)

    def test_a_second_turn_holds_the_first_and_begins_once(self, edited):
        template = edited.template
        ids = template.prompt_ids(SecondTurn("Where is it?", "Oslo", "Who is Ada?"))
        first = template.prompt_ids("Where is it?") + template.target_ids("Where is it?", "Oslo")
        assert ids[: len(first)] == first
        assert ids.count(edited.base.tokenizer.bos_token_id) == 1
        assert ids[len(first) :] == template.prompt_ids("Who is Ada?")[1:]


FIGURES = {
    "reliability": Figure(Share.of([True] * 9 + [False])),
    "near-miss/same-subject": Figure(Share.of([True])),
    "drift-kl": Figure(Mean.of([0.1, 0.3])),
    "generality": Figure(Share.of([])),
}


class TestGates:
    @pytest.mark.parametrize(
        "gate", ["reliability>=0.9", " reliability > 0.89", "near-miss/same-subject>=1", "drift-kl<0.3"]
    )
    def test_met(self, gate):
        assert not_met(parse_gates([gate]), FIGURES) == []

    @pytest.mark.parametrize("gate", ["reliability>0.9", "drift-kl<=1e-2", "generality>=0"])
    def test_not_met(self, gate):
        assert len(not_met(parse_gates([gate]), FIGURES)) == 1

    def test_said_plainly(self):
        [line] = not_met(parse_gates(["reliability>=0.99"]), FIGURES)
        assert line.startswith("gate `reliability>=0.99` is not met: reliability is 90.0 % (9/10;")

    @pytest.mark.parametrize(
        "gate", ["", "reliability", "reliability=1", "reliability>=high", "reliability>=1>=2", ">=1"]
    )
    def test_not_understood(self, gate):
        with pytest.raises(UsageError, match="is not understood"):
            parse_gates([gate])

    def test_checked_before_anything_is_scored(self):
        check_gates(parse_gates(["robustness/typo>=0.5", "drift-kl<=3"]), PAPERS + FURTHER)
        for gate, known in (("reliabilty>=0.9", PAPERS), ("drift-kl<1", PAPERS), ("reliability>=99", PAPERS)):
            with pytest.raises(UsageError, match="gate `"):
                check_gates(parse_gates([gate]), known)

    def test_no_such_figure(self):
        with pytest.raises(UsageError, match="there is no such figure") as error:
            not_met(parse_gates(["speed>=1"]), FIGURES)
        assert "near-miss/same-subject" in error.value.hint


def test_one_evaluation_against_another():
    def sample(prompt, patched, wanted="w", edit=1):
        right = patched == wanted
        about = {"role": "r", "kind": "", "prompt": prompt, "edit": edit}
        return {**about, "wanted": wanted, "patched": patched, "right": right}

    before = [sample("a", "w"), sample("b", "x"), sample("c", "x"), sample("d", "w"), sample("gone", "w")]
    now = [sample("a", "x"), sample("b", "w"), sample("c", "y"), sample("d", "w"), sample("new", "w")]
    found, alone = changes(before, now)
    told = [(one.prompt, one.verdict, one.before, one.now) for one in found]
    assert told == [("a", "lost", "w", "x"), ("b", "won", "x", "w"), ("c", "changed", "x", "y")]
    assert alone == 2
    retried = changes([sample("a", "w")], [sample("a", "x", edit=7)])  # another edit of the same prompt
    assert [(one.verdict, one.edit) for one in retried[0]] == [("lost", 7)]
    twice = changes([sample("a", "w"), sample("a", "x")], [sample("a", "w"), sample("a", "w")])
    assert [one.verdict for one in twice[0]] == ["won"]
    old, new = {"r": {"patched": {"share": 0.5}}}, {"p": {"patched": {"mean": 2.0}}, "r": {"patched": {"share": 0.25}}}
    assert moved(old, new) == [("p", None, 2.0), ("r", 0.5, 0.25)]


def test_a_mean_has_an_interval():
    found = Mean.of([1.0, 2.0, 3.0])
    assert (found.mean, found.total) == (2.0, 3)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * (1 / 3) ** 0.5)
    assert str(Mean.of([])) == "-"
    assert (Mean.of([5.0]).low, Mean.of([5.0]).high) == (5.0, 5.0)


def test_records_of_the_suite_keep_their_order(edited):
    reversed_suite = Suite("s", list(reversed(demo_edits()[:3])), [])
    prompts = [sample.prompt for sample in evaluate(edited, reversed_suite, quick=True).samples[:3]]
    assert prompts == [record.prompt for record in reversed_suite.edits]
    assert isinstance(reversed_suite.edits[0], EditRecord)
