"""ARoFace: a margin softmax on faces of which some are warped against the network.

Shapes: N this rank's images of a batch, n those of them that are warped, B the global batch.
"""

from functools import partial

import torch
from torch import Tensor

from manyfaces.configs import rng
from manyfaces.configs.objectives import aroface as schema
from manyfaces.configs.split import batch_share
from manyfaces.data.feed.loader import IGNORED, Batch
from manyfaces.models.head.exchange import Exchange, JointBatch
from manyfaces.train.objectives.margin_softmax import MarginSoftmax
from manyfaces.train.objectives.objective import Forward, Moment, Setting
from manyfaces.train.objectives.warp import warped

_VIEW = "main"


class ARoFace(MarginSoftmax):
    """Margin softmax on a batch of which a share is scaled, turned and shifted by one step of
    gradient ascent on the loss, by its sign alone (Saadabadi et al., ECCV 2024). Each image's warp
    is a function of the run's seed and its place in the stream, whatever the number of ranks, but
    for what rounding does to a gradient's sign."""

    def __init__(self, settings: schema.ARoFace, setting: Setting) -> None:
        super().__init__(settings.weight, settings.branch, setting)
        self.settings = settings
        self.draw_key = partial(rng.key, setting.config.run.seed, rng.Stream.WARP)

    def prefetch(self, forward: Forward, batch: Batch, moment: Moment) -> None:
        images_NHWC = forward.images(_VIEW)
        chosen_n, start_n4, step = self.drawn(moment)
        chosen_n, start_n4 = chosen_n.to(images_NHWC.device), start_n4.to(images_NHWC.device)
        plain_nHWC = images_NHWC[chosen_n].float()
        gradient_n4 = self.gradient(forward, batch, moment, chosen_n, plain_nHWC, start_n4)
        warps_n4 = self.ascended(start_n4, gradient_n4, step)
        # A loss that is no number is told by the step itself.
        shown_nHWC = warped(plain_nHWC, warps_n4).nan_to_num().round_().clamp_(0, 255)
        shown_NHWC = images_NHWC.clone()
        shown_NHWC[chosen_n] = shown_nHWC.to(torch.uint8)
        forward.show(_VIEW, shown_NHWC)
        super().prefetch(forward, batch, moment)

    def drawn(self, moment: Moment) -> tuple[Tensor, Tensor, float]:
        """Which of this rank's images are warped, int64 [n], where their warps start, float32 [n,
        4], and how far these go. At least one is warped on each rank."""
        generator = torch.Generator().manual_seed(self.draw_key(moment.position) >> 1)
        drawn_X = torch.randn(4 * moment.batch_size + 1, generator=generator)
        step = self.settings.step + self.settings.jitter * float(drawn_X[-1])
        start_B4 = drawn_X[:-1].view(-1, 4) * self.settings.start
        start_B4[:, 0] += 1
        offset = float(torch.rand((), generator=generator))
        places_B = torch.arange(moment.batch_size + 1, dtype=torch.float64)
        counts_B = ((places_B + offset) * self.settings.share).floor()
        ranks = self.head.ranks
        first, after = batch_share(moment.batch_size, ranks.rank, ranks.world_size)
        chosen_n = (counts_B.diff()[first:after] > 0).nonzero().flatten()
        if not len(chosen_n):
            chosen_n = torch.zeros(1, dtype=torch.int64)
        return chosen_n, start_B4[first:after][chosen_n], step

    def gradient(
        self,
        forward: Forward,
        batch: Batch,
        moment: Moment,
        chosen_n: Tensor,
        plain_nHWC: Tensor,
        start_n4: Tensor,
    ) -> Tensor:
        """The direction in which the loss of the warped images grows, float32 [n, 4], for the class
        centres as they are. Collective."""
        warps_n4 = start_n4.clone().requires_grad_()
        labels_N = torch.full_like(batch.labels_N, IGNORED)
        labels_N[chosen_n] = batch.labels_N[chosen_n]
        head = self.head
        with forward.trial(warped(plain_nHWC, warps_n4)) as output:
            embeddings_nD = forward.branch_of(output, self.branch)
            embeddings_ND = embeddings_nD.new_zeros(len(labels_N), embeddings_nD.shape[1])
            embeddings_ND = embeddings_ND.index_copy(0, chosen_n, embeddings_nD)
            exchange = Exchange(head.ranks, moment.batch_size, head.wire_dtype)
            joint = JointBatch(exchange, embeddings_ND, exchange.tell(labels_N, last=False))
            loss, d_unit_BD, _ = head.step_shared(
                exchange, joint.shared, lr=0.0, position=moment.position, peek=True
            )
            surrogate = joint.surrogate(d_unit_BD, loss.d_norm_B, loss.active_B)
            (gradient_n4,) = torch.autograd.grad(surrogate, warps_n4)
        return gradient_n4

    def ascended(self, start_n4: Tensor, gradient_n4: Tensor, step: float) -> Tensor:
        """The warps a step further, within their ranges."""
        settings = self.settings
        down, up = settings.scale_range
        scale_n, *others = (start_n4 + step * gradient_n4.sign().nan_to_num()).unbind(1)
        start_n = start_n4[:, 0]
        scale_n = torch.minimum(torch.maximum(scale_n, start_n + down), start_n + up)
        limits = settings.most_angle, settings.most_shift, settings.most_shift
        kept = [each.clamp(-most, most) for each, most in zip(others, limits, strict=True)]
        return torch.stack([scale_n, *kept], 1)
