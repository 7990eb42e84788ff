"""How class rows that are added to a head start: as the mean of their images' embeddings, or as a head draws them at its own start.

Shapes: C the dataset's classes, k the added ones, n some of those, N the images of a batch, D the embedding.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manyfaces.configs import counter
from manyfaces.configs.schema import Config
from manyfaces.data.forget import read_forgotten
from manyfaces.data.index import file_sha256
from manyfaces.data.mixture import AnyDataset
from manyfaces.data.store import Stores
from manyfaces.data.write import run_parallel
from manyfaces.models.backbone import build, normalise
from manyfaces.models.rows import initial
from manyfaces.train.checkpoint import COMMIT, read_backbone
from manyfaces.train.head_files import PART_BYTES, HeadFiles, Ints, initial_state

BATCH_SIZE = 128
_PURPOSE = 0x4E4557  # keeps added rows apart from those that a head of the same seed began with


@dataclass(frozen=True)
class Newcomers:
    """What stands in each tensor for added classes: their means, scaled to `length`, or rows as the head draws them at its start."""

    like: dict[str, Tensor]
    seed: int
    unit: bool
    length: float
    means_kD: Tensor | None

    @classmethod
    def of(cls, checkpoint: Path, state: dict[str, Any], head: HeadFiles, means_kD: Tensor | None) -> "Newcomers":
        # The commit tells this edit from all others: with the run's own seed, an added class could start as the twin of one that has moved.
        seed = counter.key(_PURPOSE, state["seed"], int(file_sha256(checkpoint / COMMIT)[:16], 16))
        unit = "lengths" in head.like
        return cls(head.like, seed, unit, 1.0 if unit or means_kD is None else _median_length(head), means_kD)

    def __call__(self, name: str, numbers_n: Ints) -> Tensor:
        plane, lo, hi = name.partition(".")[2], int(numbers_n[0]), int(numbers_n[-1]) + 1
        dim = self.like["rows"].shape[1]
        rows_nD = initial(counter.key(self.seed, *plane.encode()), lo, hi, dim, torch.device("cpu"), unit=self.unit)[:-1]
        if self.means_kD is not None and not plane:
            mean_nD = self.means_kD[lo:hi]
            rows_nD = torch.where(mean_nD.any(1, keepdim=True), mean_nD * self.length, rows_nD)
        return initial_state(name, rows_nD.to(self.like["rows"].dtype), self.like[name])


@torch.no_grad()
def class_means(checkpoint: Path, state: dict[str, Any], dataset: AnyDataset, classes_k: Ints, counts: dict[str, int]) -> Tensor:
    """Mean of the unit embeddings of each class's images, scaled to length 1, float32 [k, D]; zeros for a class without a whole image.

    What is forgotten is not read. Adds to `counts` the images, those that could not be decoded, and the classes without one.
    """
    from manyfaces.data.decode import Decoder  # DALI takes a second to import, which fresh rows have no use for
    from manyfaces.train.embed import SOUND

    config = Config.model_validate(state["config"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    backbone = build(config.model, config.data.image_px)
    backbone.load_state_dict(read_backbone(checkpoint))
    backbone.to(device).eval()
    decode = Decoder(config.data.image_px, BATCH_SIZE + 1, threads=threads, device=device)
    number_C = np.full(dataset.manifest.num_identities, -1)
    number_C[classes_k] = np.arange(len(classes_k))
    wanted_C = number_C >= 0
    ids = np.concatenate(
        [p.first_sample + np.flatnonzero(wanted_C[p.first_class :][p.dataset.identity_N]) for p in dataset.parts], dtype=np.int64
    )
    ids = ids[~read_forgotten(dataset).among(dataset, ids)]
    sums_kD = torch.zeros(len(classes_k), config.model.embedding_dim)
    store = Stores(dataset)

    def embed(ids_N: Ints) -> int:
        decoded_NHWC, whole_N = decode([*store.read(ids_N), SOUND])
        images_NHWC, good_N = decoded_NHWC[:-1], whole_N[:-1]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16"):
            embeddings_ND = backbone(normalise(images_NHWC)).float()
        number_N = torch.from_numpy(number_C[dataset.labels(ids_N)[good_N]])
        sums_kD.index_add_(0, number_N, F.normalize(embeddings_ND).cpu()[torch.from_numpy(good_N)])
        return int((~good_N).sum())

    try:
        batches = [ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE)]
        broken = sum(run_parallel((partial(embed, batch) for batch in batches), [*map(len, batches)], "embedding new identities", 1))
    finally:
        store.close()
    counts |= {"images": len(ids), "undecodable": broken, "without an image": int((~sums_kD.any(1)).sum())}
    return F.normalize(sums_kD)


def _median_length(head: HeadFiles) -> float:
    """Of the rows that stand for a class."""
    dim = head.like["rows"].shape[1]
    part = max(1, PART_BYTES // (4 * dim))
    parts = (np.arange(lo, min(lo + part, head.num_classes)) for lo in range(0, head.num_classes, part))
    lengths_C = torch.cat([torch.linalg.vector_norm(head.take("rows", classes_n).float(), dim=1) for classes_n in parts])
    lengths_C = lengths_C[lengths_C > 0]
    return float(np.median(lengths_C.numpy())) if len(lengths_C) else 1.0
