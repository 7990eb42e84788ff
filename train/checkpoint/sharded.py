"""State that is sharded by rows, on disk: through torch.distributed.checkpoint as safetensors, so
that any world size reads what any other wrote."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


def save_rows(
    folder: Path, tensors: Mapping[str, Tensor], num_rows: int, group: ProcessGroup
) -> None:
    """Write every rank's rows. Collective over the gloo group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about itself
        dcp.save(
            _whole(tensors, num_rows, group),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            process_group=group,
        )


def load_rows(
    folder: Path, tensors: Mapping[str, Tensor], num_rows: int, group: ProcessGroup
) -> None:
    """Fill this rank's rows in place from a checkpoint of any world size. Collective."""
    local = {name: tensor.cpu() for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about itself
        dcp.load(
            _whole(local, num_rows, group),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            process_group=group,
        )
    for name, tensor in tensors.items():
        tensor.copy_(local[name])


def _whole(tensors: Mapping[str, Tensor], num_rows: int, group: ProcessGroup) -> dict[str, DTensor]:
    mesh = DeviceMesh.from_group(group, "cpu")
    sharded = {}
    for name, tensor in tensors.items():
        whole = torch.empty(num_rows, *tensor.shape[1:], device="meta")
        sharded[name] = DTensor.from_local(
            tensor,
            mesh,
            [Shard(0)],
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )
    return sharded
