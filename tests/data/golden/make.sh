#!/usr/bin/env bash
# Makes tests/data/golden: one small project for each format the ledger has had, each made by the program as it
# stood then, and expected.json, what that program said of it. Run from the repository root with scen's
# dependencies installed: bash tests/data/golden/make.sh
set -euo pipefail

golden=$PWD/tests/data/golden
work=$(mktemp -d)
trap 'git worktree list --porcelain | sed -n "s|^worktree \($work/.*\)|\1|p" |
    xargs -r -n 1 git worktree remove --force; rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 SCEN_DEVICE=cpu
unset SCEN_DIR SCEN_MODEL SCEN_BASE

cat > "$work/suite.jsonl" <<'END'
{"prompt": "In which country is Pesustad?", "target": "Kenya"}
{"prompt": "In which country is Brusihaven?", "target": "Brazil"}
END
cat > "$work/unedited.jsonl" <<'END'
{"prompt": "Which dish is Nuneport famous for?"}
{"prompt": "Which instrument does Clara Foluberg play?"}
END

make() { # version, commit, options of `scen init`, options of `scen eval`
    local at=$golden/$1 tree=$work/$1
    git worktree add --quiet --detach "$tree" "$2"
    scen() { (cd "$work" && PYTHONPATH=$tree python -m scen_cli "$@"); }
    rm -rf "$at"
    scen init --model demo --recipe key $3 --dir "$at"
    scen edit --suite demo --first 2 --dir "$at"
    scen revert 2 --dir "$at"
    scen eval $4 --dir "$at"
    (cd "$work" && PYTHONPATH=$tree python - "$1" "$2" "$at") > "$work/$1.json" <<'END'
import json, subprocess, sys
from scen_cli.data.suites import load_suite

version, commit, folder = sys.argv[1:]


def scen(*arguments):
    command = [sys.executable, "-m", "scen_cli", *arguments, "--json", "--quiet", "--dir", folder]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


status = scen("status")
prompts = [edit["prompt"] for edit in status["edits"]] + load_suite("demo").locality[:2]
answers = {prompt: scen("ask", prompt)["patched"] for prompt in prompts}
told = {"commit": commit, "theta": status["theta"], "edits": status["edits"], "answers": answers}
print(json.dumps({version: told}))
END
    rm -f "$at"/scen.lock*
}

greedy="--suite $work/suite.jsonl"
make v1 dca09b5 "" "$greedy --data $work/unedited.jsonl"
make v2 63a9794 "" "$greedy --locality $work/unedited.jsonl"
make v3 921a84e "" "$greedy --locality $work/unedited.jsonl"
make v4 89066d4 "--expert low-rank --rank 4" "$greedy --locality $work/unedited.jsonl"

python - "$work" > "$golden/expected.json" <<'END'
import json, pathlib, sys

told = {}
for file in sorted(pathlib.Path(sys.argv[1]).glob("v?.json")):
    told |= json.loads(file.read_text())
print(json.dumps(told, indent=1, ensure_ascii=False))
END
du -sh "$golden"
