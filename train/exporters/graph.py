"""A network as a graph that needs no Python: from pixels to embeddings, for any number of images.

Shapes: N images of height H and width W, D the embedding.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import as_output
from manyfaces.train.evaluation.exported import Exported, merged
from manyfaces.train.exporters.exporter import Job

INPUT, OUTPUT = "images", "embeddings"
_EXAMPLES = 2  # with one, the exporter would take N for the constant 1


class Pixels(nn.Module):
    """A network with the normalisation of its input inside: float RGB images [N, 3, H, W] from 0 to
    255 to embeddings float32 [N, D]. In float16 the network computes in 16 bits, normalisation and
    output do not."""

    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = merged(encoder).to(dtype), dtype
        for name, values in (("mean", encoder.model.pixel_mean), ("scale", _inverse(encoder))):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        # The first two operations are a Sub and a Mul: InsightFace's Python package looks for them
        # to tell a network that normalises its input itself.
        normalised_NCHW = (images - self.mean) * self.scale
        return as_output(self.network(normalised_NCHW.to(self.dtype))).embeddings["main"].float()


def described(facts: Exported) -> str:
    """What a graph takes and gives, for people."""
    height, width = facts.image_hw
    return (
        f"{INPUT}: float32 [N, 3, {height}, {width}], RGB pixels from 0 to 255, any N; "
        f"{OUTPUT}: float32 [N, {facts.model.embedding_dim}], not normalised"
    )


def program(job: Job) -> ExportedProgram:
    """The network as torch.export has it, on the CPU, for any number of images. Raises `UserError`
    for a network that cannot be exported."""
    dtype = torch.float16 if job.precision == "float16" else torch.float32
    network = Pixels(job.encoder, dtype).cpu()
    example_NCHW = torch.zeros(_EXAMPLES, 3, *job.facts.image_hw)
    shapes = {INPUT: {0: Dim("batch", min=1)}}
    try:
        with quiet(), torch.no_grad():
            exported = torch.export.export(network, (example_NCHW,), dynamic_shapes=shapes)
    except Exception as error:  # whatever a network does that cannot be written as a graph
        told = str(error).strip().partition("\n")[0]
        raise UserError(
            f"this network cannot be written as a graph: {type(error).__name__}: {told}; give "
            "--to safetensors"
        ) from error
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has paths of this machine
    return exported


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and lines that libraries print about their own code."""
    names = ("", "torch.onnx", "onnxscript", "onnx_ir", "mlflow", "alembic")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nothing,  # noqa: PTH123
        contextlib.redirect_stdout(nothing),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _inverse(encoder: Encoder) -> list[float]:
    return [1 / value for value in encoder.model.pixel_std]
