"""Whether two versions of scen give the same results: `python -m benchmarks.same_results SCEN_A SCEN_B [WORK]`

SCEN_A and SCEN_B are `scen` commands, each in its own environment. Each makes 20 edits of the demo suite by each
recipe, and exports them. The edit files, W_merge and the answers of the exports must be equal to the bit.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPES = ("closed-form", "joint", "key", "paper")
EDITS, UNEDITED = 20, 40


def main() -> None:
    work = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(tempfile.mkdtemp())
    made = [results(Path(scen), work / name) for name, scen in zip("ab", sys.argv[1:3], strict=True)]
    different = [name for name in made[0] if made[0][name] != made[1].get(name)]
    answers = sum(name.startswith("answer ") for name in made[0])
    print(f"{len(made[0]) - answers} files and {answers} answers compared, {len(different)} different")
    for name in different:
        print(name)
    sys.exit(bool(different) or len(made[0]) != len(made[1]))


def results(scen: Path, work: Path) -> dict[str, str]:
    """The digest of each file, and the tokens of each exported answer."""
    found = {}
    for recipe in RECIPES:
        project, export = work / recipe, work / f"{recipe}-export"
        at = ["--dir", str(project), "--quiet"]
        for command in (
            ["init", "--model", "demo", "--recipe", recipe, *at],
            ["edit", "--suite", "demo", "--first", str(EDITS), "--keep-going", *at],
            ["export", "--out", str(export), *at],
        ):
            subprocess.run([str(scen), *command], check=True, stdout=subprocess.DEVNULL)
        for file in [*sorted(project.glob("edits/*.safetensors")), project / "merged.safetensors"]:
            number = file.name.split("-")[0]  # the rest of the name is the digest
            found[f"{recipe}/{number}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        python = scen.with_name("python")
        done = subprocess.run(
            [str(python), "-c", ANSWER, str(export), json.dumps(prompts())], check=True, capture_output=True, text=True
        )
        found |= {f"answer {recipe}: {prompt}": tokens for prompt, tokens in json.loads(done.stdout).items()}
    return found


def prompts() -> list[str]:
    """Prompts and rephrases of the first edits, and of others."""
    from scen_cli.data.suites import demo_edits

    return [text for record in demo_edits()[: EDITS + UNEDITED] for text in (record.prompt, *record.rephrases)]


ANSWER = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
answers = {}
for prompt in prompts:
    ids = tokenizer(f"[INST]{prompt}[/INST]", return_tensors="pt", return_token_type_ids=False)
    answers[prompt] = model.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist()
print(json.dumps(answers))
"""


if __name__ == "__main__":
    main()
