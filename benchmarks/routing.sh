#!/usr/bin/env bash
# Compares routers on cached keys and writes benchmarks/routing/: `bash benchmarks/routing.sh WORK DATA`
# WORK holds the tuned bases of `benchmarks/studies.sh WORK DATA`; DATA holds counterfact/counterfact-train.json and
# stories260K/. Takes half an hour on 2 slow cores, nearly all of it for the paper's neurons.
set -euo pipefail
work=${1:?usage: bash benchmarks/routing.sh WORK DATA} data=${2:?usage: bash benchmarks/routing.sh WORK DATA}
out=$(dirname "$0")/routing keys=$work/keys unrelated=$data/counterfact/counterfact-train.json
export PYTHONPATH=$(dirname "$0")/..${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$keys"

python -m benchmarks.routing_keys --out "$keys/demo" --unrelated "$unrelated"
python -m benchmarks.routing_keys --out "$keys/demo-10000" --facts 9500 --unrelated "$unrelated"
for suite in zsre counterfact; do
    [ $suite = zsre ] || unrelated=$work/zsre/d_test.jsonl
    python -m benchmarks.routing_keys --out "$keys/$suite" --model "$work/$suite" --suite "$work/$suite/d_test.jsonl" \
        --guard "$work/$suite/d_train.jsonl" --unrelated "$unrelated"
done
python -m benchmarks.routing_keys --out "$keys/stories260K" --model "$data/stories260K" \
    --suite "$work/zsre/d_test.jsonl" --guard "$work/zsre/d_train.jsonl" --unrelated "$data/counterfact/counterfact-train.json"

python -m benchmarks.routing_quality "$keys/demo" --edits 100 1000 --out "$out"
python -m benchmarks.routing_quality "$keys/demo-10000" --edits 10000 --out "$out"
for suite in zsre counterfact stories260K; do
    python -m benchmarks.routing_quality "$keys/$suite" --edits 100 1000 --out "$out"
done
