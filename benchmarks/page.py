"""Fills the tables in `benchmarks/README.md`, the README and the pages in `docs/`: `python -m benchmarks.page`

The results are `benchmarks/{real,speed,compare,shipping}/*.json`. The benchmarks
print the same tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cost_model
from benchmarks.columns import COLUMNS
from benchmarks.measuring import machine, markdown, write
from scen_cli.evaluation.metrics import wilson

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
_MARKDOWN = (FOLDER / "README.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PAGES = [page for page in _MARKDOWN if "<!-- table: " in page.read_text(encoding="utf-8")]
# Settings in recorded results, and their present names.
RENAMED = {"reading": "key_pooling", "lead": "logit_margin", "variants": "prompt_augmentations"}
METRICS = ("reliability", "generality", "locality")
EXPORTS = {
    "checkpoint": "transformers",
    "float16": "transformers, `--dtype float16`",
    "patch": "`--patch-only`",
    "peft": "`--peft`",
    "edit": "one plain checkpoint, without its scoring",
}
Results = dict[str, Any]
Row = dict[str, Any]


def _settings(settings: Row, default: str) -> str:
    return ", ".join(f"{RENAMED.get(name, name)} {value}" for name, value in settings.items()) or default


def _percent(row: Row, names: Sequence[str] = METRICS) -> Row:
    return {name: 100 * row[name] for name in names}


def _recipe_shares(row: Row) -> Row:
    names = (*METRICS, "fired")
    pairs = zip(names, row["shares"], strict=True)
    return {name: f"{100 * right / total:.1f} % ({right}/{total})" for name, (right, total) in pairs}


def _counts(row: Row) -> Row:
    """`45/100 (35.6 to 54.8 %)` for each pair of counts; a dash where nothing was asked."""

    def cell(pair: list[int] | None) -> str:
        if pair is None:
            return "-"
        low, high = (100 * bound for bound in wilson(*pair))
        return f"{pair[0]}/{pair[1]} ({low:.1f} to {high:.1f} %)"

    return {name: cell(value) for name, value in row.items() if value is None or isinstance(value, list)}


def _rates(row: Row) -> Row:
    expected, low, high = (100 * rate for rate in row["rates"])
    return {
        "has_subject": "yes" if row["subjects"] else "no",
        "stated": f"{expected:.2f} % ({low:.2f} to {high:.2f} %)",
        **_counts({"fired": row["fired"]}),
    }


def _scope(row: Row) -> Row:
    """Shares as `0.90`; a dash where the data has no such prompts."""

    def share(pair: list[int]) -> str:
        return f"{pair[0] / pair[1]:.2f}" if pair[1] else "-"

    at_5_percent = row["at_share"]["0.05"]
    return {
        **{name: share(pair) for name, pair in row["at_theta"].items()},
        "at_5_percent": share(at_5_percent["rephrases"]),
        "near_at_5_percent": share(at_5_percent["near"]),
    }


# Cells that the results do not hold as such: table -> function of a row.
DERIVED: dict[str, Callable[[Row], Row]] = {
    "recipes": _recipe_shares,
    "figures": _counts,
    "behaviour": _counts,
    "false_activation": _rates,
    "scope": _scope,
    "expert_sweep": lambda row: {"settings": _settings(row["setting"], "the default")},
    "edit_rate": lambda row: {"per_second": 1 / row["seconds"], "gflops": 1000 * row["tflops"]},
    "export_equality": lambda row: {"logits_differ": "" if "texts" in row["way"] else f"{row['logits']:.1e}"},
    "export_memory": lambda row: {"export": EXPORTS[row["kind"]]},
    "compatibility": lambda row: {name: "yes" if works else "no" for name, works in row["runs"].items()},
    "quantized_bases": lambda row: {"megabytes": row["bytes"] / 1e6, **_percent(row)},
}


def table(name: str, results: Results) -> str:
    """The table of a benchmark with one line per row, in Markdown, and the machine that measured it."""
    rows = results["ways"] if name == "export_equality" else results["found"]
    if name == "merged_edits":
        kinds = [(row, kind) for row in rows for kind in ("routed", "folded")]
        rows = [{"edits": row["edits"], "kind": kind, **_percent(row[kind])} for row, kind in kinds]
    derive = DERIVED.get(name, lambda _row: {})
    columns = COLUMNS[name]
    head = [heading.format(**results, gigabytes=results.get("base_bytes", 0) / 1e9) for heading in columns]
    cells = [[cell.format(**{**row, **derive(row)}) for cell in columns.values()] for row in rows]
    load = f"{results['clients']} clients, {results['seconds']} s. " if name == "serve_load" else ""
    return f"{markdown(head, cells)}\n\n{load}{_machine(results)}"


def edit_speed(results: Results) -> str:
    methods, last = results["methods"], str(results["edits"])
    authors = methods["authors' procedure"]["seconds"]
    rows = [
        [
            name,
            *(f"{row['seconds'][t]:.3f} ({authors[t] / row['seconds'][t]:.1f})" for t in ("3", "50", last)),
            f"{row['bytes'] / 1e3:.1f}",
            f"{row['peak_mb']:.0f}",
            row["reliability"],
            row["generality"],
        ]
        for name, row in methods.items()
    ]
    head = ["", "t = 1 to 3", "t = 50", f"t = {last}", "kB per edit", "peak MB", "Reliability", "Generality"]
    seconds = methods["product"]["seconds"]
    far = max(seconds, key=int)
    growth = f"The product's edit {far} took {seconds[far] / seconds['10']:.2f} times as long as its edit 10."
    return f"{markdown(head, rows)}\n\n{growth} {_machine(results)}"


def compare(results: Results) -> str:
    """The table that `scen compare` prints."""
    from scen_cli.report.comparison import columns, lines

    measured_on = results["machine"]
    note = (
        f"{results['edits']} edits of `{results['suite']}`, greedy, scored after the last; each method tuned on "
        f"{results['tuned on']} others, {results['trials']} settings at most. "
        f"({measured_on['device']}, {measured_on['threads']} thread, torch {measured_on['torch']})"
    )
    head = [name.rstrip("#") for name in columns(results["rows"])]
    return f"{markdown(head, lines(results['rows']))}\n\n{note}"


def tuned(results: Results) -> str:
    """The settings that each method was tuned to, where they differ from its paper's."""
    rows = []
    for row in results["rows"]:
        trials = row["tuning"]["trials"]
        best = max(trials, key=lambda trial: trial["average"])
        settings = {**best["settings"], **best["settings"].get("changes", {})}
        settings.pop("changes", None)
        averages = [f"{100 * trial['average']:.1f}" for trial in (trials[0], best)]
        rows.append([row["row"], _settings(settings, "as it is"), *averages])
    return markdown(["method", "settings that differ from the paper's", "Avg as the paper has it", "Avg tuned"], rows)


