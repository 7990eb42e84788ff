"""The part of the configuration that says what is trained on: `data`."""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from manyfaces.configs.node import Node, Probability

SMALLEST_SHARE = Fraction(1, 1000)
"""Of a part in a mixture."""


class Augment(Node):
    """Random changes of an image, in the order given here; each is a pure function of (seed,
    position)."""

    mask: Probability = 0.0
    """Probability that the lower face is painted gray, as a medical mask hides it."""
    mask_top: tuple[Probability, Probability] = (0.5, 0.65)
    """Lowest and highest upper edge of the mask, as a share of the height."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    misalign: Probability = 1.0
    """Probability of shift, scale and rotation together (the misalignments of ARoFace, arXiv
    2407.14972)."""
    shift_px: Annotated[float, Field(ge=0, le=56)] = 0.0
    """Largest translation along each axis, uniform."""
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest relative change of size, uniform."""
    rotate_deg: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Largest rotation, uniform."""
    crop: Probability = 0.0
    """Probability that a random square part of the image is shown in full size."""
    crop_min: Annotated[float, Field(ge=0.2, le=1)] = 0.7
    """Smallest side of that part, as a share of the image's."""
    colour: Probability = 1.0
    """Probability of brightness, contrast and saturation together."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of brightness, uniform; likewise contrast and saturation."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of contrast around mid gray."""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of saturation."""
    gray: Probability = 0.0
    """Probability of an image without colour."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma_px: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """Smallest and largest standard deviation of the blur, uniform."""
    low_resolution: Probability = 0.0
    """Probability that the image is made smaller and large again (AdaFace's, arXiv 2204.00964)."""
    low_resolution_px: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = (22, 112)
    """Smallest and largest side in between, uniform."""
    jpeg: Probability = 0.0
    """Probability that the image is compressed again."""
    jpeg_quality: tuple[
        Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]
    ] = (30, 90)
    """Lowest and highest quality of that, uniform."""
    erase: Probability = 0.0
    """Probability of a random rectangle painted gray (random erasing, arXiv 1708.04896)."""
    erase_px: tuple[PositiveInt, PositiveInt] = (16, 56)
    """Smallest and largest side of the erased rectangle."""

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        for name in ("mask_top", "blur_sigma_px", "low_resolution_px", "jpeg_quality", "erase_px"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the smallest {low} is above the largest {high}")
        return self


class Part(Node):
    """One dataset of a mixture."""

    path: str
    """Its folder or URL."""
    weight: PositiveFloat = 1.0
    """Share of a batch's images, relative to the others'."""


class Data(Node):
    path: str = ""
    """Folder or URL (`s3://`, `gs://`, `https://`) of the dataset: shards, `index.arrow` and
    `manyfaces.json`, as `manyfaces data convert|synth|index` write them."""
    cache_dir: str = "~/.cache/manyfaces"
    """Where each node keeps the shards of a dataset at an URL; best on its NVMe disk. All datasets
    and runs of the node share it."""
    cache_gb: PositiveFloat = 100.0
    """Most bytes of shards in it, in 10^9; two windows let the next one be fetched while one is
    trained on."""
    store_patience_s: PositiveFloat = 300.0
    """How long a store at an URL may be away before the run stops; below
    `cluster.step_timeout_s`."""
    image_px: Annotated[int, Field(ge=32, le=1024)] = 112
    """Side of the square image that the model sees; other sizes are resized."""
    order: Literal["shuffle", "pk", "mixture"] = "shuffle"
    """Every sample once an epoch; P identities x K images a batch (triplet losses, balanced
    training), all shards near; or several datasets mixed by weight."""
    mixture: tuple[Part, ...] = ()
    """The datasets of the order `mixture`, in place of `path`. They are taken as disjoint people,
    all classes of one softmax; sets that share people are merged by `manyfaces data convert
    --identity-map` instead."""
    images_per_identity: Annotated[int, Field(ge=2)] = 4
    """K of the order `pk`; P is train.batch_size / K."""
    window_shards: PositiveInt = 16
    """Shards shuffled together: what has to be near at one time, of each part of a mixture."""
    decode_threads: PositiveInt = 1
    """DALI's CPU threads of each worker."""
    prefetch_batches: PositiveInt = 2
    """Batches decoded ahead of the step."""
    max_bad_share: Probability = 0.001
    """Samples that may turn out undecodable before the run stops, as a share of the dataset."""
    verify: Literal["auto", "sizes", "hashes"] = "auto"
    """Before step 0: sizes and the ends of every shard, or SHA-256 of all bytes. `auto` hashes up
    to 4 GiB."""
    expect_images: PositiveInt | None = None
    """Images of the dataset the recipe is for: what the plan uses where the dataset is not at
    hand."""
    expect_identities: PositiveInt | None = None
    """Identities, likewise."""
    augment: Augment = Augment()

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the dataset, or of the mixture's parts."""
        return tuple(part.path for part in self.mixture) or (self.path,)

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Of the mixture's parts, 1 in all; weights are counted in decimals, so that 0.1 is a
        tenth."""
        weights = [Fraction(str(part.weight)) for part in self.mixture]
        return tuple(weight / sum(weights) for weight in weights)

    @model_validator(mode="after")
    def _one_or_several(self) -> "Data":
        if self.order != "mixture":
            if self.mixture:
                raise ValueError(
                    f"mixture has {len(self.mixture)} parts, but order is {self.order}; set "
                    "data.order=mixture or remove them"
                )
            return self
        if len(self.mixture) < 2:
            example = "'[{path: A, weight: 2}, {path: B, weight: 1}]'"
            raise ValueError(
                f"order mixture needs two datasets, mixture has {len(self.mixture)}; set "
                f"data.mixture={example}"
            )
        if self.path:
            remedy = "make it a part, and set \"data.path=''\""
            raise ValueError(
                f"order mixture takes its datasets from mixture, but path is {self.path}; {remedy}"
            )
        part, share = min(zip(self.mixture, self.shares, strict=True), key=lambda each: each[1])
        if share < SMALLEST_SHARE:
            limit = f"the smallest share is {float(SMALLEST_SHARE):.1%}"
            raise ValueError(
                f"mixture: {part.path} with weight {part.weight:g} has {float(share):.2%} of all; "
                f"{limit}: raise it or leave it out"
            )
        return self
