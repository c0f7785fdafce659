"""What each method's paper says it is good and bad at, on the demo suite with 50 edits."""

import itertools
from functools import cache

import pytest
import torch

from scen_cli.baselines.catalogue import ready_method
from scen_cli.baselines.closed_form_memory import Contexts, at_places, recorded
from scen_cli.baselines.generate import answer
from scen_cli.baselines.memit import MemitSettings
from scen_cli.baselines.method import attached
from scen_cli.baselines.result_rows import all_rows
from scen_cli.baselines.scoring import Answers
from scen_cli.baselines.target_values import find_values, moved
from tests.baselines.fits import FITS


@pytest.fixture(scope="module")
def scores(given, edits):
    """Reliability, Generality and Locality of a method after so many edits."""
    from scen_cli.demo.facts import right_facts

    taken = set(given.prompts)
    locality = [(fact.phrasings[0], fact.answer) for fact in right_facts() if fact.phrasings[0] not in taken][:100]

    @cache
    def score(name, count=50, **changes):
        method = ready_method(name, given, {**FITS[name], **changes})
        size = method.settings.batch or count
        for start in range(0, count, size):
            method.fit(edits[start : min(start + size, count)])
        with attached(method):
            figures = Answers(given, edits[:count], locality, {}).score(method)
        return [figures[name].value for name in ("reliability", "generality", "locality")]

    return score


def test_scen_edits_generalise_and_stay_local(scores):
    assert min(scores("scen", 25)) >= 0.98


def test_ft_overwrites_what_it_learned_and_locality_falls_with_the_edits(scores):
    few, many = scores("ft", 10), scores("ft", 50)
    assert few[0] >= 0.8
    assert many[2] <= few[2] - 0.1


def test_kl_on_known_questions_keeps_locality_where_ft_loses_it(scores):
    plain, held = scores("ft", 30), scores("ft-kl", 30)
    assert held[2] > plain[2]


def test_fine_tuning_on_all_edits_at_once_beats_one_at_a_time(scores):
    plain, tuned = scores("ft", 50), scores("ft-tuned", 50)
    assert tuned[0] > plain[0]
    assert tuned[2] > plain[2]


def test_grace_is_local_and_with_a_small_radius_knows_no_rephrase(scores):
    """Its value stands at the prompt's tokens alone. With one layer above, what a longer answer needs cannot be read
    from there; from the first layer on, with three above, nearly all edits are learned."""
    near = scores("grace", 16, radius=1.0)
    early = scores("grace", 16, radius=1.0, layer=0)
    assert near[2] >= 0.98
    assert near[1] <= near[0] / 2
    assert early[0] >= 0.85 > near[0]


def test_melo_generalises_and_is_local(scores):
    reliability, generality, locality = scores("melo", 24)
    assert reliability >= 0.85
    assert generality >= 0.75
    assert locality >= 0.98


def test_every_row_of_a_comparison_is_a_method_with_settings_that_it_has(given):
    from scen_cli.baselines.catalogue import METHODS
    from scen_cli.baselines.method import make_settings
    from scen_cli.baselines.result_rows import with_choice

    rows = all_rows(4)
    assert {row.method for row in rows.values()} == set(METHODS)
    for row in rows.values():
        for choice in itertools.chain.from_iterable(row.choices):
            make_settings(METHODS[row.method].settings_type, with_choice(row.settings, choice))


def test_one_hidden_state_cannot_hold_a_long_answer_on_this_base(given, edits):
    """Why MEMIT and COMEBA-HK learn no more here: put at its place by hand, the best hidden state that is found gives
    the first token of nearly every target, and all of its tokens for some half of the edits."""
    some = edits[:30]
    settings = MemitSettings.model_validate(FITS["memit"])
    [layer] = given.layers(1)
    contexts = Contexts.of(given, some, 1, False)
    values = find_values(given.base.model, given.template, layer, contexts, some, settings)
    block, examples = layer.layers[layer.index], contexts.examples
    with torch.no_grad():
        with recorded(block) as seen:
            given.base.model(input_ids=examples.ids, use_cache=False)
        with moved(block, contexts.place, values - at_places(seen[block][1], contexts)):
            said = given.base.model(input_ids=examples.ids, use_cache=False).logits.argmax(dim=-1)
    first = (said == examples.labels)[torch.arange(30), examples.lengths - 1]
    whole = ((said == examples.labels) | (examples.labels < 0)).all(dim=1)
    assert int(first.sum()) >= 27
    assert 10 <= int(whole.sum()) <= 22
    method = ready_method("memit", given, FITS["memit"])
    method.fit(some)
    with attached(method):
        found = answer(given.base, given.template, [edit.prompt for edit in some], method)
    right = sum(text == edit.target for text, edit in zip(found, some, strict=True))
    assert abs(right - int(whole.sum())) <= 3  # what can be written is written


def test_ultra_edit_learns_some_and_changes_little(scores):
    reliability, _generality, locality = scores("ultra-edit")
    assert reliability >= 0.3
    assert locality >= 0.85


def test_in_context_retrieval_finds_the_edit_but_this_base_does_not_read_it(given, edits):
    method = ready_method("in-context", given)
    method.fit(edits[:50])
    found = method.found(method.embedded(method.states([edit.rephrases[0] for edit in edits[:50]])))
    assert sum(one == place for place, one in enumerate(found)) >= 40
    with attached(method):
        said = answer(given.base, given.template, [edit.prompt for edit in edits[:50]], method)
    assert sum(text == edit.target for text, edit in zip(said, edits, strict=False)) <= 10
