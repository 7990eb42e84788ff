"""Section `data`: what is trained on, in which order, and how each image is shown."""

from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from manyfaces.configs.node import (
    NODE_PATH,
    NOTHING,
    ON_FILE_SYSTEM,
    PATH,
    RESULTS,
    TENSORS,
    Decides,
    Node,
    Probability,
)
from manyfaces.configs.orders.order import Order
from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.transform import Transform

Px = Annotated[int, Field(ge=32, le=1024)]
SMALLEST_SHARE = Fraction(1, 1000)
"""The smallest share of a batch that a part of a mixture may have."""


class Part(Node):
    """One dataset of a mixture."""

    path: Annotated[str, NOTHING, PATH]
    """The dataset's folder or URL."""
    weight: PositiveFloat = 1.0
    """Share of a batch's images, relative to the weights of the other parts."""


class Data(Node):
    """What is trained on, in which order, and how each image is shown."""

    decides: ClassVar[Decides] = NOTHING

    path: Annotated[str, PATH] = ""
    """Folder or URL (`s3://`, `gs://`, `https://`; `pip install manyfaces[s3]`, `[gcs]`, `[http]`)
    of the dataset: WebDataset shards, `index.arrow` (shard, offset, size and identity of each
    sample) and `manyfaces.json` (bytes, samples and SHA-256 of each shard), as `manyfaces data
    convert|synth|index` write them. Credentials and endpoints of a store are the drivers' own
    (`AWS_PROFILE`, `AWS_ENDPOINT_URL` and their like), set on every node; the store has to let you
    list, so that a missing shard can be told from a forbidden one."""
    cache_dir: Annotated[str, NODE_PATH, ON_FILE_SYSTEM] = "~/.cache/manyfaces"
    """Where each node keeps the shards of a dataset at a URL; best on its NVMe disk. All datasets
    and runs of the node share it. Whole shards are fetched once for all processes of the node, and
    compared with their size and SHA-256 before they are used."""
    cache_gb: PositiveFloat = 100.0
    """Most bytes of shards in it, in 10^9; two windows of the order let the next one be fetched
    while one is trained on, and one is the least."""
    store_patience_s: PositiveFloat = 300.0
    """How long a store at a URL may be away before the run stops; below
    `cluster.step_timeout_s`. What may pass (5xx, timeouts, resets, torn bodies) is tried again for
    as long; a shard that is missing or forbidden stops the run at once. A run that stops saves a
    checkpoint first, and the same command resumes it."""
    image_px: Annotated[Px | tuple[Px, Px], TENSORS] = 112
    """Side of the square image that the model sees, or [height, width]; other sizes are resized."""
    order: Annotated[Order, RESULTS] = Shuffle()
    """Which samples make a batch: a pure function of (seed, position), whatever the number of
    workers. Batches are always full. A sample that cannot be decoded keeps its place with label -1
    and is named in `quarantine.jsonl`."""
    mixture: Annotated[tuple[Part, ...], RESULTS] = ()
    """Several datasets mixed by weight, in place of `path`, near or far and under any `order`:
    "data.path=''" 'data.mixture=[{path: A, weight: 3}, {path: B}]'. Of each 1,000 images every part
    has exactly its share (0.1 % at least) and goes through epochs of its own; an epoch is as many
    images as the parts have. They are taken as disjoint people, all classes of one softmax; sets
    that share people are merged by `manyfaces data convert --identity-map` instead, or have a head
    each (`head.label_spaces`)."""
    decode_threads: PositiveInt | Literal["auto"] = "auto"
    """DALI's CPU threads of each worker; `auto` is its share of its node's cores, less
    `cluster.threads_per_worker`: at least 1, at most 8."""
    prefetch_batches: PositiveInt = 2
    """Batches decoded ahead of the step."""
    max_bad_share: Probability = 0.001
    """Samples that may turn out undecodable before the run stops, as a share of the dataset."""
    verify: Literal["auto", "sizes", "hashes"] = "auto"
    """What is checked before step 0: sizes and the ends of every shard, or SHA-256 of all bytes.
    `auto` hashes up to 4 GiB."""
    expect_images: PositiveInt | None = None
    """Images of the dataset the recipe is for: what the plan uses where the dataset is not at
    hand."""
    expect_identities: PositiveInt | None = None
    """Identities of the dataset the recipe is for."""
    augment: Annotated[tuple[Transform, ...], RESULTS] = (Flip(),)
    """Random changes of each image, in this order; DALI carries out choices that are pure functions
    of (seed, position). One that cannot change an image is left out. `data.augment.blur.p=0.1`
    changes the settings of one, or adds it."""

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the image that the model sees, in pixels."""
        px = self.image_px
        return px if isinstance(px, tuple) else (px, px)

    @property
    def paths(self) -> tuple[str, ...]:
        """Folders or URLs of the dataset, or of the mixture's parts."""
        return tuple(part.path for part in self.mixture) or (self.path,)

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Shares of the mixture's parts in a batch, which sum to 1; weights are counted in
        decimals, so that 0.1 is a tenth."""
        weights = [Fraction(str(part.weight)) for part in self.mixture]
        return tuple(weight / sum(weights) for weight in weights)

    @field_validator("image_px")
    @classmethod
    def _square_is_one_number(cls, image_px: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(image_px, tuple) and image_px[0] == image_px[1]:
            return image_px[0]
        return image_px

    @field_validator("augment")
    @classmethod
    def _without_idle(cls, augment: tuple[Transform, ...]) -> tuple[Transform, ...]:
        """Two trees that show each image alike are then equal."""
        return tuple(transform for transform in augment if transform.has_effect())

    @model_validator(mode="after")
    def _one_or_several(self) -> "Data":
        if not self.mixture:
            return self
        if len(self.mixture) < 2:
            example = "'[{path: A, weight: 2}, {path: B, weight: 1}]'"
            raise ValueError(
                "mixture needs two datasets, and has one; set data.path to it, or "
                f"data.mixture={example}"
            )
        if self.path:
            raise ValueError(
                f"mixture names the datasets, but path is {self.path}; make it a part, and set "
                "\"data.path=''\""
            )
        part, share = min(zip(self.mixture, self.shares, strict=True), key=lambda each: each[1])
        if share < SMALLEST_SHARE:
            limit = f"the smallest share is {float(SMALLEST_SHARE):.1%}"
            raise ValueError(
                f"mixture: {part.path} with weight {part.weight:g} has {float(share):.2%} of all; "
                f"{limit}: raise it or leave it out"
            )
        return self
