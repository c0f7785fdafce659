"""What `inspect` finds: repeats, contradictions, and locality prompts that an edit may claim."""

from __future__ import annotations

import json
import random
import re

import pytest

from scen_cli.data.entries import parse_file
from scen_cli.data.inspection import inspect
from scen_cli.data.lexical_overlap import NEAR, near_duplicates


def test_counts_repeats_and_conflicts(tmp_path):
    path = tmp_path / "a.jsonl"
    first = {"prompt": "Who led X?", "target": "Ada", "rephrases": ["X was led by?"], "subject": "X", "truth": "Bo"}
    beside = [{"prompt": "who led x", "kind": "same-relation"}]
    near = {"prompt": "Who led Y?", "target": "Cy", "locality": beside}
    again = {**first, "rephrases": [], "locality": [{"prompt": "Who led Y?"}]}
    lines = [first, near, {**near, "target": "Di"}, again, {"prompt": "Z?"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = inspect(parse_file(str(path)), ["Where is Z?", "X was led by"])
    assert found.forms == {"scen": 4}
    assert (found.records, found.distinct_prompts) == (4, 2)
    assert found.problems == ["a.jsonl:5: `target` is missing"]
    assert found.repeats == ["a.jsonl:4 and 1: Who led X?"]
    assert found.conflicts == ["a.jsonl:3 and 2: Who led Y?"]
    assert found.phrasings == {1: 2, 2: 1}  # the fourth record is the first one's fact
    assert (found.with_subject, found.with_truth) == (2, 2)
    assert found.locality == {"same-relation": 2, "unnamed": 1}
    assert found.locality_edited == 1
    assert found.near == [
        ("Who led X?", "who led x", 1.0),
        ("Who led Y?", "Who led Y?", 1.0),
        ("X was led by?", "X was led by", 1.0),
    ]


@pytest.mark.parametrize(
    ("name", "conflicts", "edited"),
    [("zsre/ZsRE-test-all.json", 10, 0), ("counterfact/wiki_counterfact-train.json", 0, 54)],
)
def test_what_the_readme_says_of_the_real_files(shared_data, name, conflicts, edited):
    found = inspect(parse_file(str(shared_data / name)))
    assert (len(found.conflicts), found.locality_edited) == (conflicts, edited)


def test_near_duplicates_are_those_of_all_pairs():
    rng = random.Random(0)
    words = [f"w{n}" for n in range(12)]
    edits, others = (
        [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(300)] for _ in ("edits", "others")
    )

    def share(one, other):
        a, b = set(re.findall(r"\w+", one)), set(re.findall(r"\w+", other))
        return len(a & b) / len(a | b)

    every = {(one, other) for one in edits for other in others if share(one, other) >= NEAR}
    assert len(every) > 50
    assert {pair[:2] for pair in near_duplicates(edits, others)} == every
