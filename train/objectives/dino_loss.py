"""The loss of DINO (arXiv 2104.14294), the balancing of Sinkhorn-Knopp and the KoLeo regulariser.

Shapes: V views, of which the first G = 2 are global, N samples of this rank, K prototypes, D
numbers of an embedding. The loss is over the global batch of all ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manyfaces.models.head.collectives import Ranks

_SMALLEST_DISTANCE = 1e-8
"""Added to distances before the logarithm, as the released DINOv2 has it."""


class CrossEntropy(NamedTuple):
    """Sums over the valid samples of this rank, float64."""

    loss: Tensor
    """[]: cross-entropies, each the mean over a sample's pairs of views; with a gradient for the
    student."""
    teacher_entropy: Tensor
    """[]: entropies of the teacher's softmax, each the mean over the global views."""


def cross_entropy(
    student_VNK: Tensor, teacher_GNK: Tensor, temperature: float, valid_N: Tensor
) -> CrossEntropy:
    """Between the teacher's probabilities of each global view and the student's softmax, at this
    temperature, of every other view: G (V - 1) pairs of views."""
    log_VNK = F.log_softmax(student_VNK / temperature, dim=2)
    num_views, num_global = len(log_VNK), len(teacher_GNK)
    # Each global view of the teacher meets the sum over all views of the student but its own.
    others_GNK = log_VNK.sum(0) - log_VNK[:num_global]
    each_N = -(teacher_GNK * others_GNK).double().sum((0, 2)) / (num_global * (num_views - 1))
    entropy_N = torch.special.entr(teacher_GNK).double().sum(2).mean(0)
    return CrossEntropy((each_N * valid_N).sum(), (entropy_N * valid_N).sum())


def centred(logits_GNK: Tensor, center_K: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities: a softmax behind the subtraction of the running mean."""
    return F.softmax((logits_GNK - center_K) / temperature, dim=2)


def balanced(
    logits_GNK: Tensor, temperature: float, valid_N: Tensor, ranks: Ranks, rounds: int
) -> Tensor:
    """The teacher's probabilities such that all prototypes get about as much of the batch of all
    ranks: `rounds` of Sinkhorn-Knopp (arXiv 1306.0895, as in SwAV, arXiv 2006.09882), each with one
    all-reduce of K numbers. `logits_GNK` are cosines, so that no exponential overflows."""
    shares_GNK = torch.exp(logits_GNK.double() / temperature) * valid_N[None, :, None]
    for _ in range(rounds):
        of_prototype_K = ranks.sum_(shares_GNK.sum((0, 1)))
        shares_GNK = shares_GNK / of_prototype_K.clamp(min=torch.finfo(torch.float64).tiny)
        of_sample_GN1 = shares_GNK.sum(2, keepdim=True)
        shares_GNK = shares_GNK / of_sample_GN1.clamp(min=torch.finfo(torch.float64).tiny)
    return shares_GNK.to(logits_GNK.dtype)


def koleo(embeddings_GND: Tensor, valid_N: Tensor, ranks: Ranks, batch_size: int) -> Tensor:
    """Minus the mean over global views and valid samples of the logarithm of the distance between a
    sample's unit embedding and its nearest in the global batch (arXiv 1806.03198), float64. Every
    rank has the value of all, with its own samples' gradient. One all-gather.

    A batch with fewer than two valid samples has 0.
    """
    num_global, num_own, dim = embeddings_GND.shape
    unit_GND = F.normalize(embeddings_GND, dim=2)
    flat = unit_GND.transpose(0, 1).reshape(num_own, num_global * dim)
    padded = -(-batch_size // ranks.world_size)
    sent = torch.cat([flat.detach(), valid_N[:, None].to(flat.dtype)], 1)
    told = ranks.gather(sent, padded, 0.0)
    first = ranks.rank * padded
    whole = torch.cat([told[:first, :-1], flat, told[first + num_own :, :-1]])
    kept = told[:, -1] > 0
    whole = whole[kept].view(-1, num_global, dim).transpose(0, 1)
    if whole.shape[1] < 2:
        return flat.double().sum() * 0
    with torch.no_grad():
        cosines_GMM = whole @ whole.transpose(1, 2)
        cosines_GMM.diagonal(dim1=1, dim2=2).fill_(-2)
        nearest_GM1 = cosines_GMM.argmax(2, keepdim=True).expand(-1, -1, dim)
    apart = (whole - whole.gather(1, nearest_GM1)).double()
    distance_GM = (apart.square().sum(2) + _SMALLEST_DISTANCE**2).sqrt()
    return -(distance_GM + _SMALLEST_DISTANCE).log().mean()
