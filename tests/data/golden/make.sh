#!/usr/bin/env bash
# Makes tests/data/golden/v1, a small project of format 1, and expected.json: its edits, theta and answers.
# A later format keeps v1 as it is and gets a folder of its own.
# Run from the repository root with `scen` installed: bash tests/data/golden/make.sh
set -euo pipefail

golden=$PWD/tests/data/golden
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 SCEN_DEVICE=cpu OMP_NUM_THREADS=1
unset SCEN_DIR SCEN_MODEL SCEN_BASE

cat > "$work/suite.jsonl" <<'END'
{"prompt": "In which country is Pesustad?", "target": "Kenya"}
{"prompt": "In which country is Brusihaven?", "target": "Brazil"}
END
cat > "$work/unedited.jsonl" <<'END'
{"prompt": "Which dish is Nuneport famous for?"}
{"prompt": "Which instrument does Clara Foluberg play?"}
END

rm -rf "$golden/v1"
cd "$work" # the ledger records the files' paths: none of the checkout's
scen init --model demo --recipe key --expert low-rank --rank 4 --author golden --dir "$golden/v1"
scen edit --suite demo --first 2 --author golden --dir "$golden/v1"
scen revert 2 --author golden --dir "$golden/v1"
scen eval --suite suite.jsonl --locality unedited.jsonl --author golden --dir "$golden/v1"
rm -f "$golden"/v1/scen.lock*

python - "$golden/v1" > "$golden/expected.json" <<'END'
import json, subprocess, sys
from scen_cli.data.suites import load_suite


def scen(*arguments):
    command = ["scen", *arguments, "--json", "--quiet", "--dir", sys.argv[1]]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


status = scen("status")
prompts = [edit["prompt"] for edit in status["edits"]] + load_suite("demo").locality[:2]
answers = {prompt: scen("ask", prompt)["patched"] for prompt in prompts}
print(json.dumps({"theta": status["theta"], "edits": status["edits"], "answers": answers}, indent=1))
END
rm -f "$golden"/v1/scen.lock*
du -sh "$golden/v1"
