"""Writes the tables of `benchmarks/README.md`, of pages in `docs/` and of the README from `benchmarks/speed/*.json`,
`benchmarks/compare/*.json` and `benchmarks/shipping/*.json`: `python -m benchmarks.page`"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cost_model import COLUMNS, rows

FOLDER = Path(__file__).parent
PAGES = [FOLDER / "README.md", FOLDER.parent / "README.md"]
PAGES += [FOLDER.parent / "docs" / f"{name}.md" for name in ("methods", "shipping", "serving", "large")]


def edit_speed(found: dict[str, Any]) -> str:
    methods = found["methods"]
    authors = methods["authors' procedure"]["seconds"]
    places = ["3", "50", str(found["edits"])]
    lines = [
        [
            name,
            *(f"{one['seconds'][t]:.3f} ({authors[t] / one['seconds'][t]:.1f})" for t in places),
            f"{one['bytes'] / 1e3:.1f}",
            f"{one['peak_mb']:.0f}",
            one["reliability"],
            one["generality"],
        ]
        for name, one in methods.items()
    ]
    head = ["", "t = 1 to 3", "t = 50", f"t = {found['edits']}", "kB per edit", "peak MB", "Reliability", "Generality"]
    grown = methods["product"]["seconds"]
    far = max(grown, key=int)
    ratio = grown[far] / grown["10"]
    growth = f"The product's edit {far} took {ratio:.2f} times as long as its edit 10."
    return f"{_table(head, lines)}\n\n{growth} {_where(found)}"


def recipes(found: dict[str, Any]) -> str:
    from benchmarks import recipes as bench

    return f"{_table(bench.COLUMNS, [bench.cells(one) for one in found['found']])}\n\n{_where(found)}"


def first_edit(found: dict[str, Any]) -> str:
    lines = [
        [one["base"], one["method"], f"{one['seconds']:.3f}", f"{one['times_less']:.1f}"] for one in found["found"]
    ]
    return f"{_table(['base', 'method', 'seconds', 'times less'], lines)}\n\n{_where(found)}"


def inference_speed(found: dict[str, Any]) -> str:
    lines = [
        [one["base"], one["batch"], one["model"]]
        + [f"{one['tokens_per_second'][kind]:.0f} ({one['of_base'][kind]:.3f})" for kind in ("prefill", "decode")]
        for one in found["found"]
    ]
    return f"{_table(['base', 'batch', 'model', 'prefill', 'decode'], lines)}\n\n{_where(found)}"


def routing_scale(found: dict[str, Any]) -> str:
    lines = [
        [f"{f['rows']:,}", f"{f['megabytes']:,.0f}", f"{f['ms_1']:.2f}", f"{f['ms_16']:.2f}"] for f in found["found"]
    ]
    return f"{_table(['rows', 'W_merge, MB', 'ms, alone', 'ms, in a batch of 16'], lines)}\n\n{_where(found)}"


def many_edits(found: dict[str, Any]) -> str:
    names = ("open_to_ask", "answer", "ask_command", "open_to_edit", "peak_mb")
    head = ["edits", "open to ask, s", "first answer, s", "`scen ask` as a whole, s", "then open to edit, s", "peak MB"]
    lines = [[f"{one['edits']:,}", *(f"{one[name]:.2f}" for name in names)] for one in found["found"]]
    return f"{_table(head, lines)}\n\n{_where(found)}"


def expert_sweep(found: dict[str, Any]) -> str:
    lines = [
        [
            ", ".join(f"{name} {value}" for name, value in one["setting"].items()) or "the default",
            *(one[name] for name in ("learned", "rephrases", "otherwise")),
            f"{one['steps']:.1f}",
            f"{one['ms']:.0f}",
            f"{one['rank']:.1f}",
        ]
        for one in found["found"]
    ]
    head = ["setting", "learned", "rephrases", "otherwise put", "steps", "ms per edit", "mean rank"]
    return f"{_table(head, lines)}\n\n{_where(found)}"


def edit_rate(found: dict[str, Any]) -> str:
    lines = [
        [one["batch"], f"{one['seconds']:.4f}", f"{1 / one['seconds']:.1f}", f"{1000 * one['tflops']:.1f}"]
        for one in found["found"]
    ]
    return f"{_table(['batch', 'seconds', 'experts per second', 'GFLOP/s'], lines)}\n\n{_where(found)}"


def compare(found: dict[str, Any]) -> str:
    """The table that `scen compare` prints."""
    from scen_cli.report.comparison import columns, lines

    machine = found["machine"]
    told = f"{found['edits']} edits of `{found['suite']}`, greedy, scored after the last; each method tuned on "
    told += f"{found['tuned on']} others, {found['trials']} settings at most. "
    told += f"({machine['device']}, {machine['threads']} thread, torch {machine['torch']})"
    return f"{_table([name.rstrip('#') for name in columns(found['rows'])], lines(found['rows']))}\n\n{told}"


def tuned(found: dict[str, Any]) -> str:
    """What each method was tuned to: the settings that are not its paper's."""
    rows = []
    for row in found["rows"]:
        trials = row["tuning"]["trials"]
        best = max(trials, key=lambda trial: trial["average"])
        changed = {**best["settings"], **best["settings"].get("changes", {})}
        changed.pop("changes", None)
        told = ", ".join(f"{name} {value}" for name, value in changed.items()) or "as it is"
        rows.append([row["row"], told, f"{100 * trials[0]['average']:.1f}", f"{100 * best['average']:.1f}"])
    return _table(["method", "settings that differ from the paper's", "Avg as the paper has it", "Avg tuned"], rows)


