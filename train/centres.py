"""The class centres in a checkpoint, for who asks for some of them: the planes `rows`, `rows.1` ... of its head, one a sub-centre."""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from manyfaces.configs.schema import UserError


class SubCentres:
    """A checkpoint's class rows [C, K, D], mapped: of each only what is taken is read. Raises `UserError` where they are not C."""

    def __init__(self, head: Path, num_classes: int) -> None:
        planes: dict[int, list[tuple[int, Tensor]]] = {}
        for index, stored in HuggingFaceStorageReader(str(head)).read_metadata().storage_data.items():
            if found := re.fullmatch(r"rows(?:\.([0-9]+))?", index.fqn):
                with safe_open(stored.relative_path, framework="pt") as file:
                    planes.setdefault(int(found[1] or 0), []).append((index.offset[0], file.get_tensor(index.fqn)))
        self.planes = [sorted(planes[k], key=lambda part: part[0]) for k in sorted(planes)]
        for plane in self.planes or [[]]:
            if (rows := sum(len(part_nD) for _, part_nD in plane)) != num_classes:
                raise UserError(f"{head}: holds rows of {rows:,} classes, expected {num_classes:,}")

    def __len__(self) -> int:
        return len(self.planes)

    def take(self, classes_N: NDArray[np.int64]) -> Tensor:
        """Unit vectors, float32 [N, K, D]."""
        rows_NKD = torch.stack([self._plane(plane, torch.from_numpy(classes_N)) for plane in self.planes], 1)
        return F.normalize(rows_NKD, dim=2)

    def _plane(self, parts: list[tuple[int, Tensor]], classes_N: Tensor) -> Tensor:
        rows_ND = torch.zeros(len(classes_N), parts[0][1].shape[1])
        for first, part_nD in parts:
            here = torch.nonzero((classes_N >= first) & (classes_N < first + len(part_nD)))[:, 0]
            rows_ND[here] = part_nD[classes_N[here] - first].float()
        return rows_ND
