"""Gates: bounds that a figure must keep."""

from __future__ import annotations

import pytest

from scen_cli.errors import UsageError
from scen_cli.evaluation.gates import FURTHER, PAPER, check_gates, not_met, parse_gates
from scen_cli.evaluation.metrics import Figure, Mean, Share

FIGURES = {
    "reliability": Figure(Share.of([True] * 9 + [False])),
    "near-miss/same-subject": Figure(Share.of([True])),
    "drift-kl": Figure(Mean.of([0.1, 0.3])),
    "generality": Figure(Share.of([])),
}


@pytest.mark.parametrize(
    ("gate", "unmet"),
    [
        ("reliability>=0.9", 0),
        (" reliability > 0.89", 0),
        ("near-miss/same-subject>=1", 0),
        ("drift-kl<0.3", 0),
        ("reliability>0.9", 1),
        ("drift-kl<=1e-2", 1),
        ("generality>=0", 1),
    ],
)
def test_a_gate_is_met_or_not(gate, unmet):
    assert len(not_met(parse_gates([gate]), FIGURES)) == unmet


def test_a_gate_that_is_not_met_is_reported_with_the_figure():
    [line] = not_met(parse_gates(["reliability>=0.99"]), FIGURES)
    assert line.startswith("gate `reliability>=0.99` is not met: reliability is 90.0 % (9/10;")


@pytest.mark.parametrize("gate", ["", "reliability", "reliability=1", "reliability>=high", "reliability>=1>=2", ">=1"])
def test_a_malformed_gate_is_refused(gate):
    with pytest.raises(UsageError, match="is not understood"):
        parse_gates([gate])


def test_check_gates_accepts_known_figures():
    check_gates(parse_gates(["robustness/typo>=0.5", "drift-kl<=3"]), PAPER + FURTHER)


@pytest.mark.parametrize("gate", ["reliabilty>=0.9", "drift-kl<1", "reliability>=99"])
def test_check_gates_refuses_unknown_figures_and_impossible_bounds(gate):
    with pytest.raises(UsageError, match="gate `"):
        check_gates(parse_gates([gate]), PAPER)


def test_a_gate_on_a_figure_that_was_not_measured_is_refused():
    with pytest.raises(UsageError, match="there is no such figure") as error:
        not_met(parse_gates(["speed>=1"]), FIGURES)
    assert "near-miss/same-subject" in error.value.hint
