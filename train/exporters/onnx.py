"""Format onnx: the network for onnxruntime and whatever else reads ONNX."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.evaluation.exported import KEY, Exported, Precision
from manyfaces.train.exporters.exporter import Exporter, Job
from manyfaces.train.exporters.graph import INPUT, OUTPUT, described, program, quiet

if TYPE_CHECKING:
    from onnx import ModelProto

_OPSET = 20
_MOST_BYTES = 2_000_000_000
"""ONNX is a protobuf, and holds less than 2 GiB."""


class Onnx(Exporter):
    """A file whose input are pixels from 0 to 255, for any number of images. `load_model` runs it
    by onnxruntime. int8 is calibrated statically on images."""

    word, ending = "onnx", ".onnx"
    described = "a graph for onnxruntime and others, normalisation inside, any batch size"
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16", "int8")
    packages = ("onnx", "onnxruntime", "onnxscript")  # torch writes ONNX by the last
    usage: ClassVar[str] = """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("{name}")
[embeddings] = session.run(None, {{"images": images}})  # float32 RGB [N, 3, H, W], from 0 to 255
```

or with `manyfaces.train.load_model("{name}")`."""

    def takes(self, job: Job) -> str:
        return described(job.facts)

    def write(self, job: Job, path: Path) -> None:
        _refuse_large(job.encoder, job.precision)
        model = _model(job)
        if job.precision == "int8":
            from manyfaces.train.exporters.quantise import quantised

            assert job.calibration_NHWC is not None, "int8 is calibrated"
            model = quantised(model, job.calibration_NHWC)
        _describe(model, job.facts)
        _save(model, path)


def _model(job: Job) -> "ModelProto":
    """The network in float32 or float16."""
    import torch

    exported = program(job)
    try:
        with quiet():
            written: Any = torch.onnx.export(
                exported,
                (),
                dynamo=True,
                opset_version=_OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            return written.model_proto
    except Exception as error:  # whatever has no counterpart in ONNX
        told = str(error).strip().partition("\n")[0]
        raise UserError(
            f"this network cannot be written as ONNX: {type(error).__name__}: {told}; give "
            "--to torch_export or safetensors"
        ) from error


def _refuse_large(encoder: Encoder, precision: Precision) -> None:
    weights = sum(weight.numel() for weight in encoder.backbone.state_dict().values())
    # An int8 network is made of the float32 one.
    num_bytes = weights * (2 if precision == "float16" else 4)
    if num_bytes > _MOST_BYTES:
        raise UserError(
            f"--to onnx: the weights are {num_bytes / 1e9:.1f} GB, and one ONNX file holds less "
            "than 2; give --precision float16, or --to safetensors or torch_export"
        )


def _describe(model: "ModelProto", facts: Exported) -> None:
    """Name the number of images in the shapes, and put what the file says of the network into its
    metadata: what `load_model` reads, and the same for people. What torch says there of its own
    code, with paths of this machine, goes."""
    from onnx import helper

    for part in (*model.graph.node, *model.graph.initializer, *model.graph.value_info):
        del part.metadata_props[:]
    del model.graph.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
        del value.metadata_props[:]
    model.doc_string = described(facts)
    said = {KEY: facts.model_dump_json(), "source": facts.source, "precision": facts.precision}
    helper.set_model_props(model, said)


def _save(model: "ModelProto", path: Path) -> None:
    import onnx

    onnx.checker.check_model(model)
    onnx.save(model, path)
