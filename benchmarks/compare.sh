#!/usr/bin/env bash
# Compares SCEN with other methods and writes benchmarks/compare/: `bash benchmarks/compare.sh WORK [DATA]`
# WORK is a new folder, or the folder of a stopped run, which resumes. DATA holds zsre/ZsRE-test-all.json; without it,
# only the demo's comparisons run. Takes about two hours on 2 slow cores. The comparisons run one after the other, so
# that their times can be compared.
set -euo pipefail
mkdir -p "$(dirname "$0")/compare"
work=${1:?usage: bash benchmarks/compare.sh WORK [DATA]} data=${2:-}
here=$(dirname "$0")

[ -e "$work/demo/scen.db" ] || scen init --model demo --dir "$work/demo"
for edits in 100 500; do scen compare --suite demo --edits $edits --dir "$work/demo"; done
cp "$work"/demo/compare/demo-*.json "$work"/demo/compare/demo-*.png "$here/compare/"

[ -n "$data" ] || exit 0
scen study sft --model demo --data "$data/zsre/ZsRE-test-all.json" --out "$work/zsre" \
    --train 643 --epochs 60 --lr 1e-3 --batch 32
[ -e "$work/questions/scen.db" ] || scen init --model "$work/zsre" --layer 2 --guard "$work/zsre/d_train.jsonl" --dir "$work/questions"
scen compare --suite zsre --data "$work/zsre/d_test.jsonl" --edits 100 --dir "$work/questions"
cp "$work"/questions/compare/zsre-100.json "$here/compare/zsre-100.json"
cp "$work"/questions/compare/zsre-100.png "$here/compare/zsre-100.png"