SPECIAL: dict[str, Callable[[Results], str]] = {
    "edit_speed": edit_speed,
    "cost_model": lambda _results: cost_model.table(),
    "compare": compare,
    "tuned": tuned,
}


def _machine(results: Results) -> str:
    return f"({results['cpu']}, {results['threads']} thread, torch {results['torch']}, {results['date']})"


def render(name: str, results: Results) -> str:
    return SPECIAL[name](results) if name in SPECIAL else table(name, results)


def report(name: str, results: Results, json_path: Path | None) -> None:
    """Print the table of a benchmark that just ran; write its results to `json_path`, if given."""
    print(render(name, {**machine(), **results}))
    write(json_path, results)


def filled(page: str) -> str:
    """The page with each `<!-- table: NAME -->` ... `<!-- end -->` rendered from its results.

    NAME is `NAME` or `NAME-BASE` (a file in `speed/`), `shipping/NAME`, `real/NAME`, or `compare/FILE` and
    `tuned/FILE` (files in `compare/`).
    """

    def fill(match: re.Match[str]) -> str:
        first, _, second = match[1].partition("/")
        if first == "shipping":
            name, file = second, f"shipping/{second}"
        elif first == "real":
            name, file = second, f"real/{second.replace('behaviour', 'figures')}"
        elif second:
            name, file = first, f"compare/{second}"
        else:
            name, file = first.partition("-")[0], f"speed/{first}"
        path = FOLDER / f"{file}.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return f"<!-- table: {match[1]} -->\n\n{render(name, results)}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->.*?<!-- end -->", fill, page, flags=re.DOTALL)


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
