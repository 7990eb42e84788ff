"""Backbone timm: a network of timm by its name, with our embedding layer behind its features.

The one file that knows timm, which is an optional extra and is imported when such a backbone is
built. Nothing is ever downloaded: a network starts with random weights, or with those of a file
(`model.init`).
"""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.backbone import Backbone
from manyfaces.models.backbones.hugging_face import timm_names
from manyfaces.models.backbones.neck import build_neck
from manyfaces.models.backbones.output import Output

FLATTEN = "flatten"
_TRUNK = "trunk."
_TABLE = ".relative_position_bias_table"
_OTHERWISE = ((".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2"), ("norm.", "fc_norm."))
"""Names of timm's vision transformers, and what some of them have in their place: EVA's and
DINOv3's layer scales, and the last norm where it stands behind an average."""


@cache
def library() -> Any:
    """The module timm. Raises `UserError` where it is not installed."""
    try:
        _import_torchvision()
        import timm
        import timm.layers
        import timm.models
    except ModuleNotFoundError as error:
        if error.name not in ("timm", "torchvision"):
            raise
        raise UserError(
            f"model.kind timm: {error.name} is not installed; pip install 'manyfaces[timm]' on "
            "every machine of the run"
        ) from error
    return timm


def _import_torchvision() -> None:
    """Import torchvision, as timm does. Built for CUDA, it cannot load its own operators beside a
    CPU build of torch, and then fails to register what belongs to them; timm calls none of them, so
    their schemas are enough."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
        import torchvision  # noqa: F401


class TimmBackbone(Backbone):
    """Images [N, 3, height, width], floats, to embeddings [N, embedding_dim] and, where timm's
    network has tokens, those of the image's patches, row by row; `image_hw` is (height, width) in
    pixels.

    `own_pixels` says that images come in 0 to 1, and that the network itself normalises them with
    the mean and deviation that timm has for the name. Weights that the embedding does not depend on
    (of a pooling that is not used) are frozen. Raises `UserError` where timm is missing, does not
    know the name, or cannot build it with these `parameters` for images of this size.
    """

    mean: Tensor
    """Mean of the pixels from 0 to 1 by channel, [3, 1, 1]."""
    std: Tensor

    def __init__(
        self,
        name: str,
        embedding_dim: int = 512,
        pool: str | None = None,
        drop_path: float = 0.0,
        parameters: Mapping[str, Any] | None = None,
        own_pixels: bool = True,
        neck: str = "batchnorm",
        image_hw: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__()
        _refuse_unknown(name)
        given = dict(parameters or {})
        if drop_path:
            given["drop_path_rate"] = drop_path
        if pool is not None:
            given["global_pool"] = "" if pool == FLATTEN else pool
        self.flatten = pool == FLATTEN
        try:
            self.trunk = _created(name, given, image_hw)
            num_features = self._look(image_hw)
        except Exception as error:  # timm's networks raise whatever they meet first
            text = " ".join(str(error).split()) or "refused"
            words = ", ".join(f"{key}={value!r}" for key, value in given.items())
            raise UserError(
                f"model.name: timm cannot build {name}({words}) for images of {image_hw[0]} x "
                f"{image_hw[1]} px: {type(error).__name__}: {text}; its own size is "
                f"{_own_px(name)} px; change data.image_px, model.pool or model.parameters"
            ) from error
        linear = nn.Linear(num_features, embedding_dim, bias=False)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        self.feature = nn.Sequential(linear, build_neck(neck, embedding_dim, eps=2e-5))
        self.own_pixels = own_pixels
        for word in ("mean", "std"):
            values = torch.tensor(self.trunk.pretrained_cfg[word]).view(-1, 1, 1)
            self.register_buffer(word, values, persistent=False)

    def _look(self, image_hw: tuple[int, int]) -> int:
        """The number of features of an image of this size, found with an empty one."""
        was_training = self.trunk.training
        self.trunk.eval()
        with torch.enable_grad():
            pooled_ND = self._pooled(self.trunk.forward_features(torch.zeros(1, 3, *image_hw)))
        self.trunk.train(was_training)
        used = _parameters_behind(pooled_ND)
        for parameter in self.trunk.parameters():
            if id(parameter) not in used:
                parameter.requires_grad_(False)
        return pooled_ND.shape[1]

    def _pooled(self, features: Any) -> Tensor:
        """The vector of each image, [N, D], from timm's features."""
        if not self.flatten:
            pooled: Tensor = self.trunk.forward_head(features, pre_logits=True)
            return pooled.flatten(1)
        if not isinstance(features, Tensor) or features.ndim < 3:
            raise ValueError("its features have no positions to flatten")
        tokens_NTD = self._tokens(features)
        return (features if tokens_NTD is None else tokens_NTD).flatten(1)

    def _tokens(self, features: Any) -> Tensor | None:
        """The tokens of the image's patches, without class token and registers; None for maps."""
        if not isinstance(features, Tensor) or features.ndim != 3:
            return None
        return features[:, getattr(self.trunk, "num_prefix_tokens", 0) :]

    def embedding_layers(self) -> list[nn.Module]:
        return [self.feature]

    def list_blocks(self) -> list[nn.Module]:
        """The largest numbered parts that are one layer to timm."""
        if not hasattr(self.trunk, "group_matcher"):
            return []
        models = library().models
        matcher = self.trunk.group_matcher(coarse=False)
        return _numbered(self.trunk, models.group_parameters(self.trunk, matcher, reverse=True), "")

    def our_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's networks, and Hugging Face's vision transformers."""
        here = self.trunk.state_dict().keys()
        choices = (dict(weights), timm_names(weights))
        theirs = max(choices, key=lambda each: len(each.keys() & here))
        if getattr(self.trunk, "no_embed_class", False):
            _fold_class_position(theirs)
        ours: dict[str, Tensor] = {}
        for name, weight in theirs.items():
            for usual, other in _OTHERWISE:
                if name not in here and name.replace(usual, other) in here:
                    name = name.replace(usual, other)
            ours[_TRUNK + name if name in here else name] = weight
        return ours

    def resized(self, name: str, weight: Tensor) -> Tensor | None:
        """Positions of another image size, patches and windows of another size, interpolated as
        timm does."""
        here, layers = self.state_dict()[name], library().layers
        owner = self.get_submodule(name.rpartition(".")[0])
        grid = getattr(getattr(self.trunk, "patch_embed", None), "grid_size", None)
        resized: Tensor | None = None
        if name == "trunk.pos_embed" and grid is not None and _same_ends(weight, here):
            prefix = here.shape[1] - grid[0] * grid[1]
            if _is_square(weight.shape[1] - prefix):
                resized = layers.resample_abs_pos_embed(
                    weight, list(grid), num_prefix_tokens=prefix
                )
        elif name == "trunk.patch_embed.proj.weight" and weight.shape[:2] == here.shape[:2]:
            resized = layers.resample_patch_embed(weight, list(here.shape[2:]))
        elif name.endswith(_TABLE) and weight.ndim == 2 and weight.shape[1] == here.shape[1]:
            window = owner.window_size
            resized = layers.resize_rel_pos_bias_table_simple(weight, window, here.shape)
        return resized

    def forward(self, images_NCHW: Tensor) -> Output:
        if self.own_pixels:
            images_NCHW = (images_NCHW - self.mean) / self.std
        features = self.trunk.forward_features(images_NCHW)
        return Output({"main": self.feature(self._pooled(features))}, self._tokens(features))


def _refuse_unknown(name: str) -> None:
    """Raise `UserError` for a name, or a tag behind it, that timm does not have."""
    timm = library()
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        names = timm.list_models(f"{architecture}.*", pretrained=True)
        if not tag or name in names:
            return
    else:
        names = timm.list_models()
    near = get_close_matches(name, names, 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() has them all"
    raise UserError(f"model.name {name}: timm {timm.__version__} has no such network; {hint}")


def _created(name: str, given: Mapping[str, Any], image_hw: tuple[int, int]) -> Any:
    """timm's network without a classifier and with random weights."""
    create = library().create_model
    try:
        return create(name, pretrained=False, num_classes=0, img_size=image_hw, **given)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return create(name, pretrained=False, num_classes=0, **given)  # it takes images of any size


