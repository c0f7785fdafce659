"""Shares with Wilson intervals, and means with theirs."""

from __future__ import annotations

import pytest

from scen_cli.evaluation.metrics import Mean, Share, wilson


@pytest.mark.parametrize(
    ("right", "total", "interval"), [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611))]
)
def test_wilson_gives_the_published_intervals(right, total, interval):
    """Newcombe 1998, table I."""
    assert wilson(right, total) == pytest.approx(interval, abs=5e-5)


def test_a_share_prints_its_count_and_interval():
    assert Share.of([]).share is None
    assert str(Share.of([])) == "-"
    assert str(Share.of([True, False])) == "50.0 % (1/2; 9.5 to 90.5)"


def test_a_mean_has_an_interval():
    found = Mean.of([1.0, 2.0, 3.0])
    assert (found.mean, found.total) == (2.0, 3)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * (1 / 3) ** 0.5)
    assert str(Mean.of([])) == "-"
    assert (Mean.of([5.0]).low, Mean.of([5.0]).high) == (5.0, 5.0)
