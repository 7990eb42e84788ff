"""The loss that a configuration names."""

import importlib.util
import sys
from pathlib import Path

from manyfaces.configs import schema
from manyfaces.configs.schema import UserError
from manyfaces.models.margins import margin as margins
from manyfaces.models.margins.adaptive import AdaFace, CurricularFace, MagFace
from manyfaces.models.margins.binary import SphereFace2, UniFace
from manyfaces.models.margins.margin import Margin


def build(config: schema.Margin, scale: float, num_classes: int) -> Margin:
    """The margin that a configuration names. Raises `UserError` for a file of one's own that does
    not hold it."""
    match config:
        case schema.SoftmaxMargin():
            return margins.Softmax()
        case schema.ArcFaceMargin():
            return (
                margins.ArcFace(config.m)
                if config.gradient == "exact"
                else margins.StraightThroughArcFace(config.m)
            )
        case schema.CosFaceMargin():
            return margins.CosFace(config.m)
        case schema.CombinedMargin():
            return margins.Combined(config.m1, config.m2, config.m3)
        case schema.SphereFaceMargin():
            return margins.SphereFace(config.m)
        case schema.AdaFaceMargin():
            return AdaFace(config.m, config.h, config.momentum)
        case schema.MagFaceMargin():
            return MagFace(config.low, config.high, config.low_m, config.high_m, config.regulariser)
        case schema.CurricularFaceMargin():
            return CurricularFace(config.m, config.momentum)
        case schema.SphereFace2Margin():
            return SphereFace2(
                config.m, config.balance, config.t, config.weight, scale, num_classes
            )
        case schema.UniFaceMargin():
            return UniFace(config.m, config.balance, scale, num_classes)
        case schema.NoMargin():
            return margins.Nothing()
        case schema.CustomMargin():
            return _custom(config)


def _custom(config: schema.CustomMargin) -> Margin:
    path, name = Path(config.file), config.name
    where = f"head.margin: {path}"
    if not path.is_file():
        raise UserError(f"{where}: no such file; every worker must see it")
    spec = importlib.util.spec_from_file_location(f"manyfaces_margin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{where}: expected Python in a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        margin = getattr(module, name)(**config.parameters)
    except Exception as error:  # whatever a person's own code does
        raise UserError(
            f"{where}: {name}({', '.join(config.parameters)}): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(margin, Margin):
        raise UserError(
            f"{where}: {name} is a {type(margin).__name__}; derive it from "
            "manyfaces.models.margins.margin.Margin"
        )
    vars(margin).setdefault("state", {})  # its __init__ need not call Margin's
    return margin
