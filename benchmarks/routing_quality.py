"""Compares routers on cached keys: `python -m benchmarks.routing_quality KEYS [--edits 100 1000] [--out DIR]`

KEYS are the files of `routing_keys.py`. No model runs; each router takes seconds, except the paper's recipe, whose fits
take minutes at 1,000 edits. Every router gives each edit one row, and decides by one product, its maximum and a
threshold. Rephrases, prompts of the same kind and unrelated prompts are each split into two halves: the first halves
tune the paper's recipe (steps and rate) and set the thresholds, the second halves are reported.

Prints, at the threshold that 1 % of the unedited prompts of the same kind (or of the unrelated ones) exceed: `self`,
edits that call themselves; `rephrases` that call their own edit; `wrong`, rephrases that call another edit; and false
activations on prompts of the same kind, near an edit, and unrelated. `area`: area under the curve of rephrases over
false activations of the same kind, up to 10 %, as a share of the possible area. `--out` writes JSON and a picture.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.measuring import make_parser, markdown
from scen_cli.model.routing import prepare_keys
from scen_cli.neurons.neuron_fit import bias_of, neuron_of, refit_colliding, train_neuron, whitening_of
from scen_cli.recipe import RECIPES, Recipe

RATE = 0.01  # false activations at which routers are compared
CURVE_TO = 0.1  # last rate of the curve
FILTER_FROM = 0.2  # activation from which the subject filter is applied: lower activations never fire
PAPERS_GRID = [(100, 3e-4), (100, 1e-3), (300, 1e-3), (100, 3e-3), (20, 1e-2), (100, 1e-2)]  # steps, rate
NONE = torch.empty(0, 0)

Scorer = Callable[[Tensor], Tensor]  # keys (n, h) -> scores (n, t): any monotone function of the activation
Router = Callable[[Tensor, Tensor], Scorer]  # keys of edits and guard -> scorer


def paper(steps: int, rate: float) -> Router:
    """The paper's neurons, trained one after the other by the product's code. Scores are logits."""

    def fit(edits: Tensor, _guard: Tensor) -> Scorer:
        recipe = Recipe(neuron_steps=steps, neuron_lr=rate)
        neurons = torch.stack([train_neuron(edits[t : t + 1], edits[:t], recipe, t).neuron for t in range(len(edits))])
        return lambda keys: keys @ neurons.T

    return fit


def joint(steps: int, rate: float) -> Router:
    """The paper's losses against all other edits and the guard; colliding neurons are fitted again."""

    def fit(edits: Tensor, guard: Tensor) -> Scorer:
        recipe = Recipe(neuron_steps=steps, neuron_lr=rate)
        rows: list[Tensor] = []
        for t in range(len(edits)):
            rows.append(train_neuron(edits[t : t + 1], torch.cat([edits[:t], guard]), recipe, t).neuron)
            if t:
                refitted = refit_colliding(torch.stack(rows[:-1]), edits[:t], rows[-1], edits[t], guard, recipe)
                for row, neuron in refitted.items():
                    rows[row] = neuron
        neurons = torch.stack(rows)
        return lambda keys: keys @ neurons.T

    return fit


def key(edits: Tensor, _guard: Tensor) -> Scorer:
    """The edit's own key as its neuron."""
    neurons = prepare_keys(edits, cosine=True)
    return lambda keys: prepare_keys(keys, cosine=True) @ neurons.T


def closed_form(biased: bool = True) -> Router:
    """The product's default: a matched filter on whitened keys, with or without the bias."""

    def fit(edits: Tensor, guard: Tensor) -> Scorer:
        whitening = whitening_of(guard)
        neurons = torch.stack([neuron_of(edit[None], NONE, whitening) for edit in edits])
        on_guard = whitening(guard) @ neurons.T
        biases = torch.tensor([bias_of(column) for column in on_guard.T]) if biased else torch.zeros(len(neurons))
        return lambda keys: whitening(keys) @ neurons.T - biases

    return fit


def ridge(penalty: float) -> Router:
    """Ridge regression of one-hot targets on edits and guard, on centred keys of unit length.

    Each row is scaled to 1 on its own edit.
    """

    def fit(edits: Tensor, guard: Tensor) -> Scorer:
        mean, unit = guard.mean(dim=0), torch.nn.functional.normalize
        rows = torch.cat([unit(edits - mean, dim=1), unit(guard - mean, dim=1)]).double()
        gram = rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=torch.double)
        weights = torch.linalg.solve(gram, rows[: len(edits)].T)
        weights = (weights / (rows[: len(edits)].T * weights).sum(dim=0)).float()
        return lambda keys: unit(keys - mean, dim=1) @ weights

    return fit


