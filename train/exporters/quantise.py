"""A float32 ONNX graph in int8, calibrated on images: weights and activations of the convolutions
and products, by onnxruntime's static quantisation."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.train.exporters.graph import INPUT, quiet

if TYPE_CHECKING:
    from onnx import ModelProto

_BATCH = 16
_OPERATORS = ["Conv", "Gemm", "MatMul"]
"""What is computed in int8; what stands between them stays as it is."""


def quantised(model: "ModelProto", images_NHWC: Tensor) -> "ModelProto":
    """The graph in int8, with the ranges that its activations have on these images, uint8 RGB."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Images(CalibrationDataReader):  # type: ignore[misc]
        """A batch at a time as onnxruntime asks for them, then None."""

        def __init__(self) -> None:
            self.batches = iter(images_NHWC.split(_BATCH))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.permute(0, 3, 1, 2).float().numpy()}

    with tempfile.TemporaryDirectory(prefix="manyfaces-int8-") as scratch, quiet():
        prepared, written = Path(scratch, "float.onnx"), Path(scratch, "int8.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(model), prepared)
        quantize_static(
            prepared,
            written,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(written)
