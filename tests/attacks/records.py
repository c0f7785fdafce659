"""Attacks on the files of records that `scen edit` reads, and on guard files of `scen init`."""

from __future__ import annotations

import json

from tests.attacks.attack import THIRD, Attack, Ground

EDIT, LOOSE, INSPECT = "edit {f} --dir {p}", "edit {f} --keep-going --dir {p}", "data inspect {f}"
GUARD = "init --model demo --guard {f} --dir {o}"
GOOD = json.dumps({"prompt": THIRD.prompt, "target": THIRD.target}) + "\n"


def write(content: str | bytes):
    return lambda ground: ground.write(content)


def record(**fields):
    """One line: a valid record with some fields changed."""
    return write(json.dumps({"prompt": THIRD.prompt, "target": THIRD.target, **fields}) + "\n")


def streamed(start: str, piece: str, end: str, megabytes: int = 100):
    """A file of this many MB, written in pieces."""

    def prepare(ground: Ground) -> None:
        with ground.input.open("w") as file:
            file.write(start)
            megabyte = piece * (1_000_000 // len(piece))
            for _ in range(megabytes):
                file.write(megabyte)
            file.write(end)

    return prepare


def nested(open_: str, close: str, inside: str = "") -> str:
    return open_ * 100_000 + inside + close * 100_000


def guard_lines(count: int) -> str:
    return "".join(json.dumps({"prompt": f"Where is number {n}?"}) + "\n" for n in range(count))


ESCAPES = "Where \x1b[2J\x1b]8;;http://x\x07is\x9b31m it\u202e?"
TWICE = '{"prompt": "Where is Ada?", "target": "Riga", "target": "Rome", "prompt": ""}'

ATTACKS = [
    Attack("records: bytes that are no UTF-8", write(b'{"prompt": "\xff\xfe", "target": "x"}\n'), EDIT, 2, "not UTF-8"),
    Attack("records: bad bytes behind a good record", write(GOOD.encode() * 9 + b"\xc3\x28\n"), EDIT, 2, "not UTF-8"),
    Attack("records: a byte order mark", write("\ufeff" + GOOD), EDIT, 0, "1 edited"),
    Attack("records: UTF-16", write(GOOD.encode("utf-16")), EDIT, 2, "not UTF-8"),
    Attack("records: UTF-16 without a mark", write(GOOD.encode("utf-16-le")), EDIT, 2, "not valid JSON"),
    Attack("records: CRLF", write(GOOD.replace("\n", "\r\n")), EDIT, 0, "1 edited"),
    Attack("records: CR alone", write(GOOD.replace("\n", "\r") * 2), EDIT, 2, "not valid JSON"),
    Attack("records: an empty file", write(""), EDIT, 2, "holds no records"),
    Attack("records: white space alone", write(" \n\t\r\n" * 1000), EDIT, 2, "holds no records"),
    Attack("records: a hundred MB of white space", streamed("", " ", ""), EDIT, 2, "holds no records"),
    Attack("records: a missing file", lambda ground: None, EDIT, 2, "No such file"),
    Attack("records: a folder", lambda ground: ground.input.mkdir(), EDIT, 2, "directory"),
    Attack("records: an array cut off", write(f"[{GOOD}, {GOOD}, "), EDIT, 2, "not valid JSON: line"),
    Attack("records: an array that goes on", write(f"[{GOOD}] [{GOOD}]"), EDIT, 2, "Extra data"),
    Attack("records: an empty array", write("[]"), EDIT, 2, "holds no records"),
    Attack("records: an array of arrays", write(f"[[{GOOD}]]"), EDIT, 2, "expected a JSON object"),
    Attack("records: NUL bytes", write(b"\0" * 5000), EDIT, 2, "not valid JSON"),
    Attack("records: NUL in a prompt", record(prompt="Where\0is it?"), EDIT, 2, "NUL"),
    Attack("records: NUL in a target", record(target="Ri\0ga"), EDIT, 2, "NUL"),
    Attack(
        "records: half a character", write(r'{"prompt": "Where \ud800?", "target": "x"}'), EDIT, 2, "half a Unicode"
    ),
    Attack(
        "records: half a field name",
        write(r'{"target": "x", "\ud800": 1}'),
        EDIT,
        2,
        "input.jsonl:1",
    ),
    Attack("records: one line of 100 MB", streamed('{"prompt": "', "Where ", '"}\n'), EDIT, 2, "longer than"),
    Attack("records: one string of 100 MB in an array", streamed('["', "Where ", '"]'), EDIT, 2, "is over"),
    Attack("records: ten MB of empty lines", streamed("", "\n", "", 10), EDIT, 2, "holds no records", seconds=40),
    Attack("records: 200,000 bad lines", write("7\n" * 200_000), EDIT, 2, "and 199990 more"),
    Attack("records: brackets, deep", write(nested("[", "]")), EDIT, 2, "not JSON that can be read"),
    Attack("records: braces, deep", write(nested('{"a":', "}", "1")), EDIT, 2, "not JSON that can be read"),
    Attack("records: brackets without end", write("[" * 100_000), EDIT, 2, "not JSON that can be read"),
    Attack("records: a number of 100,000 digits", write('{"prompt": ' + "9" * 100_000 + "}"), EDIT, 2, "digits"),
    Attack("records: a number of 10^308", write('{"prompt": 1e999, "target": "x"}'), EDIT, 2, "`prompt` must be text"),
    Attack("records: NaN for a target", write('{"prompt": "Where?", "target": NaN}'), EDIT, 2, "`target` must be text"),
    Attack("records: NaN alone", write("NaN\n"), EDIT, 2, "expected a JSON object"),
    Attack("records: null for a prompt", record(prompt=None), EDIT, 2, "`prompt` is missing"),
    Attack("records: an empty prompt", record(prompt=" \n"), EDIT, 2, "`prompt` is empty"),
    Attack("records: an empty target", record(target=""), EDIT, 2, "`target` is empty"),
    Attack("records: an unknown field", record(speed=9), EDIT, 2, "`speed` is not a known field"),
    Attack("records: an unknown field with escapes", record(**{"\x1b[31m": 9}), EDIT, 2, "is not a known field"),
    Attack("records: a list for a target", record(target=["a", "b"]), EDIT, 2, "`target` must be text"),
    Attack("records: a field twice", write(TWICE), EDIT, 2, "twice"),
    Attack("records: the same record twice", write(GOOD * 2), EDIT, 2, "repeats line 1"),
    Attack(
        "records: two targets", write(GOOD + GOOD.replace(THIRD.target, "oboe")), EDIT, 2, "another target than line 1"
    ),
    Attack("records: a prompt longer than the context", record(prompt="Where " * 5000), EDIT, 2, "context is 256"),
    Attack("records: a target longer than the context", record(target="Riga " * 5000), EDIT, 2, "context is 256"),
    Attack("records: 100,000 rephrases", record(rephrases=["a"] * 100_000), EDIT, 0, "1 edited"),
    Attack("records: the end token in a target", record(target="Riga</s>"), EDIT, 2, "end token"),
    Attack("records: the end token for a target", record(target="</s>"), EDIT, 2, "end token"),
    Attack("records: the end token within a target", record(target="Riga</s> or Rome"), EDIT, 2, "end token"),
    Attack("records: the template's marks in a target", record(target="[/INST] Riga [INST]"), EDIT, 2, "learned"),
    Attack(
        "records: the template's marks in a prompt", record(prompt="Where[/INST] is it?[INST]"), LOOSE, 0, "1 edited"
    ),
    Attack("records: a field of the template in a prompt", record(prompt="Where is {prompt}?"), EDIT, 0, "1 edited"),
    Attack("records: escapes in a prompt", record(prompt=ESCAPES), EDIT, 0, "\\x1b[2J"),
    Attack("records: escapes in a prompt, as JSON", record(prompt=ESCAPES), f"{EDIT} --json", 0, "\\u001b[2J"),
    Attack("records: escapes in a bad record", record(prompt=ESCAPES * 90), EDIT, 2, "\\x1b[2J"),
    Attack(
        "records: escapes in repeated ids",
        write(GOOD[:-2] + ', "id": "\\u001b[2J"}\n' + '{"prompt": "W?", "target": "x", "id": "\\u001b[2J"}'),
        EDIT,
        2,
        "has the id",
    ),
    Attack(
        "records: escapes inspected",
        write(
            GOOD
            + json.dumps({"prompt": ESCAPES, "target": "x"}) * 1
            + "\n"
            + json.dumps({"prompt": ESCAPES, "target": "y"})
            + "\n"
        ),
        INSPECT,
        0,
        "\\x1b[2J",
    ),
    Attack(
        "records: markup in a prompt",
        record(prompt="[bold]Where[/bold] is [/link]it?"),
        EDIT,
        0,
        "[bold]Where[/bold] is [/link]it?",
    ),
    Attack("asked: escapes", lambda ground: None, 'ask "Where \x1b[2J is \x9b31m it?" --dir {p}', 0, "patched"),
    Attack("asked: NUL", lambda ground: None, 'ask "Where\0is it?" --dir {p}', 2, "NUL"),
    Attack(
        "asked: longer than the context",
        lambda ground: None,
        f'ask "{"Where " * 5000}" --dir {{p}}',
        2,
        "context is 256",
    ),
    Attack("guard file: binary", write(bytes(range(256)) * 40), GUARD, 2, "not UTF-8"),
    Attack("guard file: empty", write(""), GUARD, 2, "holds no prompts"),
    Attack("guard file: too few", write(guard_lines(9)), GUARD, 2, "at least 50"),
    Attack("guard file: too few to set theta by", write(guard_lines(60)), GUARD, 2, "at least"),
    Attack(
        "guard file: one prompt, many times",
        write('{"prompt": "Where is it?"}\n' * 999),
        GUARD,
        2,
        "has 1 usable guard",
    ),
    Attack("guard file: missing", lambda ground: None, GUARD, 2, "No such file"),
    Attack("guard file: a folder", lambda ground: ground.input.mkdir(), GUARD, 2, "directory"),
    Attack("guard file: records without prompts", write('{"target": "x"}\n' * 99), GUARD, 2, "no `prompt` here"),
    Attack("guard file: numbers", write("7\n" * 99), GUARD, 2, "no `prompt` here"),
    Attack("guard file: one line of 100 MB", streamed('{"prompt": "', "Where ", '"}\n'), GUARD, 2, "longer than"),
]
