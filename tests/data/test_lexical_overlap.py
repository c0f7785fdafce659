"""Which edits may be about the same topic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scen_cli.data.lexical_overlap import Topics

GUARD = ["Where was she born?", "Where is it?", "Where was he born?"]
words = st.lists(st.sampled_from(["where", "born", "Ada", "Bo", "Cy"]), min_size=1, max_size=3).map(" ".join)


@given(st.lists(st.tuples(words, st.none() | st.sampled_from(["Ada", "ada", "Bo", "?"])), max_size=5))
def test_edits_that_may_share_their_topic_are_in_one_company(edits):
    topics = Topics(GUARD)
    companies = topics.companies(edits)
    company_of = {number: company for company, numbers in enumerate(companies) for number in numbers}
    assert sorted(company_of) == sorted(number for numbers in companies for number in numbers)  # each in one at most
    shared = {number: set() for number in range(len(edits))}
    for number, edit in enumerate(edits):
        for place, other in enumerate(edits):
            if place != number and topics.same_topic(*edit, *other):
                shared[number].add(place)
                assert company_of[number] == company_of[place]
    assert set(company_of) == {number for number, others in shared.items() if others}
