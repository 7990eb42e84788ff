"""iBOT: DINO, and beside it hidden patches whose tokens are to be found."""

import inspect
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.errors import UserError
from manyfaces.configs.multi_crop import NUM_GLOBAL
from manyfaces.configs.objectives import ibot as schema
from manyfaces.configs.split import batch_share
from manyfaces.data.feed.loader import IGNORED, Batch
from manyfaces.models.backbones.output import Output, as_output
from manyfaces.models.backbones.self_distilled import PATCHES, SelfDistilled
from manyfaces.train.objectives.dino import DINO
from manyfaces.train.objectives.objective import (
    Forward,
    HeldByRank0,
    Loss,
    Moment,
    Setting,
    StatePart,
)
from manyfaces.train.objectives.token_masks import block_masks

_NUMBERS = 4
"""Sums that the ranks tell each other beside those of the prototypes."""


class IBOT(DINO):
    """DINO + `patch_weight` x the mean over global views and valid samples of the mean over a
    view's hidden patches of the cross-entropy between teacher and student (Zhou et al., arXiv
    2111.07832; a second head and the weights of DINOv2, arXiv 2304.07193). A view without hidden
    patches counts as 0.

    Collectives of a step: DINO's, and as many all-reduces again.
    """

    def __init__(self, settings: schema.IBOT, setting: Setting) -> None:
        super().__init__(settings, setting)
        self.masks = settings
        self.seed, self.image_hw = setting.config.run.seed, setting.config.data.image_hw
        self.patch_center_K = torch.zeros(settings.prototypes, device=setting.device)
        self.grid = (0, 0)
        """Rows and columns of a global view's patches."""

    def network(self, backbone: nn.Module) -> nn.Module:
        takes_masks = "masked_NT" in inspect.signature(backbone.forward).parameters
        tokens_NTD = _tokens(backbone, self.image_hw) if takes_masks else None
        if tokens_NTD is None:
            raise UserError(
                f"objective ibot: the network {type(backbone).__name__} cannot hide patches (its "
                "forward takes no masked_NT, or it returns no tokens); set model.kind=vit, or "
                "objective.kind=dino"
            )
        self.grid = _grid(tokens_NTD.shape[1], self.image_hw)
        heads = self.head(self.dim), self.head(tokens_NTD.shape[2])
        self.net = SelfDistilled(backbone, heads[0], self.settings.branch, heads[1])
        return self.net

    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        self.hold_prototypes(moment)
        masked_RT = self.masked(len(batch.labels_N), moment)
        taught, outputs = self._shown(forward, masked_RT)
        images = self.of_images(taught, outputs, batch, moment)
        return self._with_patches(images, taught, outputs[0], masked_RT, batch, moment)

    def dry_run(self, forward: Forward) -> Tensor:
        num_images = len(forward.images("global_0"))
        masked_RT = torch.zeros(NUM_GLOBAL * num_images, self.grid[0] * self.grid[1]).bool()
        masked_RT[:, 0] = True
        _, outputs = self._shown(forward, masked_RT.to(self.device))
        given = [each for output in outputs for each in output.embeddings.values()]
        return torch.stack([each.sum() for each in given]).sum() * 1e-6

    def masked(self, num_images: int, moment: Moment) -> Tensor:
        """The hidden patches of this rank's share of the batch, bool [2 N, T], view by view."""
        first, _ = batch_share(moment.batch_size, self.ranks.rank, self.ranks.world_size)
        positions_N = moment.position + first + np.arange(num_images)
        settings = self.masks
        views = [
            block_masks(
                self.seed,
                positions_N,
                view,
                self.grid,
                settings.mask_probability,
                settings.mask_ratio,
            )
            for view in range(NUM_GLOBAL)
        ]
        return torch.from_numpy(np.concatenate(views)).to(self.device)

    def _shown(self, forward: Forward, masked_RT: Tensor) -> tuple[Output, list[Output]]:
        """What the teacher makes of the global views, and what the student makes of the global
        ones, without the hidden patches, and of the local ones."""
        assert self.net is not None
        with self.net.masking(masked_RT):
            taught = self.show_teacher(forward)
            outputs = [forward.together(list(self.crops.global_views()))]
        if local := list(self.crops.local_views()):
            outputs.append(forward.together(local))
        return taught, outputs

    def _with_patches(
        self,
        images: Loss,
        taught: Output,
        output: Output,
        masked_RT: Tensor,
        batch: Batch,
        moment: Moment,
    ) -> Loss:
        """The loss of the images, and that of the patches beside it."""
        valid_R = (batch.labels_N != IGNORED).repeat(NUM_GLOBAL)
        of_row_M = masked_RT.nonzero()[:, 0]
        valid_M = valid_R[of_row_M]
        weight_M = valid_M / masked_RT.sum(1)[of_row_M]
        logits_MK = taught.embeddings[PATCHES]
        taught_MK = self.taught(logits_MK[None], self.patch_center_K, valid_M, moment)[0]
        log_MK = F.log_softmax(output.embeddings[PATCHES] / self.settings.student_temperature, 1)
        own = -((taught_MK * log_MK).double().sum(1) * weight_M).sum()
        entropy = (torch.special.entr(taught_MK).double().sum(1) * weight_M).sum()
        numbers = [own.detach(), entropy, valid_R.sum(), valid_M.sum()]
        outputs_K = (logits_MK.double() * valid_M[:, None]).sum(0)
        told = self.ranks.sum_(torch.cat([torch.stack([n.double() for n in numbers]), outputs_K]))
        loss, entropy, num_rows, num_patches = told[:_NUMBERS]
        num_rows = num_rows.clamp(min=1)
        if bool(num_patches):
            self.follow(self.patch_center_K, told[_NUMBERS:] / num_patches)
        factor = self.settings.weight * self.masks.patch_weight
        value = images.value + factor * loss / num_rows
        return replace(
            images,
            surrogate=images.surrogate + factor * own * self.ranks.world_size / num_rows,
            value=value,
            finite=images.finite & value.isfinite(),
            metrics={
                **images.metrics,
                "loss_patches": loss / num_rows,
                "patch_teacher_student_kl": (loss - entropy) / num_rows,
                "hidden_share": num_patches / (num_rows * masked_RT.shape[1]),
            },
        )

    def state(self) -> Mapping[str, StatePart]:
        return {**super().state(), "ibot": HeldByRank0({"center": self.patch_center_K})}


@torch.no_grad()
def _tokens(backbone: nn.Module, image_hw: tuple[int, int]) -> Tensor | None:
    """The tokens of an empty image."""
    was_training = backbone.training
    backbone.eval()
    output = as_output(backbone(torch.zeros(1, 3, *image_hw)))
    backbone.train(was_training)
    return output.tokens_NTD


def _grid(num_tokens: int, image_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of so many square patches of an image."""
    fitting = [(n, num_tokens // n) for n in range(1, num_tokens + 1) if num_tokens % n == 0]
    shape = image_hw[0] / image_hw[1]
    return min(fitting, key=lambda each: abs(np.log(each[0] / each[1] / shape)))
