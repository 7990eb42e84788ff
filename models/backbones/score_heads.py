"""Score heads: small layers beside a backbone, each of which gives one number about each image,
such as its quality.

Shapes: N images, D the embedding.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.output import Output, as_output


class ScoreHead(nn.Linear):
    """One linear layer from an embedding, as the backbone gives it and not normalised, to a number.
    It computes in float32 whatever the network runs in: bfloat16 has too few steps to order images
    by.

    `branch` names the embedding, `width` is D.
    """

    def __init__(self, branch: str, width: int) -> None:
        super().__init__(width, 1)
        self.branch = branch

    def forward(self, embeddings_ND: Tensor) -> Tensor:
        with torch.autocast(embeddings_ND.device.type, enabled=False):
            weight_1D, bias_1 = self.weight.float(), self.bias.float()
            return F.linear(embeddings_ND.float(), weight_1D, bias_1)[:, 0]


class Scored(nn.Module):
    """A network with score heads beside it, whose numbers its `Output` has among its `scores`."""

    def __init__(self, backbone: nn.Module, scores: Mapping[str, ScoreHead]) -> None:
        super().__init__()
        self.backbone = backbone
        self.scores = nn.ModuleDict(scores)

    def forward(self, images_NCHW: Tensor) -> Output:
        output = as_output(self.backbone(images_NCHW))
        scores = dict(output.scores)
        for name, head in self.scores.items():
            assert isinstance(head, ScoreHead)
            embeddings_ND = output.embeddings.get(head.branch)
            if embeddings_ND is None or embeddings_ND.shape[1] != head.in_features:
                raise UserError(
                    f"the score {name} is of an embedding {head.branch!r} of {head.in_features} "
                    f"numbers, and the backbone has {_told(output.embeddings)}; set the branch of "
                    "the objective that trains it"
                )
            scores[name] = head(embeddings_ND)
        return output._replace(scores=scores)


def scored(backbone: nn.Module, scores: Mapping[str, ScoreHead]) -> nn.Module:
    """The backbone with these score heads beside it, or itself where there are none."""
    return Scored(backbone, scores) if scores else backbone


def score_heads(network: nn.Module) -> dict[str, ScoreHead]:
    """The score heads in a network by the names of their scores."""
    return {
        name: head
        for part in network.modules()
        if isinstance(part, Scored)
        for name, head in part.scores.items()
        if isinstance(head, ScoreHead)
    }


def named_weights(heads: Mapping[str, ScoreHead]) -> dict[str, Tensor]:
    """The weights of score heads by the names that they have in a `Scored`."""
    return {
        f"scores.{name}.{part}": weight
        for name, head in heads.items()
        for part, weight in head.state_dict().items()
    }


def read_score_heads(
    weights: Mapping[str, Tensor], branches: Mapping[str, str]
) -> dict[str, ScoreHead]:
    """Score heads with the weights that a network which holds them has by name, wherever they stand
    in it. `branches` has the embedding that each score is of. Raises `KeyError` for the name of a
    weight that is not there."""
    found = {}
    for name, branch in branches.items():
        own = {part: _ending_in(weights, f"scores.{name}.{part}") for part in ("weight", "bias")}
        head = ScoreHead(branch, own["weight"].shape[1])
        head.load_state_dict(own)
        found[name] = head
    return found


def _ending_in(weights: Mapping[str, Tensor], ending: str) -> Tensor:
    for name, weight in weights.items():
        if f".{name}".endswith(f".{ending}"):
            return weight
    raise KeyError(ending)


def _told(embeddings: Mapping[str, Tensor]) -> str:
    told: Iterable[str] = (f"{name!r} of {each.shape[1]}" for name, each in embeddings.items())
    return ", ".join(told)
