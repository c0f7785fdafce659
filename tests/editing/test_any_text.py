"""Records of any text: each is refused with a reason, or becomes an edit whose prompt is answered with its target."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scen_cli.data.entries import Entry
from scen_cli.data.records import SourceLine, check_record
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor

COMMAND_LINE = SourceLine("command line", 1)  # from here an edit is made again after it was reverted

PIECES = (
    *(
        "e\u0301",
        "\u0301",
        "Z\u0351\u036b\u0343",
        "हिन्दी",
        "กำ",
        "\u1100\u1161",
        "가",
        "ﬁ",
        "ß",
        "İ",
        "ǆ",
        "½",
        "ﷺ",
        "΅",
    ),
    *(
        "שלום",
        "مرحبا",
        "\u202eabc\u202c",
        "\u200f",
        "\u2066x\u2069",
        "👩\u200d👩\u200d👧",
        "🏳️\u200d🌈",
        "👍🏽",
        "🇫🇷",
        "❤️",
        "𝐀",
        "里斯本",
    ),
    *("\x00", "\x01", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufffd", "\U0010ffff", "\ue000", "\ufffe"),
    *("\n", "\r\n", "\t", " ", "  ", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u2060", "\u034f"),
    *("<s>", "</s>", "<pad>", "[INST]", "[/INST]", "{prompt}", "{}", "it", "\\n", "%s", "<|endoftext|>"),
    *("'", '"', "?", ". ", "Ada", "ada", "Ada's", "C++", "2", "-1", "Where was Ada born?", "Who", "¿"),
)
GROUPS = (
    [{"prompt": "Which </s>?", "target": "b", "subject": "</s>"}],
    [{"prompt": "Which mark?", "target": "[INST]"}, {"prompt": "And after it?", "target": "b<pad>"}],
    [{"prompt": "!!!", "target": "a"}, {"prompt": "???", "target": "b"}],  # prompts without words
    [{"prompt": "Who is \u200dAda?", "target": "a"}, {"prompt": "Who is Ada?", "target": "b"}],  # they look the same
    [{"prompt": "Who is she?\n", "target": "a", "subject": "she"}, {"prompt": "Who is she?", "target": "b"}],
    [  # one subject is the other without its special token
        {"prompt": "é" * 20 + " 0↕?", "target": "é", "subject": "0↕"},
        {"prompt": "</s>0↕ " + "가" * 20, "target": "é", "subject": "</s>0↕"},
    ],
    [{"prompt": "a\0b", "target": "c"}, {"prompt": "\u200b", "target": "\u200b"}],
)
pieces = st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
texts = st.lists(pieces, min_size=1, max_size=4).map("".join)


@st.composite
def items(draw) -> dict[str, str]:
    """The fields of a record. Few are so long that they are refused."""
    prompt, target, size = draw(texts), draw(pieces), draw(st.integers(0, 39))
    if size < 3:
        prompt *= (20, 200, 5000)[size]
    elif size < 6:
        target *= (3, 20, 5000)[size - 3]
    item = {"prompt": prompt, "target": target}
    if draw(st.booleans()):
        item["subject"] = draw(texts)
        frame = draw(st.sampled_from(["{prompt}", "{subject} {prompt}", "{prompt} {subject}?", "{prompt}{subject}."]))
        item["prompt"] = frame.format(prompt=prompt, subject=item["subject"])
    return item


@pytest.fixture(scope="module")
def editor(tmp_path_factory, demo_base, demo_guard):
    """An editor whose experts learn most short targets, and soon."""
    changes = {"expert": "full", "expert_lr": 0.03, "extra_steps": 60, "prompt_augmentations": 0}
    folder = tmp_path_factory.mktemp("any-text") / "p"
    editor = Editor(new_project(folder, "demo", changes=changes, guard=demo_guard, base=demo_base), base=demo_base)
    yield editor
    editor.detach()


def check(editor, group: list[dict[str, str]]) -> None:
    """Edit the records, ask the prompts of those that became edits, and revert these."""
    entries, problems = [], []
    for item in group:
        try:
            entries.append(Entry(COMMAND_LINE, check_record(item)))
        except ValueError as error:
            problems.append(str(error))
    assert all(problem.startswith("`") for problem in problems)  # each names the field
    ledger = editor.project.ledger
    with editor.project.writing():
        plan = editor.plan(entries)
        list(editor.train(plan, batch=4))
        active = {edit.id: edit for edit in ledger.edits("active")}
        try:
            asked = []
            for entry, outcome in zip(entries, plan.outcomes, strict=True):
                assert str(outcome)
                if outcome.outcome == "failed":
                    assert outcome.reason
                elif outcome.edit in active:
                    edit = active[outcome.edit]
                    assert (edit.prompt, edit.target) == (entry.record.prompt, entry.record.target)
                    asked.append(edit)
                else:  # a later record of the same prompt has another target
                    assert outcome.edit in set(chain.from_iterable(other.supersedes for other in plan.outcomes))
            if asked:
                answers = editor.answer([edit.prompt for edit in asked])
                assert [*zip(answers.edits, answers.texts, strict=True)] == [(edit.id, edit.target) for edit in asked]
        finally:
            if active:
                editor.revert(*active)


def of_any_text(examples: int, records: int, derandomize: bool):
    """The decorator of a test of groups of records: of `GROUPS`, and of random ones."""

    def decorate(test):
        run = settings(max_examples=examples, derandomize=derandomize, deadline=None, database=None)
        for group in GROUPS:
            test = example(group=group)(test)
        return run(given(group=st.lists(items(), min_size=1, max_size=records))(test))

    return decorate


@of_any_text(30, records=1, derandomize=True)
def test_a_record_of_any_text_is_refused_or_answered(editor, group):
    check(editor, group)


@pytest.mark.slow
@of_any_text(500, records=3, derandomize=False)
def test_many_records_of_any_text_are_refused_or_answered(editor, group):
    check(editor, group)
