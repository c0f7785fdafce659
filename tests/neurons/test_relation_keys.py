"""What the question bank's keys say: which directions do not count, and where theta lies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scen_cli.neurons.relation_keys import HIGHEST_THETA, LOWEST_THETA, RelationKeys

WIDTH, RELATIONS, WORDINGS = 64, 12, 6


def bank(noise: float = 1.0, statements: bool = True) -> RelationKeys:
    """Each relation has a direction; its wordings differ from it along a few directions that all relations share, and
    statements lie apart from questions."""
    random = torch.Generator().manual_seed(0)
    directions = torch.eye(WIDTH)
    asked = directions[:RELATIONS].repeat_interleave(WORDINGS, dim=0)
    wording = directions[20:24][torch.randint(0, 4, (len(asked),), generator=random)]
    asked = asked + noise * wording * torch.randn(len(asked), 1, generator=random)
    names = [("person" if n % 2 else "place", f"relation {n}") for n in range(RELATIONS)]
    rows = [name for name in names for _ in range(WORDINGS)]
    said = directions[:RELATIONS] + 2 * directions[40] if statements else torch.empty(0, WIDTH)
    said = torch.cat([said, said + 0.1 * directions[21]]) if statements else said
    return RelationKeys(asked, [k for k, _ in rows], [r for _, r in rows], said, (names * 2) if statements else [])


def cosines(keys: torch.Tensor) -> torch.Tensor:
    keys = nn.functional.normalize(keys, dim=1)
    return keys @ keys.T


@pytest.mark.parametrize("statements", [True, False])
def test_whitening_brings_wordings_of_one_relation_together(statements):
    found = bank(statements=statements)
    same = torch.arange(len(found.keys)) // WORDINGS
    alike = same[:, None] == same
    before, after = (cosines(keys)[alike].mean() for keys in (found.keys, found.whitening()(found.keys)))
    assert after > before + 0.1


def test_the_form_of_a_statement_still_counts():
    found = bank()
    whitened = found.whitening()(torch.cat([found.keys[:1], found.statements[:1]]))
    assert cosines(whitened)[0, 1] < 0.5  # the direction that all statements share is no direction of wordings


def test_theta_falls_as_more_questions_may_be_routed_and_stays_in_bounds():
    thetas = [bank(noise=3.0).theta(rate) for rate in (0.01, 0.05, 0.5)]
    assert thetas == sorted(thetas, reverse=True)
    assert all(LOWEST_THETA <= theta <= HIGHEST_THETA for theta in thetas)
    assert len({*thetas}) > 1
