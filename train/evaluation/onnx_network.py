"""Exported ONNX files run by onnxruntime, as an encoder like any other."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.evaluation.exported import KEY, REMEDY, Exported, on_raw_pixels, parse_facts

ENDING = ".onnx"


class OnnxNetwork(nn.Module):
    """RGB images [N, 3, H, W] from 0 to 255, floats, to embeddings float32 [N, D], computed by
    onnxruntime with as many threads as torch has when this is made."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session
        self._input = session.get_inputs()[0].name

    def forward(self, images_NCHW: Tensor) -> Tensor:
        given = {self._input: images_NCHW.float().cpu().numpy()}
        (embeddings_ND,) = self._session.run(None, given)
        return torch.from_numpy(embeddings_ND).to(images_NCHW.device)


def read_onnx(file: Path, device: torch.device) -> Encoder:
    """The encoder in an ONNX file that `manyfaces export` wrote. Raises `UserError` for another
    file, and where onnxruntime is not installed."""
    session = _session(file, device)
    facts = _facts(session, file)
    model = on_raw_pixels(facts.model)
    network = OnnxNetwork(session)
    return Encoder(network, model, facts.image_hw, device, autocast=False, is_graph=True)


def read_onnx_facts(file: Path) -> Exported:
    """What an ONNX file says of its network. Raises `UserError` as `read_onnx` does."""
    return _facts(_session(file, torch.device("cpu")), file)


def _session(file: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{file}: onnxruntime runs it and is not installed: pip install 'manyfaces[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    there = onnxruntime.get_available_providers()
    providers = [each for each in [*wanted, "CPUExecutionProvider"] if each in there]
    try:
        return onnxruntime.InferenceSession(file, options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common class of their own
        told = " ".join(str(error).split())
        raise UserError(f"{file}: onnxruntime cannot open it ({told}); {REMEDY}") from error


def _facts(session: Any, file: Path) -> Exported:
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise UserError(
            f"{file}: does not say how its input is made; load_model opens the ONNX files that "
            "`manyfaces export` wrote"
        )
    return parse_facts(text, file)