def export_equality(found: dict[str, Any]) -> str:
    lines = [
        [
            one["way"],
            f"{one['same_mixed']:,}",
            f"{one['same_alone']:,}",
            f"{one['logits']:.1e}" if "texts" not in one["way"] else "",
        ]
        for one in found["ways"]
    ]
    head = [f"{found['edits']:,} edits, {found['prompts']:,} prompts", "in mixed batches", "one at a time", "logits"]
    return f"{_table(head, lines)}\n\n{_where(found)}"


def merged_edits(found: dict[str, Any]) -> str:
    names = ("reliability", "generality", "locality")
    lines = [
        [one["edits"], kind, *(f"{100 * one[kind][name]:.1f}" for name in names)]
        for one in found["found"]
        for kind in ("routed", "folded")
    ]
    return f"{_table(['edits', '', *map(str.capitalize, names)], lines)}\n\n{_where(found)}"


def export_memory(found: dict[str, Any]) -> str:
    lines = [[EXPORTS[one["kind"]], f"{one['of_base']:.3f}", f"{one['seconds']:.0f}"] for one in found["found"]]
    head = [f"export of {found['edits']:,} edits, base of {found['base_bytes'] / 1e9:.2f} GB", "peak, in bases", "s"]
    return f"{_table(head, lines)}\n\n{_where(found)}"


EXPORTS = {
    "checkpoint": "transformers",
    "float16": "transformers, `--dtype float16`",
    "patch": "`--patch-only`",
    "peft": "`--peft`",
    "edit": "one plain checkpoint, once it is scored",
}


def compatibility(found: dict[str, Any]) -> str:
    lines = [[one["version"], *("yes" if ok else "no" for ok in one["runs"].values())] for one in found["found"]]
    head = ["transformers", "export", "`--patch-only`", "plain checkpoint", "scen itself"]
    return f"{_table(head, lines)}\n\n{_where(found)}"


def quantized_bases(found: dict[str, Any]) -> str:
    lines = [
        [
            one["base"],
            f"{one['bytes'] / 1e6:.2f}",
            *(f"{100 * one[name]:.1f}" for name in ("reliability", "generality", "locality")),
            *(f"{one[name]:,} of {one['prompts']:,}" for name in ("routes", "texts")),
        ]
        for one in found["found"]
    ]
    head = [f"{found['edits']} edits, base in", "MB", "Reliability", "Generality", "Locality"]
    head += ["routes alone as in a batch", "answers"]
    return f"{_table(head, lines)}\n\n{_where(found)}"


def serve_load(found: dict[str, Any]) -> str:
    names = ("requests", "errors", "wrong", "per_second", "p50", "p95", "p99")
    lines = [[one["edits"], *(f"{one[name]:,}" for name in names)] for one in found["found"]]
    head = ["edits", "requests", "errors", "wrong answers", "per second", "p50, ms", "p95, ms", "p99, ms"]
    return f"{_table(head, lines)}\n\n{found['clients']} clients, {found['seconds']} s. {_where(found)}"


def cost_model(_found: dict[str, Any]) -> str:
    return _table(COLUMNS, rows())


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "edit_speed": edit_speed,
    "recipes": recipes,
    "first_edit": first_edit,
    "inference_speed": inference_speed,
    "routing_scale": routing_scale,
    "many_edits": many_edits,
    "expert_sweep-demo": expert_sweep,
    "expert_sweep-zsre": expert_sweep,
    "cost_model": cost_model,
    "edit_rate": edit_rate,
    "compare": compare,
    "tuned": tuned,
    "shipping/export_equality": export_equality,
    "shipping/merged_edits": merged_edits,
    "shipping/export_memory": export_memory,
    "shipping/serve_load": serve_load,
    "shipping/compatibility": compatibility,
    "shipping/quantized_bases": quantized_bases,
}


def _table(head: list[str], lines: list[list[Any]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, rule, *lines))


def _where(found: dict[str, Any]) -> str:
    return f"({found['cpu']}, {found['threads']} thread, torch {found['torch']}, {found['date']})"


def filled(page: str) -> str:
    """The page with each `<!-- table: NAME -->` ... `<!-- end -->` made from its file."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        kind, _, of = name.partition("/")
        where = name if kind == "shipping" else f"compare/{of}" if of else f"speed/{kind}"
        file = FOLDER / f"{where}.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        table = TABLES[name if kind == "shipping" else kind](found)
        return f"<!-- table: {name} -->\n\n{table}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->.*?<!-- end -->", fill, page, flags=re.S)


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
