"""DINO: a network learns from its own moving average, without labels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from manyfaces.configs.objectives import dino as schema
from manyfaces.data.feed.loader import IGNORED, Batch
from manyfaces.models.backbones.output import Output
from manyfaces.models.backbones.self_distilled import PROJECTED
from manyfaces.train.objectives.dino_loss import balanced, centred, cross_entropy, koleo
from manyfaces.train.objectives.objective import (
    Forward,
    HeldByRank0,
    Loss,
    Moment,
    Setting,
    StatePart,
)
from manyfaces.train.objectives.self_distillation import SelfDistillation, by_view

_NUMBERS = 4
"""Sums that the ranks tell each other beside those of the prototypes."""


class DINO(SelfDistillation):
    """The mean over the global batch of DINO's cross-entropy (Caron et al., arXiv 2104.14294), and
    of KoLeo. Samples without a whole image do not count; labels are not read otherwise.

    Collectives of a step: one all-reduce of two numbers a prototype, with KoLeo one all-gather of
    the embeddings, and with Sinkhorn-Knopp three all-reduces of one number a prototype.
    """

    def __init__(self, settings: schema.SelfDistillation, setting: Setting) -> None:
        super().__init__(settings, setting)
        self.settings = settings
        self.center_K = torch.zeros(settings.prototypes, device=setting.device)
        """Running mean of what the teacher's head gives."""

    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        self.hold_prototypes(moment)
        taught = self.show_teacher(forward)
        return self.of_images(taught, self.show_student(forward), batch, moment)

    def of_images(
        self, taught: Output, outputs: Sequence[Output], batch: Batch, moment: Moment
    ) -> Loss:
        """The loss of what the teacher makes of the global views, and the student of all."""
        valid_N = batch.labels_N != IGNORED
        logits_GNK = by_view(taught.embeddings[PROJECTED])
        taught_GNK = self.taught(logits_GNK, self.center_K, valid_N, moment)
        student_VNK = self.projected(outputs, len(valid_N))
        temperature = self.settings.student_temperature
        own = cross_entropy(student_VNK, taught_GNK, temperature, valid_N)
        (loss, entropy, num_valid, last), output_K, share_K = self._told(
            own.loss, own.teacher_entropy, logits_GNK, taught_GNK, valid_N, moment
        )
        num_valid = num_valid.clamp(min=1)
        self.follow(self.center_K, output_K / num_valid)
        weight = self.settings.weight
        value, surrogate = loss / num_valid, own.loss * self.ranks.world_size / num_valid
        metrics = {
            "loss_dino": value,
            "teacher_entropy": entropy / num_valid,
            "teacher_mean_entropy": torch.special.entr(share_K / num_valid).sum(),
            "teacher_student_kl": (loss - entropy) / num_valid,
        }
        if self.settings.koleo_weight:
            embeddings_GND = by_view(outputs[0].embeddings[self.settings.branch])
            spread = koleo(embeddings_GND, valid_N, self.ranks, moment.batch_size)
            metrics["loss_koleo"] = spread.detach()
            value = value + self.settings.koleo_weight * spread.detach()
            surrogate = surrogate + self.settings.koleo_weight * spread * self.ranks.world_size
        value = value * weight
        return Loss(
            surrogate=surrogate * weight,
            value=value,
            finite=value.isfinite(),
            last=last > 0,
            metrics=metrics,
        )

    def taught(
        self, logits_GNK: Tensor, center_K: Tensor, valid_N: Tensor, moment: Moment
    ) -> Tensor:
        """The probabilities that the student is to have."""
        temperature = self.teacher_temperature(moment.position)
        if self.settings.centring == "sinkhorn":
            rounds = schema.SINKHORN_ROUNDS
            return balanced(logits_GNK, temperature, valid_N, self.ranks, rounds)
        return centred(logits_GNK, center_K, temperature)

    def _told(
        self,
        loss: Tensor,
        entropy: Tensor,
        logits_GNK: Tensor,
        taught_GNK: Tensor,
        valid_N: Tensor,
        moment: Moment,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the valid samples of all ranks, float64: of loss, entropy, samples and ranks
        that end, and by prototype of the teacher's outputs and of its probabilities, each the mean
        over the global views. One all-reduce."""
        numbers = [loss.detach(), entropy, valid_N.sum(), loss.new_tensor(float(moment.last))]
        weights_N1 = valid_N.double()[:, None]
        sums = [(each.mean(0).double() * weights_N1).sum(0) for each in (logits_GNK, taught_GNK)]
        told = self.ranks.sum_(torch.cat([torch.stack([n.double() for n in numbers]), *sums]))
        output_K, share_K = told[_NUMBERS:].chunk(2)
        return told[:_NUMBERS], output_K, share_K

    def follow(self, center_K: Tensor, mean_K: Tensor) -> None:
        """Take a batch's mean output into the running one."""
        kept = self.settings.center_momentum
        center_K.mul_(kept).add_(mean_K.to(center_K.dtype), alpha=1 - kept)

    def state(self) -> Mapping[str, StatePart]:
        return {"dino": HeldByRank0({"center": self.center_K})}
