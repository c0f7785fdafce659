"""Writes the keys for `routing_quality.py`: `python -m benchmarks.routing_keys --model demo --layer 2 --out keys`

Writes `keys.safetensors` and `keys.json` (the prompts): edits, their rephrases, a guard, and unedited prompts: of the
same kind, near an edit, and unrelated. No unedited prompt is in the guard.

For `--suite demo`, the guard is what the base was trained on: half of the facts that it knows, in three phrasings. The
prompts of the same kind are the other half, and facts that it never saw; `--facts` adds edits. Any other suite is a
file of records, which are the edits; `--guard` and `--unrelated` are files too. A prompt that contains the subject of
an edit is near that edit. Files can ask for the same fact twice without saying so. So such prompts of files are neither
guard nor of the same kind; in the demo's world they are certainly other facts, and stay.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.measuring import make_parser
from scen_cli import PatchedModel, load_base, load_suite, new_project
from scen_cli.data.suites import read_prompts
from scen_cli.demo.world import build_world, further_facts, right_facts
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.keys import KeyConfig

UNEDITED_FACTS = 1000  # demo facts that the base never saw and that are not edited


def demo_prompts(facts: int) -> dict[str, list]:
    """Prompts by kind. Edits are unknown facts: those of the world, then further facts."""
    further = further_facts(facts + UNEDITED_FACTS)
    edits = [fact for fact in build_world() if not fact.known] + further[:facts]
    known = right_facts()
    return {
        "edits": [(fact.phrasings[0], fact.subject) for fact in edits],
        "rephrases": [(text, row) for row, fact in enumerate(edits) for text in fact.phrasings[1:4]],
        "guard": [text for fact in known[::2] for text in fact.phrasings[:3]],
        "same_kind": [fact.phrasings[0] for fact in known[1::2]] + [fact.phrasings[0] for fact in further[facts:]],
        "near": [],
    }


def file_prompts(suite: str, guard: Path) -> dict[str, list]:
    """Prompts by kind. Edits are the records with a rephrase; the guard file has guard and prompts of the same kind."""
    edits = [record for record in load_suite(suite).edits if record.rephrases]
    others = list(dict.fromkeys(read_prompts(guard)))
    return {
        "edits": [(record.prompt, record.subject) for record in edits],
        "rephrases": [(text, row) for row, record in enumerate(edits) for text in record.rephrases[:3]],
        "guard": others[::2],
        "same_kind": others[1::2],
        "near": list(dict.fromkeys(n.prompt for record in edits for n in record.locality)),
    }


def move_near_prompts(prompts: dict[str, list], distinct_facts: bool) -> None:
    """Add prompts with the subject of an edit to `near`. They stay in their kind too if all facts are distinct."""
    subjects = {subject.casefold() for _prompt, subject in prompts["edits"] if subject}
    own = {text for text, _ in prompts["edits"]} | {text for text, _ in prompts["rephrases"]}

    def names_a_subject(text: str) -> bool:
        return any(subject in text.casefold() for subject in subjects)

    prompts["near"] += [text for text in prompts["same_kind"] if names_a_subject(text)]
    for kind in ("guard", "same_kind"):
        prompts[kind] = [
            text for text in prompts[kind] if text not in own and (distinct_facts or not names_a_subject(text))
        ]
    guard = set(prompts["guard"])
    prompts["near"] = [text for text in dict.fromkeys(prompts["near"]) if text not in own | guard][:3000]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--suite", default="demo")
    parser.add_argument("--facts", type=int, default=452, help="further facts to edit (demo)")
    parser.add_argument("--guard", type=Path, help="unedited prompts (not for demo)")
    parser.add_argument("--unrelated", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    prompts = demo_prompts(options.facts) if options.suite == "demo" else file_prompts(options.suite, options.guard)
    prompts["unrelated"] = read_prompts(options.unrelated)[:2000] if options.unrelated else []
    move_near_prompts(prompts, distinct_facts=options.suite == "demo")
    arrays = {"rephrase_of": torch.tensor([row for _text, row in prompts["rephrases"]])}
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(options.model, device="cpu")
        model = PatchedModel(new_project(folder, options.model, options.layer, recipe="key", base=base), base=base)
        for kind, texts in prompts.items():
            plain = [text if isinstance(text, str) else text[0] for text in texts]
            if kind in ("guard", "same_kind", "near", "unrelated"):
                plain = prompts[kind] = [text for text in plain if model.fits(text)]
            ids = [model.template.prompt_ids(text) for text in plain]
            for pool in ("last", "mean") if plain else ():
                arrays[f"{kind}.{pool}"] = read_segment_keys(base, model.edited, ids, KeyConfig(pool))[0]
    save_file(arrays, options.out.with_suffix(".safetensors"))
    options.out.with_suffix(".json").write_text(json.dumps(prompts))
    print({name: tuple(array.shape) for name, array in arrays.items()})


if __name__ == "__main__":
    main()
