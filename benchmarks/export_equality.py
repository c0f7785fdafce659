"""One project, five ways to run it: `python -m benchmarks.export_equality [--edits 1209] [--json FILE]`

Every prompt of the demo suite (edits, rephrases, facts that were not edited) is answered by scen, by the transformers
export, by `--patch-only`, by PEFT with the exported LoRAs, and by `scen serve`: one at a time, and in mixed batches
with left padding. Tokens are compared with scen's, and the logits behind the first prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.measuring import edit_in_order, show, write
from scen_cli import Editor, load_base, new_project
from scen_cli.data.suites import demo_edits
from scen_cli.demo.facts import right_facts
from scen_cli.export.peft_folder import adapter_name, export_adapters
from scen_cli.export.transformers_folder import export_checkpoint
from scen_cli.serving.app import ServerOptions
from scen_cli.serving.server import local_app
from tests.serving.running import ask_all, running

AT_ONCE = 32  # prompts in a mixed batch
LOGITS_OF = 256  # prompts whose logits are compared
Tokens = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=len(demo_edits()))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), chosen.edits)
    rows = [[one["way"], one["same_mixed"], one["same_alone"], f"{one['logits']:.1e}"] for one in found["ways"]]
    show(
        f"{found['edits']} edits, {found['prompts']} prompts: answers that are scen's own, token for token",
        ["", "mixed batches#", "one at a time#", "logits differ by at most#"],
        rows,
    )
    write(chosen.json, found)


def compare(folder: Path, edits: int) -> dict[str, Any]:
    editor, records = _project(folder / "project", edits), demo_edits()[:edits]
    prompts = [text for record in records for text in (record.prompt, *record.rephrases)]
    prompts = list(dict.fromkeys([*prompts, *(fact.phrasings[0] for fact in right_facts())]))
    own = editor.answer(prompts)
    logits = _logits_of_scen(editor, prompts[:LOGITS_OF])
    export_checkpoint(editor, folder / "full")
    export_checkpoint(editor, folder / "patch", patch_only=True)
    export_adapters(editor, folder / "peft")
    served = {at_once: _served(editor, prompts, at_once) for at_once in (AT_ONCE, 1)}
    texts = {at_once: sum(a == b for a, b in zip(said, own.texts, strict=True)) for at_once, said in served.items()}
    edits_in_force = editor.patch().edits
    editor.detach()

    ways = []
    for name in ("full", "patch"):
        model = AutoModelForCausalLM.from_pretrained(folder / name, trust_remote_code=True)
        ways.append(_way(f"transformers, {name}", editor, prompts, own.tokens, logits, lambda rows, m=model: (m, {})))
    model = PeftModel.from_pretrained(
        load_base("demo", device="cpu").model, folder / "peft" / adapter_name(1), "edit-000001"
    )
    for edit in edits_in_force[1:]:
        model.load_adapter(folder / "peft" / adapter_name(edit), adapter_name(edit))
    names = ["__base__" if edit is None else adapter_name(edit) for edit in own.edits]
    by_names = lambda rows: (model, {"adapter_names": [names[row] for row in rows]})  # noqa: E731
    ways.append(_way("PEFT", editor, prompts, own.tokens, logits, by_names))
    ways.append({"way": "scen serve (texts)", "same_mixed": texts[AT_ONCE], "same_alone": texts[1], "logits": 0.0})
    return {"edits": edits, "active": len(edits_in_force), "prompts": len(prompts), "ways": ways}


def _project(folder: Path, edits: int) -> Editor:
    editor = Editor(new_project(folder, "demo", device="cpu"), "cpu")
    started = time.perf_counter()
    edit_in_order(editor, demo_edits()[:edits])
    print(f"{edits} edits in {time.perf_counter() - started:.0f} s", flush=True)
    return editor


@torch.no_grad()
def _logits_of_scen(editor: Editor, prompts: Sequence[str]) -> torch.Tensor:
    ids, mask = editor.encode(prompts)
    with editor.snapshot() as patch, patch.using(patch.route(editor.model, ids, mask).choice):
        return editor.model(ids, attention_mask=mask).logits[:, -1]


def _served(editor: Editor, prompts: Sequence[str], at_once: int) -> list[str]:
    app = local_app(editor, ServerOptions(max_batch=at_once, max_queue=10_000))
    bodies = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    with running(app.asgi()) as url:
        responses = asyncio.run(ask_all(url, bodies, concurrency=at_once))
    return [response.json()["choices"][0]["message"]["content"].strip() for response in responses]


@torch.no_grad()
def _way(
    name: str,
    editor: Editor,
    prompts: Sequence[str],
    tokens: Tokens,
    logits: torch.Tensor,
    of: Callable[[Sequence[int]], tuple[Any, dict[str, Any]]],
) -> dict[str, Any]:
    """Answers of a model, and the options it takes for some rows of the prompts, beside scen's tokens."""

    def generated(size: int) -> Tokens:
        rows: Tokens = []
        for start in range(0, len(prompts), size):
            some = range(start, min(start + size, len(prompts)))
            ids, mask = editor.encode([prompts[row] for row in some])
            model, options = of(some)
            out = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=50, pad_token_id=0, **options
            )
            rows += [editor.template.until_end(row) for row in out[:, ids.shape[1] :].tolist()]
        return rows

    ids, mask = editor.encode(prompts[: len(logits)])
    model, options = of(range(len(logits)))
    theirs = model(input_ids=ids, attention_mask=mask, **options).logits[:, -1]
    same = [sum(a == b for a, b in zip(generated(size), tokens, strict=True)) for size in (AT_ONCE, 1)]
    print(name, same, flush=True)
    return {"way": name, "same_mixed": same[0], "same_alone": same[1], "logits": float((theirs - logits).abs().max())}


if __name__ == "__main__":
    main()
