#!/usr/bin/env bash
# Reproduces the paper's tables and figures: `bash benchmarks/studies.sh WORK [DATA]`
# WORK is a new folder; the CSV files and pictures in its `studies` folders are those of benchmarks/studies/. DATA holds
# zsre/ZsRE-test-all.json and counterfact/counterfact-train.json; without it, only the demo's studies run. Takes 20
# minutes on 2 slow cores.
set -euo pipefail
work=${1:?usage: bash benchmarks/studies.sh WORK [DATA]} data=${2:-}

scen init --model demo --recipe paper --dir "$work/demo"
for study in table1 table3 table4 fig4 fig5; do scen study $study --edits 200 --dir "$work/demo"; done
scen study fig3 --edits 100 --dir "$work/demo"

[ -n "$data" ] || exit 0
scen study sft --model demo --data "$data/zsre/ZsRE-test-all.json" --out "$work/zsre" \
    --train 643 --epochs 60 --lr 1e-3 --batch 32
scen study sft --model demo --data "$data/counterfact/counterfact-train.json" --out "$work/counterfact" \
    --train 5000 --epochs 10 --lr 1e-3 --batch 32
for suite in zsre counterfact; do
    for variant in paper key closed-form-full closed-form closed-form-mean; do
        project=$work/$suite-$variant more=()
        case $variant in  # full experts need a rate that fits d = 96
        paper) more=(--set expert_lr=0.01 --set expert_steps=30 --set neuron_lr=0.001 --set neuron_steps=100) ;;
        key) more=(--set expert_lr=0.01 --set expert_steps=30) ;;
        closed-form*) more=(--guard "$work/$suite/d_train.jsonl") ;;
        esac
        case $variant in
        *-full) more+=(--expert full --set expert_lr=0.01 --set expert_steps=30) ;;
        *-mean) more+=(--set key_pooling=mean) ;;
        esac
        recipe=${variant%-mean}
        scen init --model "$work/$suite" --layer 2 --recipe ${recipe%-full} "${more[@]}" --dir "$project"
        scen study table1 --suite $suite --data "$work/$suite/d_test.jsonl" --edits 200 --dir "$project"
    done
done
