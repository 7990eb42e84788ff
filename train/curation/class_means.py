"""Where the images of classes lie: the means of their embeddings.

Shapes: C the dataset's classes, k some of them, D the embedding.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.progress import ImageBar
from manyfaces.train.checkpoint.head_files import Ints
from manyfaces.train.evaluation.embed_dataset import LeftOut, embed_dataset
from manyfaces.train.evaluation.trained import load_trained, use_all_cores

_BATCH_SIZE = 256


def class_means(
    checkpoint: Path, dataset: Dataset, classes_k: Ints, counts: dict[str, int]
) -> Tensor:
    """Mean of the unit embeddings of each class's images under the checkpoint's network, scaled to
    length 1, float32 [k, D]; zeros for a class without a whole image.

    What is forgotten is not read. Adds to `counts` the images, those that could not be decoded, and
    the classes without one.
    """
    use_all_cores()
    trained = load_trained(checkpoint)
    number_C = np.full(dataset.manifest.num_identities, -1)
    number_C[classes_k] = np.arange(len(classes_k))
    wanted_C, left_out = number_C >= 0, LeftOut()
    total = sum(int(wanted_C[part.first_class :][part.identity_N].sum()) for part in dataset.parts)
    sums_kD = torch.zeros(len(classes_k), trained.config.model.embedding_dim)
    embedder = trained.embedder(_BATCH_SIZE)
    with ImageBar("embedding new identities", total) as bar:
        for embedded in embed_dataset(dataset, embedder, left_out, bar.count, wanted_C):
            number_N = torch.from_numpy(number_C[embedded.labels_N])
            sums_kD.index_add_(0, number_N, embedded.unit_ND.cpu())
    counts |= {
        "images": total - left_out.forgotten,
        "undecodable": left_out.broken,
        "without an image": int((~sums_kD.any(1)).sum()),
    }
    return F.normalize(sums_kD)
