"""A trained network for programs: images in, embeddings and similarities out.

Shapes: N images, D the embedding, H and W the height and width of the images.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.source import Dropped
from manyfaces.models.backbones.channels import Channels
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import as_output
from manyfaces.train.evaluation.decoding import decodable
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.encoders import open_encoder, parse_backbone
from manyfaces.train.evaluation.result import Encoded
from manyfaces.train.evaluation.trained import default_device

Image = NDArray[np.uint8] | str | PathLike[str] | bytes
"""uint8 RGB [H, W, 3], the path of an image file, or the bytes of one."""


class Model:
    """A trained network with the preprocessing that it was trained with.

    Images should be aligned as those were that it was trained on; of another size, they are
    resized. Encoded images are decoded as in training and evaluation, whose figures are so
    reproduced.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._kept: Embedder | None = None

    @classmethod
    def open(
        cls,
        source: str | PathLike[str],
        device: str | None = None,
        model: Any = None,
        channels: Channels | None = None,
    ) -> "Model":
        """As `manyfaces.train.load_model`."""
        chosen = device or str(default_device())
        try:
            there = torch.zeros(0, device=chosen).device
        except (RuntimeError, AssertionError) as error:
            text = str(error).partition("\n")[0]
            raise UserError(f"device {chosen}: cannot be used ({text})") from error
        return cls(open_encoder(Path(source), there, parse_backbone(model), channels))

    @cached_property
    def module(self) -> nn.Module:
        """The network in plain torch, in evaluation mode: from floats [N, 3, H, W], as `preprocess`
        makes them, to embeddings [N, D]. Raises `UserError` for an ONNX file."""
        if self.encoder.is_graph:
            raise UserError(
                "model.module: an ONNX file holds no network of torch's; use model.embed, or load "
                "the run or its export as safetensors"
            )
        return MainEmbedding(self.encoder.backbone)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the images that the network takes."""
        return self.encoder.image_hw

    @property
    def embedding_dim(self) -> int:
        """The numbers of an embedding."""
        return self.encoder.model.embedding_dim

    def embed(
        self, images: Sequence[Image], *, mirrored: bool = True, batch_size: int = 200
    ) -> NDArray[np.float32]:
        """The unit embeddings of images, float32 [N, D]: their products are cosines.

        With `mirrored`, an embedding is that of the sum of the image's and its mirror image's, as
        verification sets are scored by. `batch_size` images are held at a time. Raises `UserError`
        for an image that cannot be read, under its path or its number.
        """
        return F.normalize(self._embed(images, mirrored, batch_size)[0]).numpy()

    def scores(
        self, images: Sequence[Image], *, mirrored: bool = False, batch_size: int = 200
    ) -> dict[str, NDArray[np.float32]]:
        """Numbers about each image by name, float32 [N]; higher is better. Every network gives
        `norm`, the length of the embedding, and one that was trained with the objective cr_fiqa
        `quality`, which says how well the face can be recognised.

        With `mirrored`, the norm is that of the sum of both embeddings, and any other score the
        mean of both. The rest is as in `embed`.
        """
        embeddings_ND, scores = self._embed(images, mirrored, batch_size)
        norms_N = torch.linalg.vector_norm(embeddings_ND, dim=1)
        return {"norm": norms_N.numpy()} | {name: each.numpy() for name, each in scores.items()}

    def quality(
        self, images: Sequence[Image], *, mirrored: bool = False, batch_size: int = 200
    ) -> NDArray[np.float32]:
        """The score `quality` of images, float32 [N], as `scores` has it. Raises `UserError` for a
        network that was trained without it."""
        if "quality" not in self.encoder.score_heads:
            raise UserError(
                "the network gives no quality; train it with objective=cr_fiqa, or take the norm "
                'of its embeddings, scores(images)["norm"]'
            )
        return self.scores(images, mirrored=mirrored, batch_size=batch_size)["quality"]

    def verify(self, a: Image, b: Image) -> float:
        """The cosine similarity of two images, from -1 to 1. From which value on they are of one
        person is for a verification set to tell (`manyfaces evaluate`)."""
        unit_2D = self.embed([a, b])
        return float(unit_2D[0] @ unit_2D[1])

    def preprocess(self, images: Sequence[Image]) -> Tensor:
        """Images as `module` takes them: float32 [N, 3, H, W] on the device. Raises `UserError` as
        `embed` does. They differ a little from what `embed` sees, which decodes JPEGs as training
        does, and computes in the precision of training."""
        images = _listed(images)
        if not images:
            return torch.empty(0, 3, *self.image_hw, device=self.encoder.device)
        pixels = [_pixels(image, _name(image, number)) for number, image in enumerate(images)]
        return torch.cat([self.encoder.to_input(self._to_device([one])) for one in pixels])

    def _embedder(self, batch_size: int) -> Embedder:
        """Decoders take a moment to be made: they are kept for the next call."""
        if self._kept is None or self._kept.batch_size < batch_size:
            self._kept = Embedder.of(self.encoder, batch_size)
        return self._kept

    def _embed(
        self, images: Sequence[Image], mirrored: bool, batch_size: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings, not normalised, and scores by their names, float32 on the CPU."""
        images = _listed(images)
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: give 1 or more")
        embeddings_ND, scores = self._room(len(images))
        for first in range(0, len(images), batch_size):
            part = slice(first, first + batch_size)
            own_ND, own_scores = self._embed_batch(images[part], first, batch_size, mirrored)
            embeddings_ND[part] = own_ND
            for name, values_N in own_scores.items():
                scores[name][part] = values_N
        return embeddings_ND, scores

    def _room(self, num_images: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Where the embeddings and scores of so many images go."""
        scores = {name: torch.empty(num_images) for name in self.encoder.score_heads}
        return torch.empty(num_images, self.embedding_dim), scores

    def _embed_batch(
        self, images: Sequence[Image], first: int, batch_size: int, mirrored: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `_embed`, of one batch, whose first image is number `first`: encoded images together,
        and arrays by their sizes."""
        embeddings_ND, scores = self._room(len(images))
        names = [_name(image, first + number) for number, image in enumerate(images)]
        encoded: dict[int, Encoded] = {}
        pixels: dict[tuple[int, ...], dict[int, NDArray[np.uint8]]] = defaultdict(dict)
        for number, image in enumerate(images):
            if isinstance(image, np.ndarray):
                checked = _pixels(image, names[number])
                pixels[checked.shape][number] = checked
                continue
            try:
                encoded[number] = decodable(_bytes(image, names[number]))
            except Dropped as error:
                raise _no_image(names[number]) from error
        if encoded:
            rows, embedder = list(encoded), self._embedder(min(batch_size, len(images)))
            embedded = embedder.embed_scored(
                encoded.values(),
                flip="sum" if mirrored else "none",
                name=lambda number: names[rows[number]],
            )
            embeddings_ND[rows] = torch.from_numpy(embedded.embeddings_ND)
            for name, found_N in embedded.scores.items():
                scores[name][rows] = torch.from_numpy(found_N)
        for alike in pixels.values():
            rows = list(alike)
            images_NHWC = self._to_device(list(alike.values()))
            outputs = [self.encoder.run(images_NHWC)]
            if mirrored:
                outputs.append(self.encoder.run(images_NHWC.flip(2)))
            parts = [output.embeddings["main"].float() for output in outputs]
            embeddings_ND[rows] = torch.stack(parts).sum(0).cpu()
            for name in scores:
                values = [output.scores[name].float() for output in outputs]
                scores[name][rows] = torch.stack(values).mean(0).cpu()
        return embeddings_ND, scores

    def _to_device(self, pixels: list[NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(np.stack(pixels)).to(self.encoder.device)


class MainEmbedding(nn.Module):
    """A backbone that returns its embedding `main` alone, as a tensor [N, D]."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return as_output(self.backbone(images_NCHW)).embeddings["main"]


def _listed(images: Any) -> list[Image]:
    if isinstance(images, str | PathLike | bytes | np.ndarray):
        raise UserError("give a list of images; for one image, [image]")
    return list(images)


def _name(image: Image, number: int) -> str:
    return fspath(image) if isinstance(image, str | PathLike) else f"image {number}"


def _bytes(image: Any, name: str) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except TypeError as error:
        raise UserError(
            f"{name} is a {type(image).__name__}; give an array uint8 [H, W, 3], a path or bytes"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read ({error})") from error


def _pixels(image: Image, name: str) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3]."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"{name} is {image.dtype} {list(image.shape)}; give uint8 RGB [height, width, 3]"
            )
        return image
    read = np.frombuffer(_bytes(image, name), np.uint8)
    decoded = cv2.imdecode(read, cv2.IMREAD_COLOR_RGB) if len(read) else None
    if decoded is None:
        raise _no_image(name)
    return np.asarray(decoded, np.uint8)


def _no_image(name: str) -> UserError:
    return UserError(f"{name} is not a whole, decodable image; use an intact copy")
