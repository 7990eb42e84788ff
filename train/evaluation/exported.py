"""An exported backbone: one safetensors file, in whose metadata stands all that it takes to embed
images by it, or the plain weights for programs that read torch's own files."""

import copy
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from manyfaces.configs.backbones.backbone import Backbone
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256
from manyfaces.configs.node import FILE, Node
from manyfaces.configs.parsed import first_fault, parsed
from manyfaces.configs.paths import mapped
from manyfaces.models.adapters.adapter import merge
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.score_heads import named_weights, read_score_heads

FORMAT = 1
Precision = Literal["float32", "float16", "int8"]
"""The numbers that an exported file keeps its weights in."""
ENDINGS = (".safetensors", ".pth")
"""What the name of an exported backbone may end in."""
KEY = "manyfaces"
"""Where the metadata of a file have what `Exported` is made of, as JSON."""
REMEDY = "give a run, a checkpoint, or a file that `manyfaces export` wrote"


class _Format(BaseModel):
    """What the metadata of every format say."""

    format: int
    version: str


class Exported(Node):
    """What the metadata say."""

    format: int = FORMAT
    version: str
    """The version of manyfaces that wrote the file."""
    source: str
    """The run and the step that the weights are of, for people."""
    model: Backbone
    image_hw: tuple[PositiveInt, PositiveInt]
    autocast: bool
    precision: Precision = "float32"
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 by path of the Python files that hold classes of one's own."""
    scores: dict[str, str] = Field(default_factory=dict)
    """The scores that the network gives besides embeddings, and which embedding each is of."""


def facts_of(encoder: Encoder, source: str, precision: Precision = "float32") -> Exported:
    """What an exported file says of an encoder; `source` tells people where it came from."""
    return Exported(
        version=version("manyfaces"),
        source=source,
        # Where its weights came from decides nothing any more.
        model=encoder.model.model_copy(update={"init": None, "adapters": ()}),
        image_hw=encoder.image_hw,
        autocast=encoder.autocast,
        precision=precision,
        files={path: file_sha256(Path(path)) for path in _own_files(encoder.model)},
        scores={name: head.branch for name, head in encoder.score_heads.items()},
    )


def merged(encoder: Encoder) -> nn.Module:
    """A copy of the encoder's backbone, with its adapters merged."""
    backbone = copy.deepcopy(encoder.backbone)
    merge(backbone)
    return backbone


def write_exported(
    encoder: Encoder, file: Path, source: str, precision: Precision = "float32"
) -> None:
    """Write an encoder to a file, whole or not at all, with its adapters merged. One that ends in
    `.pth` is the plain `state_dict` by `torch.save`, and does not say of which network. Raises
    `UserError` for a file that exists or cannot be written."""
    refuse_file(file, ENDINGS)
    unfinished = file.with_name(f".{file.name}.tmp")
    try:
        write_weights(encoder, unfinished, facts_of(encoder, source, precision), file.suffix)
        unfinished.rename(file)
    except (SafetensorError, OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error})") from error


def write_weights(encoder: Encoder, file: Path, facts: Exported, ending: str) -> None:
    """Write the weights of an encoder as a file of this ending has them."""
    backbone = merged(encoder)
    if facts.precision == "float16":
        backbone.half()
    # Weights that two layers share are written twice.
    weights = {k: v.cpu().clone().contiguous() for k, v in backbone.state_dict().items()}
    if ending == ".safetensors":
        heads = named_weights(encoder.score_heads)
        weights |= {name: weight.cpu().contiguous() for name, weight in heads.items()}
        save_file(weights, file, {"format": "pt", KEY: facts.model_dump_json()})
    else:
        torch.save(weights, file)


def on_raw_pixels(model: Backbone) -> Backbone:
    """The configuration of the same network where it normalises its input itself."""
    return model.model_copy(update={"pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1.0, 1.0, 1.0)})


def refuse_file(file: Path, endings: Sequence[str]) -> None:
    """Raise `UserError` for a file that is there, or whose name has none of these endings."""
    if file.suffix not in endings:
        raise UserError(f"{file}: expected a name that ends in {' or '.join(endings)}")
    if file.exists():
        raise UserError(f"{file}: exists; give another name or remove it")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent}: no such folder; make it first")


def read_exported(file: Path, device: torch.device) -> Encoder:
    """The encoder in an exported file. Raises `UserError` for a file that is none."""
    facts = read_facts(file)
    _check_own_files(facts, file)
    backbone: nn.Module = facts.model.build(image_hw=facts.image_hw)
    try:
        weights = load_file(file)
        heads = read_score_heads(weights, facts.scores)
        beside = named_weights(heads)
        backbone.load_state_dict({name: w for name, w in weights.items() if name not in beside})
    except (RuntimeError, SafetensorError, KeyError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{file}: does not fit the network that it names: {told}") from error
    heads = {name: head.to(device) for name, head in heads.items()}
    return Encoder(backbone.to(device), facts.model, facts.image_hw, device, facts.autocast, heads)


def _check_own_files(facts: Exported, file: Path) -> None:
    """Raise `UserError` where a class of one's own is not as it was when the file was written."""
    for path, sha256 in facts.files.items():
        if not Path(path).is_file() or file_sha256(Path(path)) != sha256:
            raise UserError(
                f"{file}: its network is a class of one's own in {path}, which is not there or is "
                "another file now; put the one there that it was exported with"
            )


def _own_files(model: Backbone) -> list[str]:
    found: list[str] = []

    def keep(path: str) -> str:
        found.append(path)
        return path

    mapped(model, FILE, keep)
    return found


def read_facts(file: Path) -> Exported:
    """What the file says of its network. Raises `UserError` for one that says nothing."""
    text = said_by(file)
    if text is None:
        raise UserError(f"{file}: does not say which network its weights are of; {REMEDY}")
    return parse_facts(text, file)


def said_by(file: Path) -> str | None:
    """What a safetensors file says of its network, as `parse_facts` takes it; None where it says
    nothing. Raises `UserError` for a file that is none."""
    try:
        with safe_open(file, "pt") as opened:
            metadata: dict[str, Any] = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: is no whole safetensors file ({error}); {REMEDY}") from error
    return metadata.get(KEY)


def parse_facts(text: str, file: Path) -> Exported:
    """What the metadata of a file say of its network. Raises `UserError`."""
    told = parsed(_Format, text, f"{file}: metadata", "export it again")
    if told.format != FORMAT:
        raise UserError(
            f"{file}: format {told.format}, and this version of manyfaces reads {FORMAT}; read it "
            "with the version that wrote it"
        )
    try:
        return Exported.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"{file}: {first_fault(error)}; this version of manyfaces does not know it: read it "
            f"with {told.version}, which wrote it"
        ) from error
