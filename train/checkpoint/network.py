"""The network of a run, and which files of a checkpoint hold its weights: the backbone has a file
of its own, under its own names, so that it is evaluated and handed on without what trained it."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.layout import (
    BACKBONE,
    BESIDE_BACKBONE,
    read_backbone,
    read_beside_backbone,
)


class Network:
    """What is trained by gradient: the backbone, and what an objective trains beside it.

    `module` has `backbone` as a part, or is it. Raises `UserError` where it does not.
    """

    def __init__(self, module: nn.Module, backbone: nn.Module) -> None:
        self.module, self.backbone = module, backbone
        names = [name for name, part in module.named_modules() if part is backbone]
        if not names:
            raise UserError(
                f"objective: the network, a {type(module).__name__}, does not have the backbone as "
                "a part; keep it as an attribute of the module that `network` returns"
            )
        self.prefix = f"{names[0]}." if names[0] else ""
        """What the names of the backbone's weights begin with in `module`."""

    def split(self, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights of `module` by name, as those of the backbone under its own names, and the
        others."""
        backbone = {
            name.removeprefix(self.prefix): weight
            for name, weight in weights.items()
            if name.startswith(self.prefix)
        }
        beside = {name: w for name, w in weights.items() if not name.startswith(self.prefix)}
        return backbone, beside

    def load(self, checkpoint: Path) -> None:
        """Take the weights of a committed checkpoint."""
        _load(self.backbone, read_backbone(checkpoint), checkpoint / BACKBONE)
        ours = self.split(self.module.state_dict())[1]
        theirs = read_beside_backbone(checkpoint)
        if differing := sorted(ours.keys() ^ theirs.keys()):
            raise UserError(
                f"{checkpoint}: besides the backbone it was trained with other weights than this "
                f"run's objective has ({differing[0]}); set `objective` as it was"
            )
        _load(self.module, {**self.module.state_dict(), **theirs}, checkpoint / BESIDE_BACKBONE)


def load_backbone(config: Config, checkpoint: Path) -> nn.Module:
    """The backbone of a committed checkpoint, on the CPU. Raises `UserError`."""
    backbone: nn.Module = config.model.build(image_hw=config.data.image_hw)
    _load(backbone, read_backbone(checkpoint), checkpoint / BACKBONE)
    return backbone


def _load(module: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise UserError(f"{file}: does not fit the configuration: {told}") from error
