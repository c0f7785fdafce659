"""Tunes recipe `paper` on SmolLM2: `python -m benchmarks.paper_sweep SUITE NATURAL --out FILE`

The paper's rates are for Llama-2-7B. Each pair of a rate and a number of steps makes the last `--edits` records of
SUITE, which a run of its first 100 does not score. The best has the most right answers to prompts, to rephrases by the
right expert, and to unedited questions; then theta is chosen, by the mean of Reliability, Generality and Locality.
Writes the settings for `scen init --set` to FILE, one a line.
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

RATES, STEPS = (3e-4, 1e-3, 3e-3), (10, 30)
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
    chosen = replace(
        suite, edits=suite.edits[-options.edits :], locality=read_prompts(options.natural)[: options.edits]
    )
    base = load_base("smollm2", dtype="bfloat16")
    settings = [{"expert_lr": rate, "expert_steps": steps} for rate in RATES for steps in STEPS]
    scored = [(*_score(base, chosen, setting), setting) for setting in settings]
    _right, theta, best = max(scored, key=lambda row: row[0])
    lines = [f"{name}={value}" for name, value in {**best, "theta": theta}.items()]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("chosen:", *lines)


def _score(base: Base, suite: Suite, setting: dict[str, float]) -> tuple[float, float]:
    """Right answers of all kinds, and the best theta."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {**setting, "require_learned": False}
        editor = Editor(new_project(f"{folder}/p", "smollm2", recipe="paper", changes=changes, base=base), base=base)
        make_edits(editor, suite.edits)
        figures = evaluate(editor, suite, quick=True).figures
        rows = sweep_theta(editor, suite, THETAS)
        editor.detach()
    shares = [figures[name].patched.share or 0.0 for name in ("reliability", "generality-given-expert", "locality")]
    theta = max(rows, key=lambda row: sum(row[role]["share"] or 0.0 for role in ROLES))["theta"]
    print(setting, [round(share, 2) for share in shares], "theta", theta, flush=True)
    return sum(shares), theta


if __name__ == "__main__":
    main()
