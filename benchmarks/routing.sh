#!/usr/bin/env bash
# Everything in benchmarks/routing/: `bash benchmarks/routing.sh WORK DATA` (half an hour on 2 slow cores, nearly all of
# it the paper's neurons). WORK holds the tuned bases that `benchmarks/studies.sh WORK DATA` made; DATA has
# counterfact/counterfact-train.json and stories260K/.
set -euo pipefail
work=${1:?usage: bash benchmarks/routing.sh WORK DATA} data=${2:?usage: bash benchmarks/routing.sh WORK DATA}
out=$(dirname "$0")/routing keys=$work/keys unrelated=$data/counterfact/counterfact-train.json
mkdir -p "$keys"

python "$(dirname "$0")/routing_keys.py" --out "$keys/demo" --unrelated "$unrelated"
python "$(dirname "$0")/routing_keys.py" --out "$keys/demo-10000" --facts 9500 --unrelated "$unrelated"
for suite in zsre counterfact; do
    [ $suite = zsre ] || unrelated=$work/zsre/d_test.jsonl
    python "$(dirname "$0")/routing_keys.py" --out "$keys/$suite" --model "$work/$suite" --suite "$work/$suite/d_test.jsonl" \
        --guard "$work/$suite/d_train.jsonl" --unrelated "$unrelated"
done
python "$(dirname "$0")/routing_keys.py" --out "$keys/stories260K" --model "$data/stories260K" \
    --suite "$work/zsre/d_test.jsonl" --guard "$work/zsre/d_train.jsonl" --unrelated "$data/counterfact/counterfact-train.json"

python "$(dirname "$0")/routing_quality.py" "$keys/demo" --edits 100 1000 --out "$out"
python "$(dirname "$0")/routing_quality.py" "$keys/demo-10000" --edits 10000 --out "$out"
for suite in zsre counterfact stories260K; do
    python "$(dirname "$0")/routing_quality.py" "$keys/$suite" --edits 100 1000 --out "$out"
done