def _own_px(name: str) -> str:
    """Height and width of the images that the network of this name is made for."""
    return " x ".join(map(str, library().get_pretrained_cfg(name).input_size[1:]))


def _parameters_behind(tensor: Tensor) -> set[int]:
    """The ids of all parameters that get a gradient from this tensor."""
    todo, seen, found = [tensor.grad_fn], set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        todo += [before for before, _ in node.next_functions]
    return found


def _numbered(module: nn.Module, layer_of: Mapping[str, int], prefix: str) -> list[nn.Module]:
    """The largest modules inside with a number for a name whose parameters all belong to one layer
    of `layer_of`, in order."""
    found: list[nn.Module] = []
    for child_name, child in module.named_children():
        path = f"{prefix}{child_name}"
        layers = {layer_of[f"{path}.{name}"] for name, _ in child.named_parameters()}
        if len(layers) == 1 and child_name.isdigit():
            found.append(child)
        elif len(layers) > 1:
            found += _numbered(child, layer_of, f"{path}.")
    return found


def _fold_class_position(weights: dict[str, Tensor]) -> None:
    """Where the positions include the class token's, add that to the token: networks with registers
    have positions for patches only in timm, and one more in other files."""
    positions = weights.get("pos_embed")
    if positions is None or "cls_token" not in weights or _is_square(positions.shape[1]):
        return
    weights["cls_token"] = weights["cls_token"] + positions[:, :1]
    weights["pos_embed"] = positions[:, 1:]


def _same_ends(one: Tensor, other: Tensor) -> bool:
    """Whether both are [1, T, width] of the same width."""
    return one.ndim == other.ndim == 3 and one.shape[::2] == other.shape[::2]


def _is_square(number: int) -> bool:
    return number > 0 and isqrt(number) ** 2 == number
