"""A dataset of made identities."""

from pathlib import Path

from manyfaces.configs import rng
from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.manifest import Manifest
from manyfaces.data.dataset.write import Item, write_dataset
from manyfaces.data.synthetic.faces import encode


def synthesise(
    out: Path,
    num_identities: int,
    images_each: int,
    *,
    seed: int = 0,
    processes: int | None = None,
    shard_images: int = 8192,
) -> Manifest:
    """Write a dataset of made identities, which has the same bytes on any machine. Raises
    `UserError` for fewer than two identities or no images."""
    if num_identities < 2 or images_each < 1:
        raise UserError(
            f"{num_identities} identities of {images_each} images: at least 2 identities of 1 "
            "image are needed"
        )
    return write_dataset(
        out,
        _SyntheticItems(num_identities, images_each, seed),
        _encode,
        [f"synthetic-{seed}-{n:08d}" for n in range(num_identities)],
        source={"source": "synthetic", "seed": seed, "images_each": images_each},
        shard_images=shard_images,
        processes=processes,
    )


class _SyntheticItems:
    """Images of made identities in seeded random order; a shard's items are made when it is."""

    def __init__(self, num_identities: int, images_each: int, seed: int) -> None:
        self.images_each, self.seed = images_each, seed
        num_images = num_identities * images_each
        self.order = rng.permutation(rng.key(seed, rng.Stream.CONVERT_IMAGES), num_images)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> list[Item]:
        numbers = (divmod(number, self.images_each) for number in self.order[part].tolist())
        return [
            Item((self.seed, identity, image), f"{identity:08d}/{image:04d}", identity)
            for identity, image in numbers
        ]


def _encode(source: object) -> bytes:
    assert isinstance(source, tuple)
    seed, identity, image = source
    return encode(seed, identity, image)