ROUTERS: dict[str, tuple[Router, str]] = {
    "joint, 1e-3 x 100": (joint(100, 1e-3), "last"),
    "key (cosine)": (key, "last"),
    "key (cosine)/mean": (key, "mean"),
    "ridge, 0.1": (ridge(0.1), "last"),
    "ridge, 0.1/mean": (ridge(0.1), "mean"),
    "matched filter": (closed_form(biased=False), "last"),
    "closed-form": (closed_form(), "last"),
    "closed-form/mean": (closed_form(), "mean"),
}
SUBJECT_FILTER = "second look"  # its name in the recorded results
SLOW = ("joint, 1e-3 x 100", "paper")  # left out beyond 2,000 edits


class CachedKeys:
    """The keys of one base, with its first `count` edits."""

    def __init__(self, path: Path, count: int) -> None:
        arrays = load_file(path.with_suffix(".safetensors"))
        self.prompts = json.loads(path.with_suffix(".json").read_text())
        self.arrays, self.count = arrays, count
        self.of_these_edits = arrays["rephrase_of"] < count
        self.expected_edit = arrays["rephrase_of"][self.of_these_edits]
        generator = torch.Generator().manual_seed(0)
        self.order = {
            kind: torch.randperm(length, generator=generator)
            for kind, length in [("rephrases", int(self.of_these_edits.sum()))]
            + [(kind, len(self.prompts[kind])) for kind in ("same_kind", "near", "unrelated")]
        }

    def keys(self, kind: str, pool: str) -> Tensor:
        found = self.arrays.get(f"{kind}.{pool}", torch.empty(0, self.arrays[f"edits.{pool}"].shape[1]))
        return found[: self.count] if kind == "edits" else found[self.of_these_edits] if kind == "rephrases" else found

    def half(self, kind: str, second: bool) -> Tensor:
        order = self.order[kind]
        return order[len(order) // 2 :] if second else order[: len(order) // 2]

    def measure(self, name: str, router: Router, pool: str, lowest: float = -1e9) -> dict:
        """Fit one router, set its thresholds on the first halves, and count on the second halves.

        With a `lowest` threshold the subject filter is on: the subject of the edit must occur in the prompt.
        """
        subject_filter = lowest > -1e9
        started = time.perf_counter()
        scorer = router(self.keys("edits", pool), self.keys("guard", pool))
        seconds = time.perf_counter() - started
        strongest, best = {}, {}
        for kind in ("edits", "rephrases", "same_kind", "near", "unrelated"):
            chunks = self.keys(kind, pool).split(1000)
            found = [self._strongest(scorer(chunk), kind, 1000 * n, subject_filter) for n, chunk in enumerate(chunks)]
            strongest[kind] = torch.cat([values for values, _ in found] or [torch.empty(0)])
            best[kind] = torch.cat([rows for _, rows in found] or [torch.empty(0, dtype=torch.long)])

        def at(theta: float, second: bool = True) -> dict[str, float | None]:
            chosen = self.half("rephrases", second)
            right = best["rephrases"][chosen] == self.expected_edit[chosen]
            fires = strongest["rephrases"][chosen] > theta
            itself = (best["edits"] == torch.arange(self.count)) & (strongest["edits"] > theta)
            rates = {
                kind: float((strongest[kind][self.half(kind, second)] > theta).float().mean())
                for kind in ("same_kind", "near", "unrelated")
                if len(strongest[kind])
            }
            return {
                "self": float(itself.float().mean()),
                "rephrases": float((right & fires).float().mean()),
                "wrong": float((~right & fires).float().mean()),
                **rates,
            }

        thetas = {
            kind: max(lowest, threshold(strongest[kind][self.half(kind, False)], RATE))
            for kind in ("same_kind", "unrelated")
            if len(strongest[kind])
        }
        curve = self._curve(strongest, best, lowest)
        return {
            "router": name,
            "edits": self.count,
            "tuning": at(thetas["same_kind"], second=False)["rephrases"],
            "area": sum(curve) / len(curve),
            "curve": [round(share, 4) for share in curve],
            "seconds": seconds,
            **{f"at {RATE:.0%} {kind}": at(theta) for kind, theta in thetas.items()},
        }

    def _strongest(self, scores: Tensor, kind: str, start: int, subject_filter: bool) -> tuple[Tensor, Tensor]:
        """Strongest score and its row; with the filter, among edits whose subject occurs in the prompt."""
        if subject_filter:
            subjects = [(subject or "").casefold() for _prompt, subject in self.prompts["edits"][: self.count]]
            texts = [text if isinstance(text, str) else text[0] for text in self.prompts[kind]]
            if kind == "rephrases":
                texts = [text for text, used in zip(texts, self.of_these_edits.tolist(), strict=True) if used]
            for row, text in enumerate(texts[start : start + len(scores)]):
                words = text.casefold()
                for column in (scores[row] > FILTER_FROM).nonzero().flatten().tolist():
                    if subjects[column] not in words:
                        scores[row, column] = -1.0
        return tuple(scores.max(dim=1))  # type: ignore[return-value]

    def _curve(self, strongest: dict[str, Tensor], best: dict[str, Tensor], lowest: float) -> list[float]:
        """Share of right rephrases at 101 rates of false activations on the same kind, from 0 to `CURVE_TO`."""
        chosen = self.half("rephrases", True)
        right = best["rephrases"][chosen] == self.expected_edit[chosen]
        unedited = strongest["same_kind"][self.half("same_kind", True)]
        thetas = [max(lowest, threshold(unedited, CURVE_TO * step / 100)) for step in range(101)]
        return [float((right & (strongest["rephrases"][chosen] > theta)).float().mean()) for theta in thetas]


def threshold(strongest: Tensor, rate: float) -> float:
    """The threshold that a share of at most `rate` of these activations exceeds."""
    return max(float(strongest.sort(descending=True).values[int(rate * len(strongest))]), -1e9)


def measure_all(keys: CachedKeys, only: list[str] | None) -> list[dict]:
    """A row for each router; for the paper's recipe, the setting that is best on the first halves."""
    rows = []
    large = keys.count > 2000
    if not large and (only is None or "paper" in only):
        tried = [keys.measure(f"paper, {rate:g} x {steps}", paper(steps, rate), "last") for steps, rate in PAPERS_GRID]
        rows.append(max(tried, key=lambda row: row["tuning"]))
    for name, (router, pool) in ROUTERS.items():
        if (only is None or name in only) and not (large and name in SLOW):
            rows.append(keys.measure(name, router, pool))
    for pool, name in (("last", f"closed-form, {SUBJECT_FILTER}"), ("mean", f"closed-form, {SUBJECT_FILTER}/mean")):
        if only is None or name in only:
            rows.append(keys.measure(name, closed_form(), pool, RECIPES["closed-form"].theta))
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("keys", type=Path)
    parser.add_argument("--edits", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--only", nargs="+", help="names of routers; `paper` is the paper's")
    parser.add_argument("--out", type=Path, help="write KEYS.json and a picture there; other rows of earlier runs stay")
    options = parser.parse_args()
    available = len(json.loads(options.keys.with_suffix(".json").read_text())["edits"])
    rows = []
    for count in sorted({min(count, available) for count in options.edits}):
        rows += measure_all(CachedKeys(options.keys, count), options.only)
    for name in [name for name in rows[0] if name.startswith("at ")]:
        columns = list(rows[0][name])
        cells = [
            [
                r["router"],
                r["edits"],
                *(f"{r[name][c]:.3f}" for c in columns),
                f"{r['area']:.3f}",
                f"{r['seconds']:.1f}",
            ]
            for r in rows
        ]
        print(f"\n{options.keys.stem}, {name}\n\n{markdown(['router', 'edits', *columns, 'area', 'seconds'], cells)}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / f"{options.keys.stem}.json"
        earlier = json.loads(file.read_text()) if file.exists() else []
        new = {(row["router"], row["edits"]): row for row in rows}
        rows = [new.pop((row["router"], row["edits"]), row) for row in earlier] + list(new.values())
        file.write_text(json.dumps(rows, indent=1))
        draw(rows, file.with_suffix(".png"))


def draw(rows: list[dict], file: Path) -> None:
    """Plot right rephrases over false activations, for the largest number of edits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    most = max(row["edits"] for row in rows)
    rates = [CURVE_TO * step for step in range(101)]
    colours: dict[str, str] = {}
    for row in rows:
        if row["edits"] == most:
            name, _, pool = row["router"].partition("/")
            colour = colours.setdefault(name, f"C{len(colours)}")
            style = {"color": colour, "linestyle": "--" if pool else "-", "label": row["router"]}
            axes.plot(rates, [100 * share for share in row["curve"]], **style)
    axes.set_xlabel("unedited prompts of the same kind that fire, %")
    axes.set_ylabel("rephrases that call their edit, %")
    axes.set_title(f"{file.stem}, {most} edits")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
