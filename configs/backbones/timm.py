"""Backbone timm: any network of the library timm (PyTorch Image Models), by its name."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from manyfaces.configs.backbones.backbone import Channels, Cost, Transformer, WithNeck
from manyfaces.configs.kinds import Scalar
from manyfaces.configs.node import NOTHING, RESULTS

Pool = Literal["avg", "max", "avgmax", "token", "map", "flatten"]
UNIT_MEAN, UNIT_STD = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)

_WEIGHTS = "weights come from model.init alone"
_NOT_PASSED_ON = {
    "pretrained": _WEIGHTS,
    "pretrained_cfg": _WEIGHTS,
    "pretrained_cfg_overlay": _WEIGHTS,
    "pretrained_model_args": _WEIGHTS,
    "checkpoint_path": _WEIGHTS,
    "cache_dir": _WEIGHTS,
    "img_size": "set data.image_px",
    "num_classes": "set model.embedding_dim",
    "global_pool": "set model.pool",
    "drop_path_rate": "set model.drop_path",
    "in_chans": "images have three channels",
    "features_only": "the network's last features make the embedding",
}
"""Parameters of `timm.create_model` that are set elsewhere, and where."""


@dataclass(frozen=True)
class _Transformer:
    width: int
    depth: int


class _Shape(NamedTuple):
    """A vision transformer on images of one size."""

    width: int
    depth: int
    mlp_ratio: float
    patch_px: int
    patches: int
    tokens: int
    """Patches, class token and registers."""
    pooled: int
    """Vectors of which the embedding is made."""


_TRANSFORMERS = {
    "tiny": _Transformer(192, 12),
    "small": _Transformer(384, 12),
    "base": _Transformer(768, 12),
    "large": _Transformer(1024, 24),
    "huge": _Transformer(1280, 32),
}
_TRANSFORMER_NAME = re.compile(
    r"(?!.*_(?:plus|siglip|sapiens2|\d+x\d+)(?:_|$))"  # wider, deeper, or with more behind them
    rf"(?:vit|deit|deit3|beit|beitv2|eva02)_({'|'.join(_TRANSFORMERS)})_patch(\d+)_.*"
)


class Timm(WithNeck):
    """Any network of timm, with weights of Hugging Face's or timm's from a file (`init`) or with
    random ones. timm is an extra: `pip install manyfaces[timm]`.

    Its pooled features become the embedding by a linear layer and the neck. Hugging Face's ViT,
    DeiT, DINOv2, DINOv3, CLIP and SigLIP files are read; OpenAI's CLIP takes timm's
    `..._clip_quickgelu_...` names, DINOv3 `..._dinov3_qkvb` with `pool: token`.
    """

    kind: Literal["timm"] = "timm"
    target: ClassVar[str] = "manyfaces.models.backbones.timm.TimmBackbone"
    checkpointed_share: ClassVar[float] = 0.15  # of a vision transformer of 12 blocks

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)?$")]
    """timm's name for it, as `timm.list_models()` has them: `vit_base_patch14_dinov2`. Nothing is
    downloaded; a tag behind a dot (`.openai`) says whose mean and deviation the pixels have."""
    pool: Pool | None = None
    """How features of all positions become one vector. `flatten` gives each position weights of
    its own, as InsightFace's networks do; the others are timm's `global_pool`; null is the
    network's own."""
    drop_path: Annotated[float, Field(ge=0, lt=1), RESULTS] = 0.0
    """Largest rate of stochastic depth (timm's `drop_path_rate`)."""
    parameters: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    """What `timm.create_model` gets besides: `{depth: 6, patch_size: 8}`."""
    pixel_mean: Annotated[Channels, RESULTS] = UNIT_MEAN
    """Subtracted from the pixels (0 to 255) of each channel, red first. As long as this is 0 and
    `pixel_std` 255, the network itself goes on to the mean and deviation that timm has for the
    name; other numbers take their place."""
    pixel_std: Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], RESULTS] = UNIT_STD
    """What that difference is divided by."""
    num_parameters: Annotated[PositiveInt | None, NOTHING] = None
    """Its number of parameters, for the plan, which knows that of plain vision transformers
    (`vit_*_patch*`, `deit*`, `beit*`, `eva02*`, within 2 %) and is silent about others."""
    multiply_adds: Annotated[PositiveInt | None, NOTHING] = None
    """Multiply-adds of one image's forward pass, for the plan."""

    @field_validator("parameters")
    @classmethod
    def _passed_on(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        for name in parameters:
            if name in _NOT_PASSED_ON:
                raise ValueError(f"{name} is not for timm: {_NOT_PASSED_ON[name]}; leave it out")
        return parameters

    @property
    def takes_any_size(self) -> bool:
        """Where timm's transformer interpolates its positions (`parameters={dynamic_img_size:
        true}`), and no position has weights of its own."""
        return bool(self.parameters.get("dynamic_img_size")) and self.pool != "flatten"

    def cost(self, image_hw: tuple[int, int]) -> Cost:
        """What a plain vision transformer costs, or what the configuration says; zeros where
        neither is known, as the network would have to be built for it."""
        known = self._transformer_cost(image_hw)
        multiply_adds = self.multiply_adds or known.multiply_adds
        return Cost(
            self.num_parameters or known.parameters,
            multiply_adds,
            known.activations or multiply_adds // 100,
            known.float32_activations,
        )

    def transformer(self, image_hw: tuple[int, int]) -> Transformer:
        found = self._shape(image_hw)
        if found is None:
            return Transformer(0, 0, 0)
        embedding = found.pooled * found.width * self.embedding_dim
        embedding += self.neck_parameters(self.embedding_dim)
        return Transformer(found.depth, found.width, embedding)

    def _transformer_cost(self, image_hw: tuple[int, int]) -> Cost:
        """By the shapes that the name and the parameters give; zeros for other networks."""
        found = self._shape(image_hw)
        if found is None:
            return Cost(0, 0, 0)
        depth, width, ratio, tokens = found.depth, found.width, found.mlp_ratio, found.tokens
        patch, last = 3 * found.patch_px**2, found.pooled * width * self.embedding_dim
        block = (4 + 2 * ratio) * width * width
        parameters: float = (patch + 1 + tokens) * width + last
        parameters += self.neck_parameters(self.embedding_dim)
        parameters += depth * (block + (9 + ratio) * width)
        multiply_adds: float = found.patches * patch * width + last
        multiply_adds += depth * (tokens * block + 2 * tokens * tokens * width)
        shown = depth * tokens * width
        activations = round((8 + 2 * ratio) * shown)  # fused attention keeps no matrix
        return Cost(round(parameters), round(multiply_adds), activations, 2 * shown)

    def _shape(self, image_hw: tuple[int, int]) -> _Shape | None:
        """What the name and the parameters say; None of another network than a plain vision
        transformer."""
        found = _TRANSFORMER_NAME.fullmatch(self.name)
        if found is None:
            return None
        named = _TRANSFORMERS[found[1]]
        patch_px = int(self._number("patch_size", int(found[2])))
        patches = (image_hw[0] // patch_px) * (image_hw[1] // patch_px)
        return _Shape(
            width=int(self._number("embed_dim", named.width)),
            depth=int(self._number("depth", named.depth)),
            mlp_ratio=self._number("mlp_ratio", 4),
            patch_px=patch_px,
            patches=patches,
            tokens=patches + (5 if "_reg4" in self.name or "_dinov3" in self.name else 1),
            pooled=patches if self.pool == "flatten" else 1,
        )

    def _number(self, parameter: str, usual: float) -> float:
        """A number among the parameters; a list, or none, is as the name has it."""
        value = self.parameters.get(parameter, usual)
        return value if isinstance(value, int | float) else usual

    def arguments(self) -> dict[str, Any]:
        not_built = ("num_parameters", "multiply_adds")
        built = {k: v for k, v in super().arguments().items() if k not in not_built}
        own = (self.pixel_mean, self.pixel_std) == (UNIT_MEAN, UNIT_STD)
        return built | {"own_pixels": own}
