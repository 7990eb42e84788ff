"""The network of a run, and which files of a checkpoint hold its weights: the backbone has a file
of its own, under its own names, so that it is evaluated and handed on without what trained it. The
fixed base of an adapted backbone is in no checkpoint, but its SHA-256."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.models.adapters import adapter
from manyfaces.models.backbones.init import Matched, load_initial
from manyfaces.models.backbones.score_heads import (
    ScoreHead,
    read_score_heads,
    score_heads,
    scored,
)
from manyfaces.train.checkpoint.layout import (
    BACKBONE,
    BESIDE_BACKBONE,
    read_backbone,
    read_beside_backbone,
)
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.initial_weights import initial_file


class Built(NamedTuple):
    """A backbone as a run builds it."""

    backbone: nn.Module
    matched: Matched | None
    """Which weights `model.init` gave it, where they were read."""
    base_sha256: str | None
    """SHA-256 of the base that a checkpoint does not hold, as its file has it; None without
    adapters."""


class Network:
    """What is trained by gradient: the backbone, and what an objective trains beside it.

    `module` has the built backbone as a part, or is it; `evaluated` is another part that stands for
    it in evaluation, export and checkpoints. Raises `UserError` where it does not.
    """

    def __init__(self, module: nn.Module, built: Built, evaluated: nn.Module | None = None) -> None:
        self.module, self.built = module, built
        self.backbone = built.backbone if evaluated is None else evaluated
        """What is evaluated, and has the backbone's file: the built one, or a copy of it."""
        names = [name for name, part in module.named_modules() if part is self.backbone]
        if not names:
            raise UserError(
                f"objective: the network, a {type(module).__name__}, does not have the backbone as "
                "a part; keep it as an attribute of the module that `network` returns"
            )
        self.prefix = f"{names[0]}." if names[0] else ""
        """What the names of the backbone's weights begin with in `module`."""
        is_adapted = built.base_sha256 is not None
        self.base_names = frozenset(adapter.base(self.backbone) if is_adapted else ())
        """The backbone's weights that no checkpoint holds."""

    def backbone_in(self, copy: nn.Module) -> nn.Module:
        """The backbone of a copy of `module`."""
        return copy.get_submodule(self.prefix.removesuffix("."))

    def evaluated_in(self, copy: nn.Module) -> nn.Module:
        """What is evaluated of a copy of `module`: its backbone, with the score heads that stand in
        it."""
        return scored(self.backbone_in(copy), score_heads(copy))

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

    def load(self, checkpoint: Path, state: RunState, init: str | None) -> None:
        """Take the weights of a committed checkpoint with this state; `init` is the `model.init` of
        the run that takes them. Raises `UserError`."""
        _load_backbone(self.built._replace(backbone=self.backbone), checkpoint, state, init)
        ours = self.split(self.module.state_dict())[1]
        theirs = read_beside_backbone(checkpoint)
        if differing := sorted(ours.keys() ^ theirs.keys()):
            raise UserError(
                f"{checkpoint}: besides the backbone it was trained with other weights than this "
                f"run's objective has ({differing[0]}); set `objective` as it was"
            )
        _load(self.module, {**self.module.state_dict(), **theirs}, checkpoint / BESIDE_BACKBONE)


def build_backbone(config: Config, *, fresh: bool) -> Built:
    """The backbone on the CPU, with the weights of `model.init` where it starts `fresh` or is
    adapted; else with random ones, for those of a checkpoint to take their place. Raises
    `UserError`."""
    backbone: nn.Module = config.model.build(image_hw=config.data.image_hw)
    init, adapters, matched = config.model.init, config.model.adapters, None
    if init is not None and (fresh or adapters):
        matched = load_initial(backbone, initial_file(init))
    if not adapters or matched is None:
        return Built(backbone, matched, None)
    adapter.adapt(backbone, adapters, config.data.image_hw)
    base = adapter.base(backbone)
    if random := sorted(base.keys() - matched.read):
        raise UserError(
            f"model.init {init}: has not all weights of the base that model.adapters leave as they "
            f"are, such as {random[0]}; give the weights of this very network, or "
            "model.adapters=[]"
        )
    digest = adapter.weights_sha256({name: matched.read[name] for name in base})
    return Built(backbone, matched, digest)


def load_backbone(checkpoint: Path, state: RunState) -> nn.Module:
    """The backbone of a committed checkpoint with this state, on the CPU. Raises `UserError`."""
    built = build_backbone(state.config, fresh=False)
    _load_backbone(built, checkpoint, state, state.config.model.init)
    return built.backbone


def load_score_heads(checkpoint: Path, state: RunState) -> dict[str, ScoreHead]:
    """The score heads of a committed checkpoint with this state by their names, on the CPU. Raises
    `UserError`."""
    branches = state.config.objective.score_branches()
    if not branches:
        return {}
    try:
        return read_score_heads(read_beside_backbone(checkpoint), branches)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{checkpoint / BESIDE_BACKBONE}: has not the weights of the scores "
            f"{', '.join(branches)} as its configuration has them ({error})"
        ) from error


def _load_backbone(built: Built, checkpoint: Path, state: RunState, init: str | None) -> None:
    if built.base_sha256 != state.base_sha256:
        raise UserError(
            f"{checkpoint}: its adapters belong to the base weights that were at "
            f"{state.config.model.init}, and those of model.init {init} are others; give the file "
            "that the run was begun with"
        )
    base = adapter.base(built.backbone) if built.base_sha256 else {}
    weights = {name: p.detach() for name, p in base.items()} | read_backbone(checkpoint)
    _load(built.backbone, weights, checkpoint / BACKBONE)


def _load(module: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise UserError(f"{file}: does not fit the configuration: {told}") from error
