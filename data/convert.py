"""Sources in: a folder of identity folders becomes a dataset. JPEG bytes are kept as they are."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from manyfaces.configs import counter
from manyfaces.configs.schema import UserError
from manyfaces.data import synthetic
from manyfaces.data.index import Manifest
from manyfaces.data.sample import whole_jpeg
from manyfaces.data.write import Dropped, Item, write_dataset

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_CLASSES, _IMAGES = 11, 12  # streams of the counter
REENCODE_QUALITY = 95  # as InsightFace's record builder writes


def convert_folder(source: Path, out: Path, *, seed: int = 0, processes: int | None = None, shard_images: int = 8192) -> Manifest:
    """Convert `source/<identity>/**/*.jpg`. Class ids are in seeded random order, so that a block of ids is a random set of people;
    images are in seeded random order over all shards. Identity names go to `identities.txt`, line = class id.

    Raises `UserError` for a missing or empty folder, and for an identity without images.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected one folder an identity in it, holding images")
    folders = sorted(p for p in source.iterdir() if p.is_dir())
    if not folders:
        raise UserError(f"{source}: no identity folders in it; expected SRC/<identity>/*.jpg")
    files = [sorted(_images(folder)) for folder in folders]
    if empty := [folder.name for folder, found in zip(folders, files, strict=True) if not found]:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise UserError(f"{source}: no images in {shown}; remove the empty folders or fill them ({', '.join(sorted(IMAGE_SUFFIXES))})")
    class_of = counter.permutation(counter.key(seed, _CLASSES), len(folders)).argsort()
    names = [folders[i].name for i in class_of.argsort()]
    if bad := next((name for name in names if not name.isprintable()), None):
        raise UserError(f"{source}: folder name {bad!r} cannot be a line of identities.txt; rename it")
    flat = [(path, int(class_of[number])) for number, found in enumerate(files) for path in found]
    order = counter.permutation(counter.key(seed, _IMAGES), len(flat))
    items = [Item(str(flat[i][0]), _key(flat[i][0], source, i), flat[i][1]) for i in order]
    listing = hashlib.sha256("\n".join(f"{p.relative_to(source)} {p.stat().st_size}" for p, _ in flat).encode()).hexdigest()
    facts: dict[str, object] = {"source": "folder", "listing_sha256": listing, "seed": seed}
    return write_dataset(out, items, read_image, names, source=facts, shard_images=shard_images, processes=processes)


def synthesise(
    out: Path, num_identities: int, images_each: int, *, seed: int = 0, processes: int | None = None, shard_images: int = 8192
) -> Manifest:
    """A dataset of made identities; the same bytes anywhere. Raises `UserError` for fewer than two identities or no images."""
    if num_identities < 2 or images_each < 1:
        raise UserError(f"{num_identities} identities of {images_each} images: at least 2 identities of 1 image are needed")
    total = num_identities * images_each
    order = counter.permutation(counter.key(seed, _IMAGES), total)
    items = [
        Item((seed, *divmod(n, images_each)), f"{n // images_each:08d}/{n % images_each:04d}", n // images_each) for n in order.tolist()
    ]
    names = [f"synthetic-{seed}-{n:08d}" for n in range(num_identities)]
    facts: dict[str, object] = {"source": "synthetic", "seed": seed, "images_each": images_each}
    return write_dataset(out, items, _synthesise_one, names, source=facts, shard_images=shard_images, processes=processes)


def _synthesise_one(source: object) -> bytes:
    assert isinstance(source, tuple)
    seed, identity, image = source
    return synthetic.encode(seed, identity, image)


def _images(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _key(path: Path, source: Path, number: int) -> str:
    """A WebDataset key that still tells where the image came from; a key ends at its first dot, and 100 bytes fit every tar."""
    readable = re.sub(r"[^A-Za-z0-9_/-]", "_", str(path.relative_to(source).with_suffix("")))
    return f"{readable[-80:].lstrip('/')}-{number}"


def read_image(path: object) -> bytes:
    """JPEG bytes of an image file: as they are if they are a whole JPEG, else encoded anew. Raises `Dropped`."""
    try:
        blob = Path(str(path)).read_bytes()
    except OSError as error:
        raise Dropped(f"cannot be read: {error.strerror}") from error
    pixels = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR) if blob else None
    if pixels is None:
        raise Dropped("not a decodable image")
    if blob[:2] == b"\xff\xd8":
        if not whole_jpeg(blob):
            raise Dropped("a JPEG that is cut off")
        return blob
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, REENCODE_QUALITY])[1].tobytes()
