"""`scen data inspect`, `scen data convert`: what a data file holds, and the same in scen's own form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.data.inspection import Inspection

app = typer.Typer(
    help="Look into data files of any form the field uses, and convert them. Example: scen data inspect edits.jsonl",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SHOWN = 5  # examples of each finding

File = Annotated[str, typer.Argument(help="JSONL or JSON; `-` is standard input.")]


@app.command("inspect")
def inspect(
    file: File,
    locality: Annotated[Path | None, typer.Option(help="Further prompts that must not change.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What was understood: forms, counts, repeats, contradictions, locality prompts too near to an edit.

    Example: scen data inspect edits.jsonl
    """
    from scen_cli.data.entries import read_as_they_are
    from scen_cli.data.inspection import inspect as look
    from scen_cli.data.suites import read_prompts

    found = look(read_as_they_are(file), read_prompts(locality) if locality else [])
    if not found.records and file != "-":
        prompts = len(read_prompts(Path(file)))  # says what is wrong if it holds no prompts either
        what = f"{file}: {prompts} prompts without targets: nothing to edit, but `--locality` takes them"
        return Output(as_json, quiet).result({"prompts": prompts}, what)
    Output(as_json, quiet).result(found.as_dict(), table(("", ""), _rows(found)), *_examples(found))
    if not found.records:
        raise UsageError(f"`{file}` holds no record that can be used")
    return None


@app.command("convert")
def convert(
    file: File,
    out: Annotated[Path, typer.Option(help="The JSONL file to write; it must not exist yet.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a file of any known form as scen's own JSONL: whole, or not at all.

    Example: scen data convert zsre.json --out zsre.jsonl
    """
    from scen_cli.data.entries import bad_lines, read_as_they_are
    from scen_cli.data.write_records import write_records

    entries = read_as_they_are(file)
    records = [entry.record for entry in entries if entry.record is not None]
    if len(records) < len(entries):
        raise UsageError(f"{bad_lines(entries)}\nnothing was written", hint="mend or remove these records")
    write_records(out, records)
    Output(as_json, quiet).result({"out": str(out), "records": len(records)}, f"{out}: {len(records)} records")


def _rows(found: Inspection) -> list[tuple[str, object]]:
    phrasings = ", ".join(f"{records} with {count}" for count, records in found.phrasings.items())
    return [
        ("form", ", ".join(f"{form} ({count})" for form, count in found.forms.items())),
        ("records", found.records),
        ("cannot be used", len(found.problems)),
        ("distinct prompts", found.distinct_prompts),
        ("repeats", len(found.repeats)),
        ("conflicts", len(found.conflicts)),
        ("phrasings per fact", phrasings),
        ("with a subject", found.with_subject),
        ("with the truth", found.with_truth),
        ("portability", _kinds(found.portability)),
        ("locality", _kinds(found.locality)),
        ("locality that is an edit", found.locality_edited),
        ("locality near an edit", len(found.near)),
    ]


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"


def _examples(found: Inspection) -> list[str]:
    near = [f"{share:.0%} of words: {edit} | {other}" for edit, other, share in found.near]
    headed = [
        ("cannot be used", found.problems),
        ("repeats (places and prompt)", found.repeats),
        ("conflicts: another target for the same prompt", found.conflicts),
        ("edit | locality prompt near it", near),
    ]
    lines = []
    for heading, examples in headed:
        if examples:
            more = [f"  and {len(examples) - SHOWN} more"] if len(examples) > SHOWN else []
            lines += [f"\n{heading}", *(f"  {example}" for example in examples[:SHOWN]), *more]
    return lines
