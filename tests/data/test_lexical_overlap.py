"""Which edits may be about the same topic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scen_cli.data.lexical_overlap import Topics

GUARD = ["Where was she born?", "Where is it?", "Where was he born?"]
words = st.lists(st.sampled_from(["where", "born", "Ada", "Bo", "Cy"]), min_size=1, max_size=3).map(" ".join)


@given(st.lists(st.tuples(words, st.none() | st.sampled_from(["Ada", "ada", "Bo", "?"])), max_size=5))
def test_an_edit_has_company_if_any_other_may_share_its_topic(edits):
    topics = Topics(GUARD)
    expected = [
        any(topics.same_topic(*edit, *other) for place, other in enumerate(edits) if place != number)
        for number, edit in enumerate(edits)
    ]
    assert topics.with_company(edits) == expected
