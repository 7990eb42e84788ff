"""Images in, embeddings out: what evaluation, the cleaning report and edits of heads embed by.

Shapes: N images, D the embedding, H and W the height and width of the images.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.data.feed.decode import Decoding
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import as_output
from manyfaces.models.backbones.pixels import to_input
from manyfaces.train.evaluation.decoding import ImageDecoder, decode_threads, not_decodable
from manyfaces.train.evaluation.result import Encoded

T = TypeVar("T")


class EmbeddedBatch(NamedTuple):
    """The embeddings and scores of those images of a batch that could be decoded."""

    embeddings_ND: Tensor
    """float32, on the device."""
    rows_N: NDArray[np.int64]
    """Which images of the batch they are."""
    scores: Mapping[str, Tensor]
    """What the network says of each besides, [N] float32 on the device by the score's name, such as
    `quality`; empty for most networks."""


class EmbeddedImages(NamedTuple):
    """The embeddings of images, and the scores that the network gives them."""

    embeddings_ND: NDArray[np.float32]
    scores: Mapping[str, NDArray[np.float32]]
    """[N] by the score's name; empty for most networks."""


class Embedder:
    """Embeds images with a network, as it is at the moment of the call.

    The network is put into evaluation mode for each batch and is given back in the mode in which it
    was. Nothing is remembered for a backward pass, and torch keeps the number of threads that the
    caller has set.

    `module`: from images [N, 3, H, W], normalised floats, to embeddings [N, D] or an `Output`.
    `model`: the configuration of the network, which says how its inputs are normalised.
    `image_hw`: height and width in pixels; images of other sizes are resized.
    `autocast`: compute in bfloat16; embeddings are float32 all the same.
    `batch_size`: images that are embedded at a time.
    `decode_threads`: CPU threads that decode JPEGs.
    """

    def __init__(
        self,
        module: nn.Module,
        model: schema.Backbone,
        image_hw: tuple[int, int],
        device: torch.device,
        *,
        autocast: bool = False,
        batch_size: int = 200,
        decode_threads: int = 1,
    ) -> None:
        self.module, self.model, self.image_hw, self.device = module, model, image_hw, device
        self.autocast, self.batch_size = autocast, batch_size
        self._decoder = ImageDecoder(image_hw, batch_size, device, decode_threads)

    @classmethod
    def of(cls, encoder: Encoder, batch_size: int) -> "Embedder":
        """Embeds by a trained network, with the cores of this machine."""
        return cls(
            encoder.network,
            encoder.model,
            encoder.image_hw,
            encoder.device,
            autocast=encoder.autocast,
            batch_size=batch_size,
            decode_threads=decode_threads(),
        )

    def embed(
        self,
        images: Iterable[Encoded],
        *,
        flip: Flip = "none",
        name: Callable[[int], str] = "image {}".format,
        progress: Callable[[int], None] = lambda images: None,
    ) -> Tensor:
        """The embeddings of encoded images, float32 [N, D] on the CPU; [N, 2 D] where those of the
        mirror images are concatenated. The rest is as in `embed_scored`."""
        embedded = self.embed_scored(images, flip=flip, name=name, progress=progress)
        return torch.from_numpy(embedded.embeddings_ND)

    def embed_scored(
        self,
        images: Iterable[Encoded],
        *,
        flip: Flip = "none",
        name: Callable[[int], str] = "image {}".format,
        progress: Callable[[int], None] = lambda images: None,
    ) -> EmbeddedImages:
        """The embeddings of encoded images as `embed` has them, and the scores that the network
        gives the images: where mirror images are embedded too, the mean of both. The images are
        taken a batch at a time.

        `progress` is told how many more images are done. Raises `UserError` for an image that is
        not a whole, decodable JPEG, under its `name`.
        """
        parts, done = [torch.empty(0, self._width(flip))], 0
        scores: dict[str, list[Tensor]] = {}
        for batch, embedded in self.stream(_in_batches(images, self.batch_size), flip=flip):
            if len(embedded.rows_N) < len(batch):
                bad = int(np.setdiff1d(np.arange(len(batch)), embedded.rows_N)[0])
                raise not_decodable(name(done + bad))
            parts.append(embedded.embeddings_ND.cpu())
            for score, values_N in embedded.scores.items():
                scores.setdefault(score, []).append(values_N.cpu())
            done += len(batch)
            progress(len(batch))
        return EmbeddedImages(
            torch.cat(parts).numpy(),
            {score: torch.cat(values).numpy() for score, values in scores.items()},
        )

    def stream(
        self, batches: Iterable[tuple[T, Sequence[Encoded]]], *, flip: Flip = "none"
    ) -> Iterator[tuple[T, EmbeddedBatch]]:
        """Embed batches of up to `batch_size` encoded images; images that cannot be decoded are
        left out.

        What stands beside the images of a batch is handed on with its embeddings. The next batch is
        read and decoded while one is embedded.
        """
        last: tuple[T, Decoding] | None = None
        for beside, images in batches:
            begun = beside, self._decoder.start(images)
            if last is not None:
                yield last[0], self._finish(last[1], flip)
            last = begun
        if last is not None:
            yield last[0], self._finish(last[1], flip)

    def embed_pixels(self, images_NHWC: Tensor, *, flip: Flip = "none") -> Tensor:
        """The embeddings of one batch of decoded images, uint8 RGB [N, H, W, 3] on the device:
        float32 [N, D] on the device, or [N, 2 D] where those of the mirror images are
        concatenated."""
        return self.score_pixels(images_NHWC, flip=flip)[0]

    @torch.no_grad()
    def score_pixels(
        self, images_NHWC: Tensor, *, flip: Flip = "none"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The embeddings as `embed_pixels` gives them, and the scores that the network gives the
        images, float32 [N] each."""
        with (
            _evaluating(self.module),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast),
        ):
            embeddings_ND, scores = self._forward(images_NHWC)
            if flip == "none":
                return embeddings_ND, scores
            mirrored_ND, mirrored_scores = self._forward(images_NHWC.flip(2))
        scores = {name: (scores[name] + mirrored_scores[name]) / 2 for name in scores}
        if flip == "concatenate":
            return torch.cat([embeddings_ND, mirrored_ND], 1), scores
        return embeddings_ND + mirrored_ND, scores

    def embed_floats(self, images_NCHW: Tensor, *, flip: Flip = "none") -> Tensor:
        """The embeddings of pixels as floats from 0 to 255, [N, 3, H, W] on the device: float32 as
        `embed_pixels` gives them, and with gradients to the pixels where those ask for them. Raises
        `UserError` for a network that gives none."""
        mean, std = (
            torch.tensor(values, device=images_NCHW.device).view(3, 1, 1)
            for values in (self.model.pixel_mean, self.model.pixel_std)
        )
        views = [images_NCHW] if flip == "none" else [images_NCHW, images_NCHW.flip(3)]
        with (
            _evaluating(self.module),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast),
        ):
            outputs = [as_output(self.module((view - mean) / std)) for view in views]
        parts = [output.embeddings["main"].float() for output in outputs]
        if images_NCHW.requires_grad and not parts[0].requires_grad:
            raise UserError(
                "the network gives no gradients to its images, as an ONNX file does not; give a "
                "run, a checkpoint or an export as safetensors"
            )
        return torch.cat(parts, 1) if flip == "concatenate" else torch.stack(parts).sum(0)

    def _width(self, flip: Flip) -> int:
        return self.model.embedding_dim * (2 if flip == "concatenate" else 1)

    def _finish(self, decoding: Decoding, flip: Flip) -> EmbeddedBatch:
        decoded = self._decoder.finish(decoding)
        if not len(decoded.rows_N):
            nothing = torch.empty(0, self._width(flip), device=self.device)
            return EmbeddedBatch(nothing, decoded.rows_N, {})
        embeddings_ND, scores = self.score_pixels(decoded.images_NHWC, flip=flip)
        return EmbeddedBatch(embeddings_ND, decoded.rows_N, scores)

    def _forward(self, images_NHWC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        output = as_output(self.module(to_input(images_NHWC, self.model)))
        scores = {name: values_N.float() for name, values_N in output.scores.items()}
        return output.embeddings["main"].float(), scores


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each part is in the mode in which it was, as frozen parts of a
    network in training are not in training mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _in_batches(
    images: Iterable[Encoded], batch_size: int
) -> Iterator[tuple[list[Encoded], list[Encoded]]]:
    """The images in lists of `batch_size`, each list twice: it stands beside itself in `stream`."""
    batch: list[Encoded] = []
    for image in images:
        batch.append(image)
        if len(batch) == batch_size:
            yield batch, batch
            batch = []
    if batch:
        yield batch, batch
