"""MELO's vector database: clusters of keys, each with a radius and a label, whose points remember their block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAME = 1e-4  # of their length: keys that are nearer are of one prompt
APART = 1e-5  # by which two clusters of different labels keep off each other
Label = tuple[int, ...]  # a target's tokens


@dataclass
class Cluster:
    """`points` (n, d), the `blocks` they were learned in, their mean `center` (d,), a `radius`, one `label`."""

    center: Tensor
    radius: float
    label: Label
    points: Tensor
    blocks: list[int]

    def take_in(self, key: Tensor, block: int, least_radius: float) -> None:
        """Another key of the same label: the center moves to the mean, the radius reaches the farthest point."""
        self.points, self.blocks = torch.cat([self.points, key[None]]), [*self.blocks, block]
        self.center = self.points.mean(dim=0)
        self.radius = max(float((self.points - self.center).norm(dim=1).max()), least_radius)

    def shrink(self, radius: float) -> None:
        """The radius of a cluster that gives way; points that are outside now are forgotten."""
        self.radius = radius
        self.drop((self.points - self.center).norm(dim=1) > radius)

    def drop(self, which: Tensor) -> None:
        """Forget these of the points (n,)."""
        self.points = self.points[~which]
        self.blocks = [block for block, goes in zip(self.blocks, which.tolist(), strict=True) if not goes]


class VectorDatabase:
    """Clusters in the order they were made; `radius` (r0) is a new one's."""

    def __init__(self, radius: float) -> None:
        self.radius = radius
        self.clusters: list[Cluster] = []

    def add(self, key: Tensor, label: Label, block: int) -> None:
        """A key (d,) of an edit that is learned in a block: a cluster of its own, a point more in the nearest one, or
        a conflict with it."""
        self._forget(key, label)
        nearest, distance = self.nearest(key)
        if nearest is None or distance > nearest.radius + self.radius:
            self.clusters.append(Cluster(key, self.radius, label, key[None], [block]))
        elif nearest.label == label:
            nearest.take_in(key, block, self.radius)
        else:
            self.clusters.append(Cluster(key, distance / 2 + APART, label, key[None], [block]))
            nearest.shrink(distance / 2 - APART)

    def _forget(self, key: Tensor, label: Label) -> None:
        """Points of this very key under another label: of edits that the new one takes the place of. (The published
        rules would leave two clusters around one point, and neither could be found.)"""
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
        """The block of the nearest point in the cluster whose center is nearest, if the key is within its radius."""
        nearest, distance = self.nearest(key)
        if nearest is None or distance > nearest.radius or not nearest.blocks:
            return None
        return nearest.blocks[int((nearest.points - key).norm(dim=1).argmin())]

    def nearest(self, key: Tensor) -> tuple[Cluster | None, float]:
        """The cluster whose center is nearest, and how far it is."""
        if not self.clusters:
            return None, float("inf")
        distances = (torch.stack([one.center for one in self.clusters]) - key).norm(dim=1)
        at = int(distances.argmin())
        return self.clusters[at], float(distances[at])

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for `load`."""
        width = max((len(one.label) for one in self.clusters), default=0)
        labels = [[*one.label, *[-1] * (width - len(one.label))] for one in self.clusters]
        empty = torch.empty(0, 0)
        return {
            "centers": torch.stack([one.center for one in self.clusters]) if self.clusters else empty,
            "radii": torch.tensor([one.radius for one in self.clusters], dtype=torch.float64),
            "labels": torch.tensor(labels, dtype=torch.long).reshape(len(labels), width),
            "points": torch.cat([one.points for one in self.clusters]) if self.clusters else empty,
            "blocks": torch.tensor([block for one in self.clusters for block in one.blocks], dtype=torch.long),
            "sizes": torch.tensor([len(one.blocks) for one in self.clusters], dtype=torch.long),
            "radius": torch.tensor(self.radius, dtype=torch.float64),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        sizes = tensors["sizes"].tolist()
        points, blocks = tensors["points"].split(sizes), tensors["blocks"].split(sizes)
        labels = [tuple(token for token in label if token >= 0) for label in tensors["labels"].tolist()]
        rows = zip(tensors["centers"], tensors["radii"].tolist(), labels, points, blocks, strict=True)
        self.clusters = [Cluster(c, radius, label, some, ids.tolist()) for c, radius, label, some, ids in rows]
        self.radius = float(tensors["radius"])


def calibrated_radius(own: Tensor, others: Tensor) -> float:
    """The radius that best tells `own` distances (n,), of keys that should be within, from `others` (m,), which should
    not: the middle between the two neighbouring distances where the two shares of mistakes add up to least.

    Without any of one's own: half the smallest of the others.
    """
    own, others = own.double().sort().values, others[others > 0].double().sort().values
    if not len(own):
        return float(others[0]) / 2 if len(others) else 1.0
    edges = torch.cat([own, others]).sort().values
    places = torch.cat([(edges[1:] + edges[:-1]) / 2, edges[-1:] * 1.01])
    missed = 1 - torch.searchsorted(own, places, right=True) / len(own)
    taken = torch.searchsorted(others, places, right=True) / max(len(others), 1)
    return float(places[(missed + taken).argmin()])
