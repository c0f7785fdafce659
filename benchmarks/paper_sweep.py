"""Tunes recipe `paper` on SmolLM2: `python -m benchmarks.paper_sweep SUITE NATURAL --out FILE`

The paper's rates are for Llama-2-7B. Settings are tried on the last `--edits` records of SUITE, which a run of its
first 100 does not score: first the experts' rate and steps, by right answers of the right expert to rephrases and by
the fewest steps; then the neurons' rate and theta, by the mean of Reliability, Generality and Locality. Writes the
settings for `scen init --set` to FILE, one a line.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import make_edits, make_parser
from scen_cli import Editor, load_base, load_suite, new_project
from scen_cli.data.suites import Suite, read_prompts
from scen_cli.evaluation.evaluate_project import evaluate, sweep_theta
from scen_cli.model.base import Base

EXPERTS = [{"expert_lr": rate, "expert_steps": steps} for steps in (10, 30) for rate in (1e-3, 3e-3)]
NEURONS = [{"neuron_lr": rate, "neuron_steps": steps} for steps in (20, 100) for rate in (3e-5, 1e-4, 3e-4)]
THETAS = tuple(round(0.5 + 0.025 * step, 3) for step in range(20))
ROLES = ("reliability", "generality", "locality")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("suite", type=Path)
    parser.add_argument("natural", type=Path)
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    suite = load_suite(str(options.suite))
    questions = read_prompts(options.natural)[: options.edits]
    chosen = replace(suite, edits=suite.edits[-options.edits :], locality=questions)
    base = load_base("smollm2", dtype="bfloat16")
    experts = max(EXPERTS, key=lambda setting: _try(base, chosen, setting)[0])
    found = [(*_try(base, chosen, {**experts, **neurons})[1:], neurons) for neurons in NEURONS]
    _mean, theta, neurons = max(found, key=lambda row: row[:2])
    lines = [f"{name}={value}" for name, value in {**experts, **neurons, "theta": theta}.items()]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("chosen:", *lines)


def _try(base: Base, suite: Suite, setting: dict[str, float]) -> tuple[float, float, float]:
    """Generality with the right expert given; the best mean of the three figures, and its theta."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {**setting, "require_learned": False}
        editor = Editor(new_project(f"{folder}/p", "smollm2", recipe="paper", changes=changes, base=base), base=base)
        make_edits(editor, suite.edits)
        given = evaluate(editor, suite, quick=True).figures["generality-given-expert"].patched.share or 0.0
        rows = sweep_theta(editor, suite, THETAS)
        editor.detach()
    means = [(sum(row[role]["share"] or 0.0 for role in ROLES) / len(ROLES), row["theta"]) for row in rows]
    mean, theta = max(means)
    print(setting, f"right expert given {given:.2f}, mean {mean:.2f} at theta {theta}", flush=True)
    return given, mean, theta


if __name__ == "__main__":
    main()
