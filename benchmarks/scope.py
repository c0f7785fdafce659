"""Which key tells a question from another question about the same subject: `python -m benchmarks.scope SUITES`

SUITES is the folder that `real_suites` wrote. For each record: its rephrases, questions of other records with this
subject (*swapped*, no content word in common), and the data's own prompts about the same subject (*near*). The subject
is masked in all of them; prompts that do not name it are counted and left out: routing leaves them to the base. No
expert is trained and nothing is generated: `real.sh` does that for the key that is chosen.

Candidates are keys of `--layers`, and vectors of a sentence encoder in the folder `--encoder`. Each is whitened by the
question bank. Prints how many rephrases, swapped questions and near prompts exceed the theta that the bank gives (no
record is needed for it), and the activation that 2, 3 or 5 % of the swapped questions exceed. A layer is chosen on the
half `development`; the half `report` has other records.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from benchmarks.measuring import make_parser
from benchmarks.page import report
from scen_cli import EditRecord, load_base, load_suite
from scen_cli.data.lexical_overlap import content_words
from scen_cli.data.question_bank import relation_questions, relation_statements
from scen_cli.model.base import Base
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.ffn import find_layer
from scen_cli.model.keys import KeyConfig
from scen_cli.model.template import Template, make_template
from scen_cli.neurons.build_guard import key_config_of
from scen_cli.neurons.relation_keys import RelationKeys
from scen_cli.recipe import make_recipe

SUITES = ("zsre", "counterfact", "real-facts")
SWAPPED = 3  # questions of other records for each record
SHARES = (0.02, 0.03, 0.05)  # of swapped questions that may exceed an activation
BATCH = 64

Reader = Callable[[list[list[int]]], Tensor]  # token sequences -> keys (n, width)


@dataclass(frozen=True)
class Trial:
    """Pairs of masked token sequences, an edit's own and another, of one half of a suite."""

    suite: str
    half: str
    rephrases: list[tuple[tuple[int, ...], tuple[int, ...]]]
    swapped: list[tuple[tuple[int, ...], tuple[int, ...]]]
    near: list[tuple[tuple[int, ...], tuple[int, ...]]]
    not_named: int

    def texts(self) -> Iterator[tuple[int, ...]]:
        for pair in (*self.rephrases, *self.swapped, *self.near):
            yield from pair


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("suites", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[22, 26])
    parser.add_argument("--encoder", type=Path, help="folder of a sentence encoder: mean of its last hidden states")
    options = parser.parse_args()
    base = load_base("smollm2", dtype="bfloat16")
    template = make_template(base.tokenizer, base.model, "chat")
    key_config = key_config_of(template, make_recipe("closed-form", {}))
    masked = Masked(template, key_config)
    trials = [trial for name in SUITES for trial in trials_of(name, options.suites, masked)]
    readers: dict[str, Reader] = {f"layer {layer}": layer_reader(base, layer, key_config) for layer in options.layers}
    if options.encoder:
        readers["sentence encoder"] = encoder_reader(options.encoder, base, key_config)
    found = []
    for name, read in readers.items():
        bank = bank_keys(masked, read)
        whitening, theta = bank.whitening(), bank.theta(make_recipe("closed-form", {}).same_subject or 0.04)
        texts = list(dict.fromkeys(text for trial in trials for text in trial.texts()))
        keys = dict(zip(texts, whitening(read([list(text) for text in texts])), strict=True))
        for trial in trials:
            found.append({"key": name, "theta": theta, **_measure(trial, keys, theta)})
            print(found[-1], flush=True)
    report("scope", {"found": found}, options.json)


class Masked:
    """Masks subjects in prompts."""

    def __init__(self, template: Template, key_config: KeyConfig) -> None:
        self._template, self._key_config = template, key_config

    def __call__(self, text: str, subject: str) -> tuple[int, ...] | None:
        """Tokens of the prompt's last sentence, or of the prompt, with the subject masked; None if it is not named."""
        ids = self._template.prompt_ids(text)
        segments = self._key_config.masked_segments_of(ids, self._template.spans_of([subject], ids))
        return tuple(segments[-1]) if segments and segments[0] != ids else None


