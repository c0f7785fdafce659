"""MELO's vector database (Yu et al. 2024): clusters of keys that tell which block a prompt uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
