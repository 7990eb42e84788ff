"""The first pass of the cleaning report: the angles of each sample to the sub-centres of its class,
in a file.

Shapes: N samples of a batch, C classes, K sub-centres, D the embedding.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.progress import ImageBar
from manyfaces.train.checkpoint.head_files import SubCentres
from manyfaces.train.evaluation.embed_dataset import Embedded, LeftOut, embed_dataset
from manyfaces.train.evaluation.embedder import Embedder

_ROW_GROUP = 1 << 16


@dataclass(frozen=True)
class Measured:
    """What the first pass found."""

    file: Path
    """An Arrow stream of row groups: sample, key, identity, and degrees to the K sub-centres."""
    count_CK: NDArray[np.int32]
    """How many samples of each class have which sub-centre as the nearest one."""
    left_out: LeftOut


def measure(
    dataset: Dataset, embedder: Embedder, centres: SubCentres, file: Path, console: Console
) -> Measured:
    """Embed the dataset and write the angles to `file`. Raises `UserError` where no image is left
    to measure."""
    count_CK = np.zeros((centres.head.num_classes, len(centres)), np.int32)
    left_out = LeftOut()
    schema = pa.schema(
        {
            "sample": pa.int64(),
            "key": pa.string(),
            "identity": pa.int32(),
            "angles": pa.list_(pa.float32(), len(centres)),
        }
    )
    images = dataset.manifest.num_images
    with (
        ImageBar("embedding", images, console, transient=True) as bar,
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        embedded = embed_dataset(dataset, embedder, left_out, bar.count)
        for columns in _row_groups(embedded, centres, count_CK):
            writer.write_batch(pa.record_batch(columns, schema))
    if not count_CK.any():
        raise UserError(
            f"{dataset.where}: no image is left: {left_out.forgotten:,} forgotten, "
            f"{left_out.broken:,} not decodable"
        )
    return Measured(file, count_CK, left_out)


_Rows = tuple[NDArray[np.int64], list[str], NDArray[np.int64], NDArray[np.float32]]


def _row_groups(
    embedded: Iterable[Embedded], centres: SubCentres, count_CK: NDArray[np.int32]
) -> Iterator[list[pa.Array]]:
    """The columns of each row group; counts the nearest sub-centres in `count_CK`."""
    held: list[_Rows] = []
    for ids_N, labels_N, keys, unit_ND in embedded:
        rows_NKD = centres.take(labels_N).to(unit_ND.device)
        angles_NK = _degrees_between(unit_ND[:, None], rows_NKD).cpu().numpy()
        np.add.at(count_CK, (labels_N, angles_NK.argmin(1)), 1)
        held.append((ids_N, keys, labels_N, angles_NK))
        if sum(len(rows[0]) for rows in held) >= _ROW_GROUP:
            yield _columns(held)
            held.clear()
    if held:
        yield _columns(held)


def _degrees_between(left: Tensor, right: Tensor) -> Tensor:
    """The angles between unit vectors [..., D]. An arc cosine of a float32 would be off by 0.02
    degrees near 0."""
    halves = torch.atan2((left - right).norm(dim=-1), (left + right).norm(dim=-1))
    return (2 * halves).rad2deg()


def _columns(held: list[_Rows]) -> list[pa.Array]:
    ids, keys, classes, angles = zip(*held, strict=True)
    angles_NK = np.concatenate(angles)
    flat = pa.array(angles_NK.reshape(-1))
    columns = (
        pa.array(np.concatenate(ids)),
        pa.array(itertools.chain(*keys), pa.string()),
        pa.array(np.concatenate(classes), pa.int32()),
    )
    return [*columns, pa.FixedSizeListArray.from_arrays(flat, angles_NK.shape[1])]
