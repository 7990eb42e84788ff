"""How class rows that are added to a head start: as the mean of their images' embeddings, or as a
head draws them at its own start.

Shapes: C the dataset's classes, k the added ones, n some of those, D the embedding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manyfaces.configs import rng
from manyfaces.data.dataset.index import file_sha256
from manyfaces.data.dataset.mixture import AnyDataset
from manyfaces.data.progress import ImageBar
from manyfaces.models.head.rows import initial
from manyfaces.train.checkpoint.checkpoint import COMMIT
from manyfaces.train.checkpoint.head_files import HeadFiles, Ints, initial_state, lengths

_PURPOSE = 0x4E4557  # keeps added rows apart from those that a head of the same seed began with


@dataclass(frozen=True)
class Newcomers:
    """What stands in each tensor for added classes: their means, scaled to `length`, or rows as the
    head draws them at its start."""

    like: dict[str, Tensor]
    seed: int
    unit: bool
    length: float
    means_kD: Tensor | None

    @classmethod
    def of(
        cls, checkpoint: Path, state: dict[str, Any], head: HeadFiles, means_kD: Tensor | None
    ) -> "Newcomers":
        # The commit tells this edit from all others: with the run's own seed, an added class could
        # start as the twin of one that has moved.
        seed = rng.key(_PURPOSE, state["seed"], int(file_sha256(checkpoint / COMMIT)[:16], 16))
        unit = "lengths" in head.like
        return cls(
            head.like,
            seed,
            unit,
            1.0 if unit or means_kD is None else _median_length(head),
            means_kD,
        )

    def __call__(self, name: str, numbers_n: Ints) -> Tensor:
        plane, lo, hi = name.partition(".")[2], int(numbers_n[0]), int(numbers_n[-1]) + 1
        dim = self.like["rows"].shape[1]
        rows_nD = initial(
            rng.key(self.seed, *plane.encode()), lo, hi, dim, torch.device("cpu"), unit=self.unit
        )[:-1]
        if self.means_kD is not None and not plane:
            mean_nD = self.means_kD[lo:hi]
            rows_nD = torch.where(mean_nD.any(1, keepdim=True), mean_nD * self.length, rows_nD)
        return initial_state(name, rows_nD.to(self.like["rows"].dtype), self.like[name])


def class_means(
    checkpoint: Path, dataset: AnyDataset, classes_k: Ints, counts: dict[str, int]
) -> Tensor:
    """Mean of the unit embeddings of each class's images, scaled to length 1, float32 [k, D]; zeros
    for a class without a whole image.

    What is forgotten is not read. Adds to `counts` the images, those that could not be decoded, and
    the classes without one.
    """
    # DALI takes a second to import, which fresh rows have no use for.
    from manyfaces.train.evaluation.embed import LeftOut, embed
    from manyfaces.train.evaluation.evaluate import load_trained

    config, backbone, device = load_trained(checkpoint)
    number_C = np.full(dataset.manifest.num_identities, -1)
    number_C[classes_k] = np.arange(len(classes_k))
    wanted_C, left_out = number_C >= 0, LeftOut()
    total = sum(
        int(wanted_C[part.first_class :][part.dataset.identity_N].sum()) for part in dataset.parts
    )
    sums_kD = torch.zeros(len(classes_k), config.model.embedding_dim)
    with ImageBar("embedding new identities", total) as bar:
        for embedded in embed(dataset, config, backbone, device, left_out, bar.count, wanted_C):
            sums_kD.index_add_(
                0, torch.from_numpy(number_C[embedded.labels_N]), embedded.unit_ND.cpu()
            )
    without = int((~sums_kD.any(1)).sum())
    counts |= {
        "images": total - left_out.forgotten,
        "undecodable": left_out.broken,
        "without an image": without,
    }
    return F.normalize(sums_kD)


def _median_length(head: HeadFiles) -> float:
    """Of the rows that stand for a class."""
    lengths_C = lengths(head)
    lengths_C = lengths_C[lengths_C > 0]
    return float(np.median(lengths_C.numpy())) if len(lengths_C) else 1.0
