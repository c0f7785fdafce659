"""MELO (Yu et al. 2024, "MELO: Enhancing Model Editing with Neuron-Indexed Dynamic LoRA"): one LoRA block per batch.

A key is the output of one decoder layer of the base at a prompt's last token; a vector database maps keys to blocks.
Block b has `rank` rows of A and columns of B. It is trained on its own batch only: no later batch changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.context import MethodContext, run_texts, take_step
from scen_cli.baselines.hook_method import HookMethod, block_of, low_rank_added, recorded
from scen_cli.baselines.method import Settings, attached
from scen_cli.data.records import EditRecord
from scen_cli.model.expert_stack import ActiveRoute, ExpertStack, LowRank
from scen_cli.model.keys import last_token
from scen_cli.model.routing import BASE

SAME = 1e-4  # two keys of one prompt differ by less than this share of their length
APART = 1e-5  # the gap between the radii of two neighbours with different labels
Label = tuple[int, ...]  # a target's tokens


@dataclass
class Cluster:
    """Keys of edits with the same label.

    Attributes:
        center: (d,) the mean of the points.
        radius: The distance from the center up to which a key belongs to the cluster.
        label: The tokens of the edits' target.
        points: (n, d) the keys.
        blocks: The block of each point's edit.
    """

    center: Tensor
    radius: float
    label: Label
    points: Tensor
    blocks: list[int]

    def add(self, key: Tensor, block: int, least_radius: float) -> None:
        """Add a key of the same label: move the center to the mean, extend the radius to the farthest point."""
        self.points, self.blocks = torch.cat([self.points, key[None]]), [*self.blocks, block]
        self.center = self.points.mean(dim=0)
        self.radius = max(float((self.points - self.center).norm(dim=1).max()), least_radius)

    def drop(self, dropped: Tensor) -> None:
        """Drop points by a mask (n,)."""
        self.points = self.points[~dropped]
        self.blocks = [block for block, drops in zip(self.blocks, dropped.tolist(), strict=True) if not drops]


class VectorDatabase:
    """Clusters in the order of their creation; `radius` (r0) is that of a new cluster."""

    def __init__(self, radius: float) -> None:
        self.radius = radius
        self.clusters: list[Cluster] = []

    def add(self, key: Tensor, label: Label, block: int) -> None:
        """Add the key (d,) of an edit that `block` learns: as a new cluster, to the nearest cluster, or, if that has
        another label, as a new cluster beside it."""
        self._forget(key, label)
        nearest, distance = self.nearest(key)
        if nearest is None or distance > nearest.radius + self.radius:
            self.clusters.append(Cluster(key, self.radius, label, key[None], [block]))
        elif nearest.label == label:
            nearest.add(key, block, self.radius)
        else:
            self.clusters.append(Cluster(key, distance / 2 + APART, label, key[None], [block]))
            nearest.radius = distance / 2 - APART
            nearest.drop((nearest.points - nearest.center).norm(dim=1) > nearest.radius)

    def _forget(self, key: Tensor, label: Label) -> None:
        """Drop points with this very key under another label: those of an earlier edit of the same prompt. (The
        published rules would leave two clusters around one point, and neither could be found.)"""
        stay = []
        for cluster in self.clusters:
            same = (cluster.points - key).norm(dim=1) <= SAME * key.norm()
            if cluster.label != label and bool(same.any()):
                cluster.drop(same)
                if not cluster.blocks:
                    continue
            stay.append(cluster)
        self.clusters = stay

    def find(self, key: Tensor) -> int | None:
        """The block of the nearest point in the nearest cluster; None if the key is outside that cluster's radius."""
        nearest, distance = self.nearest(key)
        if nearest is None or distance > nearest.radius or not nearest.blocks:
            return None
        return nearest.blocks[int((nearest.points - key).norm(dim=1).argmin())]

    def nearest(self, key: Tensor) -> tuple[Cluster | None, float]:
        """The cluster with the nearest center, and its distance."""
        if not self.clusters:
            return None, float("inf")
        distances = (torch.stack([cluster.center for cluster in self.clusters]) - key).norm(dim=1)
        index = int(distances.argmin())
        return self.clusters[index], float(distances[index])

    def tensors(self) -> dict[str, Tensor]:
        """The whole database as tensors for `load`."""
        clusters, empty = self.clusters, torch.empty(0, 0)
        return {
            "centers": torch.stack([cluster.center for cluster in clusters]) if clusters else empty,
            "radii": torch.tensor([cluster.radius for cluster in clusters], dtype=torch.float64),
            "labels": pack_labels([cluster.label for cluster in clusters]),
            "points": torch.cat([cluster.points for cluster in clusters]) if clusters else empty,
            "blocks": torch.tensor([block for cluster in clusters for block in cluster.blocks], dtype=torch.long),
            "sizes": torch.tensor([len(cluster.blocks) for cluster in clusters], dtype=torch.long),
            "radius": torch.tensor(self.radius, dtype=torch.float64),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        sizes = tensors["sizes"].tolist()
        points = tensors["points"].split(sizes)
        blocks = [part.tolist() for part in tensors["blocks"].split(sizes)]
        labels = unpack_labels(tensors["labels"])
        rows = zip(tensors["centers"], tensors["radii"].tolist(), labels, points, blocks, strict=True)
        self.clusters = [Cluster(*row) for row in rows]
        self.radius = float(tensors["radius"])


def pack_labels(labels: Sequence[Label]) -> Tensor:
    """Labels as one tensor (n, longest), filled up with -1."""
    width = max(map(len, labels), default=0)
    rows = [[*label, *[-1] * (width - len(label))] for label in labels]
    return torch.tensor(rows, dtype=torch.long).reshape(len(labels), width)


def unpack_labels(packed: Tensor) -> list[Label]:
    return [tuple(token for token in label if token >= 0) for label in packed.tolist()]


def calibrated_radius(own: Tensor, others: Tensor) -> float:
    """The radius that best separates two groups of distances.

    Args:
        own: (n,) distances of keys that should be within the radius.
        others: (m,) distances of keys that should be outside.

    Returns:
        The middle between two neighbouring distances at which the two error rates have the smallest sum; without
        `own` distances half the smallest of the others.
    """
    own, others = own.double().sort().values, others[others > 0].double().sort().values
    if not len(own):
        return float(others[0]) / 2 if len(others) else 1.0
    edges = torch.cat([own, others]).sort().values
    radii = torch.cat([(edges[1:] + edges[:-1]) / 2, edges[-1:] * 1.01])
    missed = 1 - torch.searchsorted(own, radii, right=True) / len(own)
    included = torch.searchsorted(others, radii, right=True) / max(len(others), 1)
    return float(radii[(missed + included).argmin()])


NEIGHBOURS = 500  # unedited prompts that the radius is calibrated with


class MeloSettings(Settings):
    """The authors' for hallucination on GPT2-XL, except the radius: it does not transfer between models."""

    batch: int | None = Field(4, ge=1, description="edits of one block")
    rank: int = Field(2, ge=1, description="rank of one block")
    layers: int = Field(1, ge=1, description="consecutive decoder layers with LoRA, up to the project's")
    steps: int = Field(50, ge=1, description="Adam steps on a block")
    lr: float = Field(1e-3, gt=0, description="Adam's learning rate")
    halve_every: int = Field(20, ge=1, description="steps after which the learning rate is halved")
    scale: float = Field(10.0, gt=0, description="of a block's output: sqrt(r_tot / rank) of the authors' 100 blocks")
    radius: float | None = Field(None, gt=0, description="r0; none: calibrated on the first batch")


class Melo(HookMethod):
    """`a` (r_tot, h) and `b` (r_tot, d) of each layer hold all `count` blocks; `database` maps keys to blocks."""

    name = "melo"
    settings: MeloSettings

    def __init__(self, context: MethodContext, settings: MeloSettings) -> None:
        super().__init__(context, settings)
        self.layers = self.context.layers(settings.layers)
        self.count = 0
        self.a = [torch.empty(0, layer.ffn_width, device=self.base.device) for layer in self.layers]
        self.b = [torch.empty(0, layer.projection_shape[0], device=self.base.device) for layer in self.layers]
        self.database = VectorDatabase(settings.radius or 0.0)
        self._random = torch.Generator().manual_seed(self.context.seed)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        with attached(self, False):  # keys are the base's
            keys = self._keys([edit.prompt for edit in edits])
            if not self.database.radius:
                self.database.radius = self._calibrate(edits)
            for edit, key in zip(edits, keys, strict=True):
                label = tuple(self.template.target_ids(edit.prompt, edit.target))
                self.database.add(key, label, self.count)
            self._train(edits)
        self.count += 1

    def _calibrate(self, edits: Sequence[EditRecord]) -> float:
        """r0 from the distances of edits to their own rephrases, and to the nearest unedited prompt or other edit. The
        edits are the development edits with rephrases, or `edits` if there are none."""
        known = [edit for edit in self.context.development if edit.rephrases] or list(edits)
        keys = self._keys([edit.prompt for edit in known])
        rephrases = ((row, text) for row, edit in enumerate(known) for text in edit.rephrases[:3])
        pairs = [(row, text) for row, text in rephrases if self.context.has_room(text, "")]
        unedited = self._keys(self.context.prompts[:NEIGHBOURS])
        distances = torch.cdist(keys, torch.cat([unedited, keys]))
        distances[torch.arange(len(keys)), len(unedited) + torch.arange(len(keys))] = torch.inf  # to itself
        own = (self._keys([text for _row, text in pairs]) - keys[[row for row, _text in pairs]]).norm(dim=1)
        nearest = distances.amin(dim=1)
        return calibrated_radius(own, nearest[nearest.isfinite()])

    def _train(self, edits: Sequence[EditRecord]) -> None:
        config, device = self.settings, self.base.device
        examples = self.examples(edits)
        blocks = []
        for layer in self.layers:
            bound = (6 / ((1 + 5) * layer.ffn_width)) ** 0.5  # kaiming_uniform_(a=sqrt(5)), as in LoRA
            a = torch.empty(config.rank, layer.ffn_width).uniform_(-bound, bound, generator=self._random)
            b = torch.zeros(layer.projection_shape[0], config.rank)
            blocks.append((a.to(device).requires_grad_(), b.to(device).requires_grad_()))
        optimizer = torch.optim.Adam([tensor for block in blocks for tensor in block], lr=config.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.halve_every, gamma=0.5)
        for _ in range(config.steps):
            scaled = [LowRank(a, config.scale * b) for a, b in blocks]
            with low_rank_added(dict(zip(self.hooked_modules(), scaled, strict=True))):
                losses = examples.losses(run_texts(self.model, examples.ids))
            take_step(optimizer, losses.mean())
            schedule.step()
        self.a = [torch.cat([old, a.detach()]) for old, (a, _b) in zip(self.a, blocks, strict=True)]
        self.b = [torch.cat([old, b.detach().T * config.scale]) for old, (_a, b) in zip(self.b, blocks, strict=True)]

    def _keys(self, prompts: Sequence[str]) -> Tensor:
        """Keys (n, d), float32, of prompts."""
        return self.read(prompts, self.layers[-1].projection_shape[0], self._read_keys)

    def _read_keys(self, ids: Tensor, mask: Tensor) -> Tensor:
        block = block_of(self.layers[-1])
        with recorded(block) as seen:
            run_texts(self.model, ids, mask)
        return seen[block][1][torch.arange(len(ids), device=ids.device), last_token(mask)].float()

    @torch.no_grad()
    def decide(self, ids: Tensor, mask: Tensor) -> list[ActiveRoute]:
        with self.following(None):  # keys are the base's
            blocks = [self.database.find(key) for key in self._read_keys(ids, mask)]
        choice = torch.tensor([BASE if block is None else block for block in blocks])
        ranks = torch.full((self.count,), self.settings.rank)
        stacks = [ExpertStack(a, b, ranks, _no_full_expert) for a, b in zip(self.a, self.b, strict=True)]
        return [ActiveRoute(stack, choice) for stack in stacks]

    def why(self, prompt: str) -> str:
        with attached(self, False):
            key = self._keys([prompt])[0]
        nearest, distance = self.database.nearest(key)
        if nearest is None:
            return "no edit yet"
        block = self.database.find(key)
        answers = "the base answers" if block is None else f"block {block} answers"
        return f"the nearest cluster is {distance:.3f} away, its radius {nearest.radius:.3f}: {answers}"

    def hooked_modules(self) -> list[nn.Module]:
        return [layer.down_proj for layer in self.layers]

    def edited_output(self, index: int, hidden: Tensor, output: Tensor, decision: list[ActiveRoute]) -> Tensor | None:
        return decision[index].output(self.layers[index].down_proj, hidden, output)

    def state(self) -> dict[str, Tensor]:
        tensors = {f"database.{name}": tensor for name, tensor in self.database.tensors().items()}
        for layer, a, b in zip(self.layers, self.a, self.b, strict=True):
            tensors |= {f"{layer.index}.lora_A": a, f"{layer.index}.lora_B": b}
        return {**tensors, "count": torch.tensor(self.count), "random": self._random.get_state()}

    def load(self, state: dict[str, Tensor]) -> None:
        count = int(state["count"])
        if not all(0 <= block < count for block in state["database.blocks"].tolist()):
            raise ValueError(f"`database.blocks` names a block that is none of its {count}")
        rows = count * self.settings.rank
        a = self.loaded(state, {f"{layer.index}.lora_A": (rows, layer.ffn_width) for layer in self.layers})
        b = self.loaded(state, {f"{layer.index}.lora_B": (rows, layer.projection_shape[0]) for layer in self.layers})
        tensors = {name: tensor.to(self.base.device) for name, tensor in state.items() if "database." in name}
        self.database.load({name.removeprefix("database."): tensor for name, tensor in tensors.items()})
        self.a, self.b, self.count = a, b, count
        self._random.set_state(state["random"].cpu())


def _no_full_expert(row: int) -> Tensor:
    raise LookupError(f"block {row} is low-rank")
