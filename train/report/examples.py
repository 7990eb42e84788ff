"""Images of an evaluation, small enough to stand in the page itself."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manyfaces.train.evaluation.stored import StoredExample

SIDE_PX = 112
"""The longer side of an image at most."""
MOST = 8
"""Examples of one kind."""
_KEPT_BYTES = 12_000
_QUALITY = 85
_KINDS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png"}


@dataclass(frozen=True)
class Shown:
    """An example as the page shows it."""

    images: Sequence[str]
    """`data:` addresses; "" for a file that is gone or is no image."""
    label: str
    score: str


def shown_examples(examples: Sequence[StoredExample], folder: Path) -> list[Shown]:
    """The first of these examples, whose files are named relative to the folder."""
    return [
        Shown(
            [data_uri(folder, name) for name in example.images],
            example.label,
            "" if example.score is None else f"{example.score:.3f}",
        )
        for example in examples[:MOST]
    ]


def data_uri(folder: Path, name: str) -> str:
    """The image of this name in the folder, made small where it is large; "" where there is no such
    image. A name that leads out of the folder names none."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return ""
    try:
        body = path.read_bytes()
    except OSError:
        return ""
    kind = next((kind for start, kind in _KINDS.items() if body.startswith(start)), None)
    if kind is None or len(body) > _KEPT_BYTES:
        body, kind = _small(body), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(body).decode()}" if body else ""


def _small(body: bytes) -> bytes:
    """The image as a small JPEG; empty where it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(body)) as image:
            small = image.convert("RGB")
            small.thumbnail((SIDE_PX, SIDE_PX))
    except (UnidentifiedImageError, OSError, ValueError):
        return b""
    out = io.BytesIO()
    small.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