def trials_of(name: str, folder: Path, masked: Masked) -> Iterator[Trial]:
    """The two halves of a suite, chosen by a seed."""
    path = folder / f"{name}.jsonl"
    records = [record for record in load_suite(str(path) if path.exists() else name).edits if record.subject]
    shuffled = random.Random(0).sample(records, len(records))
    for half, chosen in (("development", shuffled[::2]), ("report", shuffled[1::2])):
        yield _trial(name, half, chosen, masked)


def _trial(suite: str, half: str, records: Sequence[EditRecord], masked: Masked) -> Trial:
    pairs: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {"rephrases": [], "swapped": [], "near": []}
    not_named = 0
    for record in records:
        subject = str(record.subject)
        own = masked(record.prompt, subject)
        near = [item.prompt for item in record.locality if item.kind == "same-subject"]
        texts = {"rephrases": record.rephrases[:3], "swapped": list(_swapped(record, records)), "near": near[:2]}
        for kind, prompts in texts.items():
            others = [masked(prompt, subject) for prompt in prompts]
            if kind == "rephrases":
                not_named += len(others) if own is None else others.count(None)
            if own is not None:
                pairs[kind] += [(own, other) for other in others if other is not None]
    return Trial(suite, half, not_named=not_named, **pairs)


def _swapped(record: EditRecord, records: Sequence[EditRecord]) -> Iterator[str]:
    """Questions of other records with this record's subject, without a content word of its own question."""
    words = content_words(record.prompt.replace(str(record.subject), " "))
    others = [other for other in records if other.subject != record.subject and str(other.subject) in other.prompt]
    count = 0
    for other in random.Random(record.prompt).sample(others, len(others)):
        if count < SWAPPED and not words & content_words(other.prompt.replace(str(other.subject), " ")):
            count += 1
            yield other.prompt.replace(str(other.subject), str(record.subject))


def layer_reader(base: Base, layer: int, key_config: KeyConfig) -> Reader:
    """Reads keys as scen does: the input of the layer's `down_proj` at the last token."""
    edited = find_layer(base.model, layer)
    whole = replace(key_config, segments=False)
    return lambda sequences: read_segment_keys(base, edited, sequences, whole)[0]


def encoder_reader(folder: Path, base: Base, key_config: KeyConfig) -> Reader:
    """Reads vectors of a sentence encoder, for the text between the template's opening and closing."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    before, after = len(key_config.start) + len(key_config.opening), len(key_config.closing)

    @torch.no_grad()
    def read(sequences: list[list[int]]) -> Tensor:
        texts = [base.tokenizer.decode(ids[before : len(ids) - after]).strip() for ids in sequences]
        vectors = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
            hidden, real = encoder(**batch).last_hidden_state, batch["attention_mask"][..., None]
            vectors.append((hidden * real).sum(dim=1) / real.sum(dim=1))
        return nn.functional.normalize(torch.cat(vectors), dim=1)

    return read


def bank_keys(masked: Masked, read: Reader) -> RelationKeys:
    """`relation_keys`, for any way to read keys."""
    asked, stated = (
        [((kind, relation), list(ids)) for kind, relation, subject, text in texts if (ids := masked(text, subject))]
        for texts in (relation_questions(seed=0), relation_statements(seed=0))
    )
    keys = read([ids for _name, ids in [*asked, *stated]])
    kinds, relations = ([name[part] for name, _ids in asked] for part in (0, 1))
    return RelationKeys(keys[: len(asked)], kinds, relations, keys[len(asked) :], [name for name, _ids in stated])


def _measure(trial: Trial, keys: dict[tuple[int, ...], Tensor], theta: float) -> dict[str, object]:
    def activations(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Tensor:
        return torch.stack([keys[own] @ keys[other] for own, other in pairs] or [torch.tensor(-1.0)])

    rephrases, swapped, near = (activations(pairs) for pairs in (trial.rephrases, trial.swapped, trial.near))

    def counts(level: float) -> dict[str, list[int]]:
        return {
            "rephrases": [int((rephrases > level).sum()), len(trial.rephrases)],
            "swapped": [int((swapped > level).sum()), len(trial.swapped)],
            "near": [int((near > level).sum()), len(trial.near)],
        }

    at_share = {str(share): counts(float(torch.quantile(swapped, 1 - share))) for share in SHARES}
    own = {"suite": trial.suite, "half": trial.half, "not_named": trial.not_named}
    return {**own, "at_theta": counts(theta), "at_share": at_share}


if __name__ == "__main__":
    main()
