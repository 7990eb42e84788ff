"""The network of a run, and which files of a checkpoint hold its weights: the backbone has a file
of its own, under its own names, so that it is evaluated and handed on without what trained it. The
fixed base of an adapted backbone is in no checkpoint, but its SHA-256."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.models.adapters import adapter
from manyfaces.models.adapters.adapter import adapt
from manyfaces.models.backbones.init import Matched, load_initial
from manyfaces.train.checkpoint.layout import (
    BACKBONE,
    BESIDE_BACKBONE,
    read_backbone,
    read_beside_backbone,
)
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.initial_weights import initial_file


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
        self.base_names = frozenset(_base(backbone))
        """The backbone's weights that no checkpoint holds."""

    def split(self, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What a checkpoint holds of the weights of `module` by name: those of the backbone under
        its own names, and the others."""
        backbone = {
            name.removeprefix(self.prefix): weight
            for name, weight in weights.items()
            if name.startswith(self.prefix)
        }
        beside = {name: w for name, w in weights.items() if not name.startswith(self.prefix)}
        return {name: w for name, w in backbone.items() if name not in self.base_names}, beside

    def load(self, checkpoint: Path, state: RunState) -> None:
        """Take the weights of a committed checkpoint with this state. Raises `UserError`."""
        _load_backbone(self.backbone, checkpoint, state)
        ours = self.split(self.module.state_dict())[1]
        theirs = read_beside_backbone(checkpoint)
        if differing := sorted(ours.keys() ^ theirs.keys()):
            raise UserError(
                f"{checkpoint}: besides the backbone it was trained with other weights than this "
                f"run's objective has ({differing[0]}); set `objective` as it was"
            )
        _load(self.module, {**self.module.state_dict(), **theirs}, checkpoint / BESIDE_BACKBONE)


def build_backbone(config: Config, *, fresh: bool) -> tuple[nn.Module, Matched | None]:
    """The backbone with the weights of `model.init`, and which of them were taken, where it starts
    `fresh` or is adapted; else with random ones, for those of a checkpoint to take their place.
    Raises `UserError`."""
    backbone: nn.Module = config.model.build(image_hw=config.data.image_hw)
    matched = None
    if config.model.init is not None and (fresh or config.model.adapters):
        matched = load_initial(backbone, initial_file(config.model.init))
    if config.model.adapters:
        adapt(backbone, config.model.adapters, config.data.image_hw)
        if random := sorted(_base(backbone).keys() - matched.matched if matched else ()):
            raise UserError(
                f"model.init {config.model.init}: has not all weights of the base that "
                f"model.adapters leave as they are, such as {random[0]}; give the weights of this "
                "very network, or model.adapters=[]"
            )
    return backbone, matched


def load_backbone(checkpoint: Path, state: RunState) -> nn.Module:
    """The backbone of a committed checkpoint with this state, on the CPU. Raises `UserError`."""
    backbone, _ = build_backbone(state.config, fresh=False)
    _load_backbone(backbone, checkpoint, state)
    return backbone


def base_sha256(backbone: nn.Module) -> str | None:
    """SHA-256 of the base of an adapted backbone; None for one that is not."""
    return adapter.base_sha256(backbone) if _base(backbone) else None


def _base(backbone: nn.Module) -> dict[str, nn.Parameter]:
    is_adapted = any(isinstance(module, adapter.Adapted) for module in backbone.modules())
    return adapter.base(backbone) if is_adapted else {}


def _load_backbone(backbone: nn.Module, checkpoint: Path, state: RunState) -> None:
    base = _base(backbone)
    if base and adapter.base_sha256(backbone) != state.base_sha256:
        raise UserError(
            f"{checkpoint}: its adapters belong to other base weights than those of model.init "
            f"{state.config.model.init}; give the file that the run was begun with"
        )
    weights = {name: p.detach() for name, p in base.items()} | read_backbone(checkpoint)
    _load(backbone, weights, checkpoint / BACKBONE)


def _load(module: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise UserError(f"{file}: does not fit the configuration: {told}") from error
