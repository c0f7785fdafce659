"""Keys for the routing bench: `python benchmarks/routing_keys.py --model demo --layer 2 --out keys.safetensors`

Edits, their rephrases, near-miss prompts, unedited prompts of the same kind, and unrelated prompts, each as
one array of keys. A suite other than `demo` is a file of questions, all of them taken as edits but for every
second, which stays unedited; `--unrelated` is any file with prompts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from scen_cli import PatchedModel, load_base, load_suite, new_project
from scen_cli.data.entries import good_records
from scen_cli.model.patch import read_keys

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--suite", default="demo")
    parser.add_argument("--unrelated", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    suite = load_suite(chosen.suite)
    edits, same_kind = suite.edits, suite.locality
    if not same_kind:
        edits, same_kind = suite.edits[::2], [record.prompt for record in suite.edits[1::2]]
    rephrases = [(text, row) for row, record in enumerate(edits) for text in record.rephrases[:3]]
    near = dict.fromkeys(n.prompt for record in edits for n in record.locality)
    own = {text for record in edits for text in (record.prompt, *record.rephrases)}
    same_kind = [prompt for prompt in same_kind if prompt not in own]
    others = [prompt for prompt in near if prompt not in own and prompt not in same_kind]
    unrelated = [r.prompt for r in good_records(str(chosen.unrelated))][:2000] if chosen.unrelated else []
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(chosen.model)
        model = PatchedModel(new_project(folder, chosen.model, chosen.layer, base=base), base=base)

        def keys(prompts: list[str]) -> np.ndarray:
            batches = [model.encode(prompts[at : at + BATCH]) for at in range(0, len(prompts), BATCH)]
            rows = [read_keys(model.model, model.edited.down_proj, *batch).cpu().numpy() for batch in batches]
            return np.concatenate(rows) if rows else np.empty((0, model.edited.ffn_width), np.float32)

        arrays = {
            "edits": keys([record.prompt for record in edits]),
            "rephrases": keys([text for text, _ in rephrases]),
            "rephrase_of": np.array([row for _, row in rephrases]),
            "same_kind": keys(same_kind),
            "same_kind_is_near": np.array([prompt in near for prompt in same_kind]),
            "near": keys(others),
            "unrelated": keys([prompt for prompt in unrelated if model.fits(prompt)]),
        }
    save_file(arrays, chosen.out)
    print({name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
