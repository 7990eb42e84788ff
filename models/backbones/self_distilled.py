"""A student and its teacher, the moving average of the student, each with a projection head."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.output import Output, as_output

PROJECTED, PATCHES = "projected", "patches"
"""The names of what the projection heads give among the embeddings: a row an image, and a row for
each hidden patch."""


class ProjectionHead(nn.Module):
    """Embeddings [N, dim] to cosines with prototypes [N, prototypes] (DINO, arXiv 2104.14294,
    appendix C): three layers with GELU, a unit vector, and a linear layer with weight normalisation
    whose lengths are fixed to 1."""

    def __init__(self, dim: int, hidden_dim: int, bottleneck_dim: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck_dim))
        """Their directions count alone."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        self.prototypes_are_fixed = False
        """The prototypes get a gradient of zero: as if they were frozen, in the same graph."""

    def forward(self, embeddings_ND: Tensor) -> Tensor:
        prototypes: Tensor = self.prototypes
        if self.prototypes_are_fixed:
            prototypes = prototypes.detach() + 0 * prototypes
        unit_NB = F.normalize(self.layers(embeddings_ND), dim=1)
        return F.linear(unit_NB, F.normalize(prototypes, dim=1).to(unit_NB.dtype))


class Projecting(nn.Module):
    """A backbone with a projection head on one of its embeddings and, where it is given, another on
    the tokens of hidden patches."""

    def __init__(
        self,
        backbone: nn.Module,
        head: ProjectionHead,
        branch: str,
        patch_head: ProjectionHead | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.branch = backbone, head, branch
        self.patch_head = patch_head
        self.hides = True
        """Whether the backbone does not see the patches whose tokens are looked at."""

    def forward(self, images_NCHW: Tensor, masked_NT: Tensor | None = None) -> Output:
        if masked_NT is not None and self.hides:
            output = as_output(self.backbone(images_NCHW, masked_NT=masked_NT))
        else:
            output = as_output(self.backbone(images_NCHW))
        taken_ND = output.embeddings.get(self.branch)
        dim = self.head.layers[0].in_features
        if taken_ND is None or taken_ND.shape[1] != dim:
            raise UserError(
                f"objective: the backbone has no embedding {self.branch!r} of {dim} numbers; set "
                "the objective's branch"
            )
        embeddings = {**output.embeddings, PROJECTED: self.head(taken_ND)}
        if masked_NT is not None:
            assert self.patch_head is not None
            assert output.tokens_NTD is not None
            embeddings[PATCHES] = self.patch_head(output.tokens_NTD[masked_NT])
        return output._replace(embeddings=embeddings)


class SelfDistilled(nn.Module):
    """Images [N, 3, height, width] to the `Output` of the student or, in a block of `as_teacher`,
    of the teacher, with the cosines of the projection head as the embedding `projected`.

    The teacher is a frozen copy. It computes as in evaluation, but for BatchNorm, which normalises
    by the batch as the student's does, and keeps running statistics of what the teacher sees.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: ProjectionHead,
        branch: str,
        patch_head: ProjectionHead | None = None,
    ) -> None:
        super().__init__()
        self.student = Projecting(backbone, head, branch, patch_head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher.hides = False
        self._shows_teacher = False
        self._masked_NT: Tensor | None = None
        self.train()

    def train(self, mode: bool = True) -> "SelfDistilled":
        super().train(mode)
        self.teacher.eval()
        for part in self.teacher.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.train(mode)
        return self

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """In this block the network is the teacher, and nothing has a gradient."""
        self._shows_teacher = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._shows_teacher = False

    @contextmanager
    def masking(self, masked_NT: Tensor) -> Iterator[None]:
        """In this block, of the images that are shown these patches are hidden from the student,
        bool, and their tokens go through the second head as the embedding `patches`, of student and
        teacher."""
        self._masked_NT = masked_NT
        try:
            yield
        finally:
            self._masked_NT = None

    def forward(self, images_NCHW: Tensor) -> Output:
        shown = self.teacher if self._shows_teacher else self.student
        return shown(images_NCHW, self._masked_NT)  # type: ignore[no-any-return]
