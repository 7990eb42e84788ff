"""Distillation by embeddings: the student's are to be those of a trained network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.errors import UserError
from manyfaces.configs.objectives import distill as schema
from manyfaces.data.feed.loader import IGNORED, Batch
from manyfaces.models.backbones.output import Output, as_output
from manyfaces.models.head.collectives import Ranks
from manyfaces.train.objectives.objective import Forward, Loss, Moment, Objective, Setting


class Distill(Objective):
    """The mean over the global batch of the distance between a sample's embedding and its
    teacher's (Hinton et al., arXiv 1503.02531, on embeddings instead of logits). The teacher sees
    what the student sees, augmented alike, and never changes."""

    tells_last = True

    def __init__(self, settings: schema.Distill, setting: Setting) -> None:
        self.settings = settings
        self.teacher = setting.open_encoder(settings.teacher)
        self.ranks = Ranks(setting.group)
        self.widths = setting.config.model.embedding_dim, self.teacher.model.embedding_dim
        self.branch = settings.branch
        """The embedding that is compared with the teacher's."""

    @property
    def is_mapped(self) -> bool:
        """Whether the student's embeddings have another width than the teacher's."""
        return self.widths[0] != self.widths[1]

    def network(self, backbone: nn.Module) -> nn.Module:
        if not self.is_mapped:
            return backbone
        # Several objectives of a sum may map the same branch.
        before = sum(isinstance(part, Mapped) for part in backbone.modules())
        self.branch = f"{self.settings.branch} mapped for teacher {before}"
        return Mapped(backbone, self.settings.branch, self.branch, self.widths)

    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        embeddings_ND = forward.embeddings(self.branch)
        taught_ND = forward.through(self.teacher.embed)
        if embeddings_ND.shape != taught_ND.shape:
            raise UserError(
                f"objective distill: the branch {self.settings.branch} has {embeddings_ND.shape[1]}"
                f" numbers and the teacher's embeddings {taught_ND.shape[1]}; give a branch of "
                "model.embedding_dim numbers"
            )
        valid_N = batch.labels_N != IGNORED
        if self.settings.loss == "cosine":
            distance_N = 1 - F.cosine_similarity(embeddings_ND, taught_ND)
        else:
            distance_N = (embeddings_ND - taught_ND).square().mean(1)
        own = (distance_N * valid_N).double().sum() * self.settings.weight
        told = torch.stack([own.detach(), valid_N.sum(), own.new_tensor(float(moment.last))])
        whole, num_valid, last = self.ranks.sum_(told)
        num_valid = num_valid.clamp(min=1)
        value = whole / num_valid
        return Loss(
            surrogate=own * self.ranks.world_size / num_valid,
            value=value,
            finite=value.isfinite(),
            last=last > 0,
        )


class Mapped(nn.Module):
    """A backbone with a linear map of one of its embeddings to another width beside it.

    `branch` is the embedding that is mapped, `mapped` the name of what comes out, `widths` are
    those of both.
    """

    def __init__(
        self, backbone: nn.Module, branch: str, mapped: str, widths: tuple[int, int]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.map = nn.Linear(*widths, bias=False)
        self.branch, self.mapped = branch, mapped

    def forward(self, images_NCHW: Tensor) -> Output:
        output = as_output(self.backbone(images_NCHW))
        taken_ND = output.embeddings.get(self.branch)
        if taken_ND is None or taken_ND.shape[1] != self.map.in_features:
            raise UserError(
                f"objective distill: the backbone has no embedding {self.branch!r} of "
                f"{self.map.in_features} numbers; set the objective's branch"
            )
        return output._replace(embeddings={**output.embeddings, self.mapped: self.map(taken_ND)})
