"""`scen data inspect` and `scen data convert`: check a data file, and write it in scen's own form."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.data.inspection import Inspection

NO_TARGET = re.compile("`target` is missing|is of none of the known forms")  # it may hold prompts alone
MAX_EXAMPLES = 5  # of each finding

File = Annotated[str, typer.Argument(help="JSONL, JSON, CSV, Parquet or Arrow; `-` is standard input.")]

app = typer.Typer(
    help="Inspect and convert data files, in any published form. Example: scen data inspect edits.jsonl",
    no_args_is_help=True,
)


@app.command("inspect")
def inspect(
    file: File,
    locality: Annotated[Path | None, typer.Option(help="Further prompts that must not change.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Report forms, counts, repeats, conflicts, and locality prompts that are similar to an edit.

    Example: scen data inspect edits.jsonl
    """
    from scen_cli.data.entries import parse_file
    from scen_cli.data.inspection import inspect as inspect_entries
    from scen_cli.data.suites import read_prompts

    out = Output(as_json, quiet)
    found = inspect_entries(parse_file(file), read_prompts(locality) if locality else [])
    if not found.records and file != "-" and all(NO_TARGET.search(problem) for problem in found.problems):
        with suppress(UsageError):  # the file holds no prompts either
            prompts = len(read_prompts(Path(file)))
            text = f"{file}: {prompts} prompts without targets: nothing to edit, but `--locality` takes them"
            return out.result({"prompts": prompts}, text)
    out.result(asdict(found), table(("", ""), _rows(found)), *_examples(found))
    if not found.records:
        raise UsageError(f"`{file}` holds no record that can be used")
    return None


@app.command("convert")
def convert(
    file: File,
    out: Annotated[Path, typer.Option(help="The JSONL file to write; it must not exist.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a file of any known form as scen's own JSONL. Nothing is written if any record is wrong.

    Fields that scen does not use are kept in `other`.

    Example: scen data convert zsre.json --out zsre.jsonl
    """
    from scen_cli.data.entries import bad_lines, empty_fields, parse_file
    from scen_cli.data.write_files import write_records

    entries = parse_file(file)
    if any(entry.record is None for entry in entries):
        raise UsageError(f"{bad_lines(entries)}\nnothing was written", hint="correct or remove these records")
    write_records(out, entries)
    output = Output(as_json, quiet)
    for line in empty_fields(entries):
        output.note(line)
    output.result({"out": str(out), "records": len(entries)}, f"{out}: {len(entries)} records")


def _rows(found: Inspection) -> list[tuple[str, object]]:
    phrasings = ", ".join(f"{records} with {count}" for count, records in found.phrasings.items())
    return [
        ("form", ", ".join(f"{form} ({count})" for form, count in found.forms.items())),
        ("records", found.records),
        ("cannot be used", len(found.problems)),
        ("distinct prompts", found.distinct_prompts),
        ("repeats", len(found.repeats)),
        ("conflicts", len(found.conflicts)),
        ("with empty fields", len(found.empty)),
        ("phrasings per fact", phrasings),
        ("with a subject", found.with_subject),
        ("with the truth", found.with_truth),
        ("portability", _counts(found.portability)),
        ("locality", _counts(found.locality)),
        ("locality that is an edit", found.locality_edited),
        ("locality near an edit", len(found.near)),
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"


def _examples(found: Inspection) -> list[str]:
    """Printed lines: a heading for each kind of finding, and its first examples."""
    near = [f"{share:.0%} of words: {edit} | {prompt}" for edit, prompt, share in found.near]
    findings = {
        "cannot be used": found.problems,
        "empty fields": found.empty,
        "repeats (places and prompt)": found.repeats,
        "conflicts: another target for the same prompt": found.conflicts,
        "edit | locality prompt near it": near,
    }
    lines = []
    for heading, examples in findings.items():
        if examples:
            lines += [f"\n{heading}", *(f"  {example}" for example in examples[:MAX_EXAMPLES])]
            if len(examples) > MAX_EXAMPLES:
                lines.append(f"  and {len(examples) - MAX_EXAMPLES} more")
    return lines
