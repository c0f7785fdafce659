"""The field's forms: made by hand, and the real files."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scen_cli.data.dataset_forms import parse_records
from scen_cli.data.entries import parse_file, read_entries
from scen_cli.data.records import EditRecord, Neighbour, Question, visible
from scen_cli.data.unread_fields import leaves
from scen_cli.data.write_files import write_records


def parse_record(item):
    """(form, record) of a value that holds one edit."""
    parsed = parse_records(item)
    [record] = parsed.records
    return parsed.form, record


COUNTERFACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The native language of Montesquieu is", "Jean Racine, a native"],
    "attribute_prompts": ["not used"],
}
FLAT = {
    "case_id": 2,
    "prompt": "Toko Yasuda, the",
    "target_new": "piano",
    "subject": "Toko Yasuda",
    "ground_truth": "guitar",
    "rephrase_prompt": "Toko Yasuda is incredible at",
    "locality_prompt": "John Lennon performs on the",
    "locality_ground_truth": "guitar",
}
KNOWEDIT = {
    "prompt": "Who leads X?",
    "target_new": "Ada",
    "ground_truth": ["Bo", "Bob"],
    "locality": {"Relation_Specificity": [{"prompt": "Where is X?", "ground_truth": [["Riga", "Rīga"]]}]},
    "portability": {"Reasoning": {"prompt": ["Who leads X's parent?"], "ground_truth": ["Cy"]}},
}
MEND = {"src": "a?", "alt": "b", "answers": ["c"], "rephrase": "A?", "loc": "nq question: d?", "loc_ans": "e"}
HALLUCINATION = {"text": "Passage so far.", "labels": "Its next sentence.", "concept": "ada"}


def test_every_form_by_its_fields():
    neighbours = (
        Neighbour(prompt="The native language of Montesquieu is", target="French", kind="same-relation"),
        Neighbour(prompt="Jean Racine, a native", target="French", kind="same-relation"),
    )
    assert parse_record(COUNTERFACT) == (
        "counterfact",
        EditRecord(
            prompt="The mother tongue of Danielle Darrieux is",
            target="English",
            subject="Danielle Darrieux",
            rephrases=("Danielle Darrieux, a native",),
            truth=("French",),
            locality=neighbours,
            id="0",
        ),
    )
    form, record = parse_record(FLAT)
    assert (form, record.id, record.truth, record.rephrases) == (
        "knowedit",
        "2",
        ("guitar",),
        (FLAT["rephrase_prompt"],),
    )
    assert record.locality == (Neighbour(prompt=FLAT["locality_prompt"], target="guitar", kind="same-relation"),)
    form, record = parse_record(KNOWEDIT)
    assert record.truth == ("Bo", "Bob")
    assert record.locality == (Neighbour(prompt="Where is X?", target="Riga", kind="same-subject"),)
    assert record.portability == (Question(prompt="Who leads X's parent?", target="Cy", kind="Reasoning"),)
    form, record = parse_record(MEND)
    assert (form, record.target, record.truth) == ("mend", "b", ("c",))
    assert record.locality == (Neighbour(prompt="d?", target="e", kind="unrelated"),)
    form, record = parse_record(HALLUCINATION)
    assert (form, record.prompt, record.target) == ("scen-hallucination", "Passage so far.", "Its next sentence.")


ROME = {"prompt": "Where is {}?", "subject": "Velmora", "target_new": {"str": "Peru"}, "target_true": {"str": "Chad"}}
WISE = {
    **{"prompt": "Who leads Velmora?", "subject": "Velmora", "target_new": "Ada", "rephrase_prompt": "Velmora's head?"},
    **{"ood_rephrase": "I met the head of Velmora,", "locality_prompt": "nq question: who sang it"},
    "locality_ground_truth": "Bo",
}
CKNOWEDIT = {
    **{"prompt": "Who leads X?", "target_old": "Bo", "target_new": "Ada", "rephrase": ["X is led by?"]},
    "portability": [{"prompt": "Where does the head of X live?", "answer": "Riga"}],
    "locality": [{"prompt": "Who leads Y?", "answer": "Cy"}],
}
REWRITE = {
    **{"prompt": "{} is led by", "subject": "X", "question": "Who leads X?"},
    **{"target_new": {"str": "Ada"}, "target_true": {"str": "Bo"}},
}
MQUAKE = {
    "case_id": 7,
    "requested_rewrite": [REWRITE],
    "questions": ["Where does X's head live?"],
    "new_answer": "Riga",
}
BIG = {
    **{
        "subject": "X",
        "update": "Who leads X?",
        "ans": "Ada",
        "rephrase": "X is led by?",
        "personas": "Mate, X's head?",
    },
    **{"mhop": "Where does X's head live?", "mhop_ans": "Riga", "loc": "Who leads Y?", "loc_ans": "Cy"},
}
EASYEDIT = {**MEND, "portability": {"Recalled Relation": "(b, f, g)", "New Question": "h?", "New Answer": "g"}}


def test_rome_requests_name_their_subject_by_braces():
    _form, record = parse_record(ROME)
    assert (record.prompt, record.target, record.truth) == ("Where is Velmora?", "Peru", ("Chad",))
    _form, record = parse_record({"prompt": "What does {} mean in Python?", "target": "an empty dictionary"})
    assert record.prompt == "What does {} mean in Python?"  # scen's own form is taken as it is


def test_wise_temporal_records_keep_both_rephrases_and_the_kind_of_their_locality():
    _form, record = parse_record(WISE)
    assert record.rephrases == ("Velmora's head?", "I met the head of Velmora,")
    assert record.locality == (Neighbour(prompt="who sang it", target="Bo", kind="unrelated"),)


def test_cknowedit_has_lists_of_questions():
    _form, record = parse_record(CKNOWEDIT)
    assert (record.truth, record.rephrases) == (("Bo",), ("X is led by?",))
    assert record.portability == (Question(prompt="Where does the head of X live?", target="Riga"),)
    assert record.locality == (Neighbour(prompt="Who leads Y?", target="Cy"),)


def test_each_rewrite_of_mquake_is_an_edit():
    form, record = parse_record(MQUAKE)
    assert (form, record.prompt, record.target, record.rephrases) == ("mquake", "X is led by", "Ada", ("Who leads X?",))
    assert record.portability == (Question(prompt="Where does X's head live?", target="Riga"),)
    second = {**REWRITE, "subject": "Ada", "prompt": "{} lives in", "question": "Where does Ada live?"}
    records = parse_records({**MQUAKE, "requested_rewrite": [REWRITE, second]}).records
    assert [(record.id, record.prompt, len(record.portability)) for record in records] == [
        ("7-1", "X is led by", 1),
        ("7-2", "Ada lives in", 0),
    ]


def test_wikibigedit_and_easyedits_portability_are_read():
    form, record = parse_record(BIG)
    assert (form, record.prompt, record.target) == ("wikibigedit", "Who leads X?", "Ada")
    assert record.rephrases == ("X is led by?", "Mate, X's head?")
    assert record.portability == (Question(prompt="Where does X's head live?", target="Riga", kind="mhop"),)
    assert record.locality == (Neighbour(prompt="Who leads Y?", target="Cy", kind="unrelated"),)
    assert parse_record(EASYEDIT)[1].portability == (Question(prompt="h?", target="g"),)


def test_rippleedits_is_refused_by_name():
    with pytest.raises(ValueError, match="is of RippleEdits: `target` is missing"):
        parse_records({"example_type": "recent", "edit": {"prompt": "X is led by Ada."}})


EMPTY = {
    **{"prompt": "Who?", "target": "Ada", "subject": " ", "rephrases": ["", "Whom?"], "truth": ""},
    **{"portability": [{"prompt": "", "target": "x"}], "locality": [{"prompt": "Where?", "target": ""}]},
}


NULLS = {"prompt": "a?", "target": "b", "rephrases": [None], "truth": [None, "c"], "locality": None}


@pytest.mark.parametrize(
    ("item", "empty"),
    [
        (NULLS, ["rephrases", "truth"]),
        ({**NULLS, "portability": [{"prompt": "x?", "target": None}]}, ["rephrases", "truth", "portability"]),
        ({**KNOWEDIT, "portability": {"Reasoning": [{"prompt": "x?", "ground_truth": [[]]}]}}, ["portability"]),
        ({**KNOWEDIT, "locality": {"Relation_Specificity": [{"prompt": "x?", "ground_truth": []}]}}, []),
        ({**KNOWEDIT, "locality": "", "portability": {"Reasoning": None, "Other": ""}}, []),
        ({**MQUAKE, "new_answer": None}, ["portability"]),
        ({**BIG, "mhop_ans": None}, ["portability"]),
        ({**EASYEDIT, "portability": {"New Question": "h?", "New Answer": []}}, ["portability"]),
        ({**MEND, "loc_ans": []}, []),
        ({**FLAT, "locality_ground_truth": []}, []),
    ],
)
def test_a_missing_answer_costs_its_question_not_the_edit(item, empty):
    parsed = parse_records(item)
    assert (len(parsed.records), parsed.empty) == (1, empty)


def test_a_text_that_cannot_be_seen_is_empty_and_what_copying_leaves_around_one_is_removed():
    for text in ("\u200b", " \ufeff\u2060 ", "\u00ad"):
        with pytest.raises(ValueError, match="`target` is empty"):
            parse_records({"prompt": "a?", "target": text})
    _form, record = parse_record({"prompt": "\ufeffa?", "target": "\u200b b\u200b", "subject": "\u200b"})
    assert (record.prompt, record.target, record.subject) == ("a?", "b", None)
    assert parse_record({"prompt": "a?", "target": "👨\u200d👩"})[1].target == "👨\u200d👩"


def test_braces_without_a_subject_to_stand_there_are_not_trained():
    with pytest.raises(ValueError, match="`subject` is missing"):
        parse_records({"prompt": "{} plays", "target_new": {"str": "golf"}})
    with pytest.raises(ValueError, match="write 'Ada' there"):
        parse_records({"prompt": "{} plays", "target": "golf", "subject": "Ada"})
    code = {"prompt": "What does {} mean in Python?", "target": "an empty dictionary"}
    for subject in ("Python", ""):
        assert parse_record({**code, "subject": subject})[1].prompt == code["prompt"]


def test_the_message_on_an_unknown_form_says_what_is_there():
    with pytest.raises(ValueError, match="it has `prompt;target`, and they have"):
        parse_records({"prompt;target": "a?;b"})
    with pytest.raises(ValueError, match="holds records in `data`: write that list alone"):
        parse_records({"version": 1, "data": [MEND]})
    with pytest.raises(ValueError, match="it has `messages`"):
        parse_records({"messages": [{"role": "user", "content": "a?"}]})
    with pytest.raises(ValueError, match="`requested_rewrite` is an empty list"):
        parse_records({**MQUAKE, "requested_rewrite": []})


def test_the_fields_of_another_form_may_be_there_and_null():
    assert parse_record({**KNOWEDIT, "target": None, "src": None}) == parse_record(KNOWEDIT)
    assert parse_record({**BIG, "mhop_ans": ["Riga", "Rīga"]}) == parse_record(BIG)


def test_a_target_of_a_rewrite_may_be_plain_text():
    rewrite = {**REWRITE, "target_new": "Ada", "target_true": "Bo"}
    _form, record = parse_record({"requested_rewrite": rewrite})
    assert (record.target, record.truth) == ("Ada", ("Bo",))
    with pytest.raises(ValueError, match="`requested_rewrite.target_new.str` is missing"):
        parse_records({"requested_rewrite": {**REWRITE, "target_new": {"id": "Q1"}}})


def test_other_right_answers_are_kept_though_they_stand_elsewhere_too():
    assert parse_records({**MEND, "alt": ["b", "c"]}).other["alt"] == ["b", "c"]  # `c` is the old answer
    assert parse_records({**MEND, "loc_ans": ["e", "b"]}).other["loc_ans"] == ["e", "b"]


@pytest.mark.parametrize("item", [EMPTY, {**MEND, "rephrase": "", "loc": "", "answers": [""]}])
def test_an_empty_optional_field_costs_a_figure_not_the_edit(item):
    parsed = parse_records(item)
    assert len(parsed.records) == 1
    assert {"rephrases", "truth"} <= {*parsed.empty}
    assert parsed.records[0].truth == ()


def test_an_empty_prompt_or_target_is_an_error():
    for field in ("prompt", "target"):
        with pytest.raises(ValueError, match=f"`{field}` is empty"):
            parse_records({**EMPTY, field: " "})


@pytest.mark.parametrize(
    ("base", "change", "problem"),
    [
        (KNOWEDIT, {"target_new": []}, "`target_new` is an empty list"),
        (KNOWEDIT, {"target_new": None}, "`target` is missing"),
        (KNOWEDIT, {"ground_truth": 7}, "`truth.0` must be text, not 7"),
        (KNOWEDIT, {"rephrase_prompt": [3]}, "`rephrases.0` must be text"),
        (KNOWEDIT, {"locality": 3}, "`locality` must be an object"),
        (KNOWEDIT, {"locality": [{"answer": "x"}]}, "holds a question without `prompt`"),
        (KNOWEDIT, {"target_new": {"text": "Rome"}}, "`target_new.str` is missing"),
        (KNOWEDIT, {"target_new": 1987}, "`target` must be text, not 1987"),
        (KNOWEDIT, {"locality": {"a": 1}}, "`locality.a` must be a list"),
        (KNOWEDIT, {"locality": {"a": [{"ground_truth": "x"}]}}, "`locality.a` holds a question without `prompt`"),
        (KNOWEDIT, {"portability": {"a": {"prompt": ["x"]}}}, "`portability.a` has 1 prompts and 0 answers"),
        (KNOWEDIT, {"portability": {"a": [{"prompt": "x"}]}}, "`portability.0.target` is missing"),
        (COUNTERFACT, {"requested_rewrite": 3}, "`requested_rewrite` must be an object"),
        (COUNTERFACT, {"requested_rewrite": {"prompt": "x"}}, "`requested_rewrite.subject` is missing"),
        (COUNTERFACT, {"requested_rewrite": {"prompt": "x", "subject": 1, "target_new": {}}}, "must be text"),
        (MEND, {"loc_ans": 3}, "`locality.0.target` must be text"),
        (MEND, {"src": ""}, "`prompt` is empty"),
        (HALLUCINATION, {"labels": ["a"]}, "`target` must be text"),
    ],
)
def test_a_field_that_is_wrong_is_named(base, change, problem):
    with pytest.raises(ValueError, match="`") as error:
        parse_record({**base, **change})
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("name", "form", "records", "prompts"),
    [
        ("zsre/ZsRE-test-all.json", "knowedit", 1304, 1286),
        ("counterfact/counterfact-train.json", "knowedit", 10000, 9923),
        ("counterfact/wiki_counterfact-train.json", "knowedit", 1428, 1417),
        ("wikibio/wikibio-test-all.json", "scen-hallucination", 306, 306),
        ("wikibio/hall_accurates.json", "scen-hallucination", 516, 516),
    ],
)
def test_the_real_files(shared_data, tmp_path, name, form, records, prompts):
    entries = parse_file(str(shared_data / name))
    assert {entry.form for entry in entries} == {form}
    assert len(entries) == records
    assert [entry.problem for entry in entries if entry.problem] == []
    assert len({entry.record.prompt for entry in entries}) == prompts
    write_records(tmp_path / "own.jsonl", [entry.record for entry in entries])
    assert [entry.record for entry in parse_file(str(tmp_path / "own.jsonl"))] == [e.record for e in entries]


def test_records_of_the_same_id_are_a_problem(tmp_path):
    path = tmp_path / "flat.json"
    path.write_text(json.dumps([FLAT, {**FLAT, "prompt": "Another, the"}]))
    assert [entry.problem for entry in read_entries(str(path))] == ["", "has the id of line 1: '2'"]
    path.write_text(json.dumps([FLAT, FLAT]))
    assert [entry.problem for entry in read_entries(str(path))] == ["", "repeats line 1"]  # said once, and the cause


# Any text JSON can carry, but for half characters; space around it is not kept, so none is made.
_texts = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
    .map(visible)
    .filter(bool)
)
_questions = st.builds(Question, prompt=_texts, target=_texts, kind=st.none() | _texts)
_neighbours = st.builds(Neighbour, prompt=_texts, target=st.none() | _texts, kind=st.none() | _texts)
_records = st.builds(
    EditRecord,
    prompt=_texts,
    target=_texts,
    subject=st.none() | _texts,
    rephrases=st.lists(_texts, max_size=3).map(tuple),
    truth=st.lists(_texts, max_size=2).map(tuple),
    portability=st.lists(_questions, max_size=2).map(tuple),
    locality=st.lists(_neighbours, max_size=2).map(tuple),
    id=st.none() | _texts,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(_records, min_size=1, max_size=4), as_array=st.booleans())
def test_what_is_written_reads_back_the_same(tmp_path, records, as_array):
    path = tmp_path / "own"
    path.unlink(missing_ok=True)
    if as_array:
        path.write_text(json.dumps([record.as_json() for record in records], indent=1), encoding="utf-8")
    else:
        write_records(path, records)
    assert [entry.record for entry in parse_file(str(path))] == records


FOREIGN = {"source": "invented", "score": 0.5, "tags": [{"a": [1, True]}], "same": "Ada"}  # `same`: also a target
CHANGED_REWRITE = {**REWRITE, "target_new": {"str": "Ada", "id": "Q1"}, "relation_id": "P35", "of": {"x": "Ada"}}
NESTED = {
    **KNOWEDIT,
    "locality": {"Relation_Specificity": [{"prompt": "Where is X?", "ground_truth": [["Riga", "Rīga"]], "id": 3}]},
}
PUBLISHED = {
    "counterfact": COUNTERFACT,
    "flat counterfact": FLAT,
    "knowedit": NESTED,
    "mend": {**MEND, "answers": ["c", "cc"], "pred": "x", "cond": "b >> c || a?"},
    "easyedit": EASYEDIT,
    "hallucination": HALLUCINATION,
    "rome": {**ROME, "request_id": 4},
    "wise": WISE,
    "cknowedit": CKNOWEDIT,
    "mquake": {
        **MQUAKE,
        "requested_rewrite": [CHANGED_REWRITE, {**REWRITE, "subject": "Y"}],
        "single_hops": [{"question": "Who?", "answer": "Bo", "answer_alias": ["B"]}],
        "orig": {"triples": [["Q1", "P35", "Q2"]]},
        "answer": "Oslo",
    },
    "wikibigedit": {**BIG, "tag": "old", "relation": "leads"},
    "scen-zsre": {"Q": "a?", "A": ["b", "bb"], "rephrases": ["A?"]},
    "scen": {"prompt": "a?", "target": "b", "truth": "c", "other": {"x": {"y": [1]}}},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_convert_loses_no_value(scen, tmp_path, name):
    item = PUBLISHED[name] if name == "scen" else {**PUBLISHED[name], **FOREIGN}
    (tmp_path / "a.jsonl").write_text(json.dumps(item))
    scen("data", "convert", tmp_path / "a.jsonl", "--out", tmp_path / "b.jsonl")
    scen("data", "convert", tmp_path / "b.jsonl", "--out", tmp_path / "c.jsonl")
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    assert (tmp_path / "c.jsonl").read_text().splitlines() == lines
    converted = [json.loads(line) for line in lines]
    found = {(type(leaf), leaf) for leaf in leaves(converted)}
    assert [leaf for leaf in leaves(item) if (type(leaf), leaf) not in found] == []
    if name != "scen":
        assert {field: converted[0]["other"].get(field) for field in FOREIGN} == FOREIGN
    original, again = parse_file(str(tmp_path / "a.jsonl")), parse_file(str(tmp_path / "b.jsonl"))
    assert [entry.record for entry in again] == [entry.record for entry in original]


def test_what_is_read_whole_is_written_once():
    assert parse_records(WISE).other == {"locality_prompt": "nq question: who sang it"}
    assert parse_records(CKNOWEDIT).other == {}
    assert parse_records(HALLUCINATION).other == {}
    assert set(parse_records(NESTED).other) == {"locality"}  # an answer that is not the first, and an id
    with pytest.raises(ValueError, match="`other` must be an object"):
        parse_records({"prompt": "a?", "target": "b", "other": "c"})


def test_convert_says_which_empty_fields_it_leaves_out(scen, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(EMPTY))
    result = scen("data", "convert", tmp_path / "a.jsonl", "--out", tmp_path / "b.jsonl")
    assert "a.jsonl:1: `subject`, `rephrases`, `truth`, `portability`, `locality` is empty: left out" in result.stderr
