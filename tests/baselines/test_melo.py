"""MELO: its database against a literal oracle, blocks that later batches do not change, the radius."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scen_cli.baselines.catalogue import prepared_method
from scen_cli.baselines.context import answer
from scen_cli.baselines.melo import VectorDatabase, calibrated_radius
from scen_cli.baselines.method import attached

POINTS = st.tuples(st.integers(-6, 6), st.integers(-6, 6))


class Oracle:
    """The published rules in plain Python."""

    def __init__(self, r0):
        self.r0, self.rows = r0, []

    def add(self, key, label, block):
        if not self.rows:
            return self._new(key, label, block, self.r0)
        row = min(self.rows, key=lambda row: math.dist(row["center"], key))
        d = math.dist(row["center"], key)
        if d > row["radius"] + self.r0:
            self._new(key, label, block, self.r0)
        elif row["label"] == label:
            row["points"].append((key, block))
            row["center"] = tuple(sum(p[axis] for p, _ in row["points"]) / len(row["points"]) for axis in (0, 1))
            row["radius"] = max([math.dist(p, row["center"]) for p, _ in row["points"]] + [self.r0])
        else:
            self._new(key, label, block, d / 2 + 1e-5)
            row["radius"] = d / 2 - 1e-5
            row["points"] = [pair for pair in row["points"] if math.dist(pair[0], row["center"]) <= row["radius"]]
        return None

    def _new(self, key, label, block, radius):
        self.rows.append({"center": key, "radius": radius, "label": label, "points": [(key, block)]})

    def find(self, key):
        if not self.rows:
            return None
        row = min(self.rows, key=lambda row: math.dist(row["center"], key))
        if math.dist(row["center"], key) > row["radius"] or not row["points"]:
            return None
        return min(row["points"], key=lambda pair: math.dist(pair[0], key))[1]


@given(
    st.lists(st.tuples(POINTS, st.integers(0, 2)), max_size=12), st.lists(POINTS, max_size=8), st.sampled_from([1, 3])
)
@settings(max_examples=200, deadline=None)
def test_the_database_follows_the_published_rules(added, queries, r0):
    # Each point leaves the grid by another amount, so that no two distances are equal up to rounding.
    def shifted(point, number):
        return (point[0] + 0.0137 * (number % 17), point[1] + 0.0071 * (number % 23))

    database, oracle = VectorDatabase(r0), Oracle(r0)
    for number, (point, label) in enumerate(added):
        key = shifted(point, number)
        database.add(torch.tensor(key, dtype=torch.float64), (label,), number)
        oracle.add(key, (label,), number)
    assert [cluster.label[0] for cluster in database.clusters] == [row["label"][0] for row in oracle.rows]
    for cluster, row in zip(database.clusters, oracle.rows, strict=True):
        assert cluster.radius == pytest.approx(row["radius"], abs=1e-9)
        assert cluster.center.tolist() == pytest.approx(list(row["center"]), abs=1e-9)
        assert cluster.blocks == [block for _point, block in row["points"]]
    for number, point in enumerate([*queries, *(point for point, _label in added)]):
        key = shifted(point, number + 5)
        assert database.find(torch.tensor(key, dtype=torch.float64)) == oracle.find(key)


def test_a_loaded_database_finds_the_same_blocks():
    database = VectorDatabase(1.0)
    random = torch.Generator().manual_seed(1)
    for number in range(30):
        database.add(3 * torch.randn(4, generator=random), (number % 3, *range(number % 5)), number)
    other = VectorDatabase(0.0)
    other.load(database.tensors())
    assert len(other.clusters) == len(database.clusters)
    for key in 3 * torch.randn(50, 4, generator=random):
        assert other.find(key) == database.find(key)


@pytest.mark.slow
def test_an_earlier_block_keeps_its_logits_to_the_bit_after_200_edits(context, edits):
    method = prepared_method("melo", context, {"lr": 0.03, "rank": 4, "batch": 10, "steps": 30})
    method.fit(edits[:10])
    a, b = method.a[0].clone(), method.b[0].clone()
    ids, mask = method.encode([edit.prompt for edit in edits[:10]])
    with attached(method), torch.no_grad():
        before = method.logits((ids, mask), (ids, mask))
    for start in range(10, 200, 10):
        method.fit(edits[start : start + 10])
    assert method.count == 20
    assert torch.equal(method.a[0][: len(a)], a)
    assert torch.equal(method.b[0][: len(b)], b)
    with attached(method), torch.no_grad():
        [blocks] = [route.choice.tolist() for route in method.decide(ids, mask)]
        after = method.logits((ids, mask), (ids, mask))
    routed = [row for row, block in enumerate(blocks) if block == 0]
    assert len(routed) >= 8  # a conflict dropped the others
    assert torch.equal(after[routed], before[routed])
    with attached(method):
        edited = answer(context.base, context.template, [edit.prompt for edit in edits[:200]], method)
        unedited = answer(context.base, context.template, list(context.prompts[:200]), method)
    assert sum(text == edit.target for text, edit in zip(edited, edits, strict=False)) >= 150
    by_base = [text for _prompt, text in context.unedited[:200]]
    assert sum(text == base for text, base in zip(unedited, by_base, strict=True)) >= 190


def test_calibrated_radius_separates_own_from_other_distances():
    own, others = torch.tensor([0.5, 0.7, 1.0, 1.2]), torch.tensor([3.0, 3.5, 4.0])
    assert calibrated_radius(own, others) == pytest.approx((1.2 + 3.0) / 2)
    assert calibrated_radius(torch.empty(0), others) == pytest.approx(1.5)
    assert calibrated_radius(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([3.0, 4.0, 5.0])) == pytest.approx(2.5)
