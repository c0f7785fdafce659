"""What keys tell of a question, whatever it is asked about: keys of the question bank with the subject masked.

The bank has several wordings of many relations. Two wordings of one relation ask the same: what differs between their
keys does not matter, and is whitened away. Two relations of one kind of subject ask something else: how similar their
keys are says where theta must lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from scen_cli.data.question_bank import relation_questions, relation_statements
from scen_cli.model.base import Base
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.generation import Progress, no_progress
from scen_cli.model.keys import KeyConfig
from scen_cli.model.routing import Whitening
from scen_cli.model.template import Template

LOWEST_THETA, HIGHEST_THETA = 0.05, 0.9  # an edit's own prompt gives 1
SHRINKAGE = 0.01  # added to each variance, as a share of the largest (benchmarks/LOG.md)


@dataclass(frozen=True)
class RelationKeys:
    """Keys of masked questions.

    Attributes:
        keys: (n, h), float32.
        kinds: The kind of subject of each question.
        relations: Its relation.
        statements: Keys of statements to complete, (m, h), float32: "The mother of it is".
        stated: The kind of subject of each statement, and its relation.
    """

    keys: Tensor
    kinds: list[str]
    relations: list[str]
    statements: Tensor
    stated: list[tuple[str, str]]

    def whitening(self, only: Sequence[int] | None = None) -> Whitening:
        """Whitening by what differs between wordings: the within-class covariance, relations being the classes.

        The questions of a relation and its statements are two classes: what tells one form from the other stays.

        Args:
            only: The numbers of the relations that count (`_rows_by_relation`); None for all.
        """
        keys = torch.cat([self.keys, self.statements]).double()
        mean = keys.mean(dim=0)
        unit = nn.functional.normalize(keys - mean, dim=1)
        relations = self._rows_by_relation()
        stated: dict[tuple[str, str], list[int]] = {}
        for row, name in enumerate(self.stated, len(self.keys)):
            stated.setdefault(name, []).append(row)
        names = list(relations)
        chosen = names if only is None else [names[number] for number in only]
        classes = [rows for name in chosen for rows in (relations[name], stated.get(name, [])) if rows]
        within = torch.cat([unit[rows] - unit[rows].mean(dim=0) for rows in classes])
        _left, singular, axes = torch.linalg.svd(within / len(within) ** 0.5, full_matrices=False)
        variances = singular**2
        floor = SHRINKAGE * variances[0]
        kept = variances > 1e-9 * variances[0]
        scales = (floor / (variances[kept] + floor)).sqrt() - 1
        return Whitening(mean.float(), axes[kept].float().contiguous(), scales.float())

    def theta(self, rate: float) -> float:
        """The activation that another question about the same subject exceeds at this rate.

        Half of the relations make a whitening. The others are taken for edits, each by its first wording, with all
        wordings of the other relations of its kind as other questions. Then the halves change places. The two quantiles
        are averaged.
        """
        classes = self._rows_by_relation()
        numbers = range(len(classes))
        quantiles = []
        for half in (0, 1):
            whitened = self.whitening([n for n in numbers if n % 2 == half])(self.keys)
            activations = [
                whitened[self._other_rows(kind, relation)] @ whitened[rows[0]]
                for n, ((kind, relation), rows) in enumerate(classes.items())
                if n % 2 != half
            ]
            quantiles.append(float(torch.quantile(torch.cat(activations), 1 - rate)))
        return min(max(round(sum(quantiles) / 2, 4), LOWEST_THETA), HIGHEST_THETA)

    def _rows_by_relation(self) -> dict[tuple[str, str], list[int]]:
        rows: dict[tuple[str, str], list[int]] = {}
        for row, name in enumerate(zip(self.kinds, self.relations, strict=True)):
            rows.setdefault(name, []).append(row)
        return rows

    def _other_rows(self, kind: str, relation: str) -> list[int]:
        """Questions about the same kind of subject that ask for something else."""
        pairs = enumerate(zip(self.kinds, self.relations, strict=True))
        return [row for row, (of_kind, other) in pairs if of_kind == kind and other != relation]


def relation_keys(
    base: Base, template: Template, edited: EditedLayer, key_config: KeyConfig, progress: Progress = no_progress
) -> RelationKeys:
    """Read the keys of every wording in the question bank, and of statements, with the subject masked."""

    def masked(texts: Sequence[tuple[str, str, str, str]]) -> Iterator[tuple[tuple[str, str], list[int]]]:
        for kind, relation, subject, text in texts:
            ids = template.prompt_ids(text)
            if segments := key_config.masked_segments_of(ids, template.spans_of([subject], ids)):
                yield (kind, relation), segments[0]

    asked, stated = (list(masked(texts)) for texts in (relation_questions(seed=0), relation_statements(seed=0)))
    tokens = [ids for _name, ids in [*asked, *stated]]
    keys, _owners = read_segment_keys(base, edited, tokens, replace(key_config, segments=False), progress)
    names = [name for name, _ids in asked]
    return RelationKeys(
        keys[: len(asked)],
        [kind for kind, _relation in names],
        [relation for _kind, relation in names],
        keys[len(asked) :],
        [name for name, _ids in stated],
    )
