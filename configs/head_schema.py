"""The part of the configuration that says by which loss, and how its class rows are kept: `head`.

The docstring of each kind of margin says when to use it: `manyfaces check --explain head` shows it.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from manyfaces.configs.node import Node, Probability

Decay = Annotated[float, Field(ge=0, lt=1)]


class SoftmaxMargin(Node):
    """No margin: a baseline, and to warm up labels too noisy for one."""

    kind: Literal["softmax"]


class ArcFaceMargin(Node):
    """The default: clean data of any size."""

    kind: Literal["arcface"]
    m: Annotated[float, Field(ge=0, le=1.5)] = 0.5
    """Additive angle in radians (arXiv 1801.07698)."""
    gradient: Literal["exact", "straight_through"] = "exact"
    """`straight_through` is InsightFace's: cos(theta + m) without a bend at pi, its gradient that
    of cos(theta); for parity with its models, and milder for transformers."""


class CosFaceMargin(Node):
    """Easier to train than ArcFace: small batches, noisy labels, low sample rates, 16 bits."""

    kind: Literal["cosface"]
    m: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Subtracted from the target cosine (arXiv 1801.09414)."""


class CombinedMargin(Node):
    """Between ArcFace and CosFace, as InsightFace's recipes of 2018 had it; tune m2 and m3 on a
    held-out set."""

    kind: Literal["combined"]
    m1: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Factor of the angle: cos(m1 theta + m2) - m3 (arXiv 1801.07698, equation 4)."""
    m2: Annotated[float, Field(ge=0, le=1.5)] = 0.3
    m3: Annotated[float, Field(ge=0, le=1)] = 0.2


class SphereFaceMargin(Node):
    """The multiplicative angle, to compare with published work; scale 30."""

    kind: Literal["sphereface"]
    m: Annotated[float, Field(ge=1, le=8)] = 1.5
    """Factor of the angle (arXiv 1704.08063 has 4 with annealing, arXiv 2109.05565 and its code 1.5
    without)."""


class AdaFaceMargin(Node):
    """Images of mixed quality, surveillance among them: blurred faces that nobody could recognise
    pull less."""

    kind: Literal["adaface"]
    m: Annotated[float, Field(ge=0, le=1.5)] = 0.4
    """Largest margin, as angle and as cosine (arXiv 2204.00964)."""
    h: Annotated[float, Field(gt=0, le=10)] = 0.333
    """How much of the norms' spread counts as quality."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Weight of a batch in the running mean and deviation of the norms."""


class MagFaceMargin(Node):
    """Where the embedding's norm is to tell the image's quality afterwards."""

    kind: Literal["magface"]
    low: PositiveFloat = 10.0
    """Norms below count as this (arXiv 2103.06627, l_a)."""
    high: PositiveFloat = 110.0
    """Norms above count as this (u_a)."""
    low_m: Annotated[float, Field(ge=0, le=1.5)] = 0.45
    """Additive angle at `low` (l_m)."""
    high_m: Annotated[float, Field(ge=0, le=1.5)] = 0.8
    """Additive angle at `high` (u_m)."""
    regulariser: NonNegativeFloat = 35.0
    """Weight of the term that draws norms upwards (lambda_g)."""

    @model_validator(mode="after")
    def _ordered(self) -> "MagFaceMargin":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self


class CurricularFaceMargin(Node):
    """Long schedules on clean data: hard classes come in as the model learns; steps cost a little
    more."""

    kind: Literal["curricularface"]
    m: Annotated[float, Field(ge=0, le=1.5)] = 0.5
    """Additive angle in radians (arXiv 2004.00288)."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Weight of a batch in the running mean of the target cosines."""


class SphereFace2Margin(Node):
    """Noisy labels, and verification by one threshold: each class is a yes-or-no question; scale
    40, all classes in every step."""

    kind: Literal["sphereface2"]
    m: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Margin on both sides of the threshold (arXiv 2108.01513)."""
    balance: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Weight of the own class against all others (lambda)."""
    t: Annotated[float, Field(ge=1, le=6)] = 3.0
    """Exponent that spreads the similarities."""
    weight: PositiveFloat = 50.0
    """Factor of the loss, the official code's: it brings gradients to the size of a softmax's."""


class UniFaceMargin(Node):
    """One threshold that separates all pairs, as verification uses it; all classes in every
    step."""

    kind: Literal["uniface"]
    m: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Subtracted from the target cosine (Zhou et al., ICCV 2023)."""
    balance: PositiveFloat = 1.0
    """Weight of the other classes (lambda)."""


class NoMargin(Node):
    """No classes at all: `head.triplet` alone."""

    kind: Literal["none"]


class CustomMargin(Node):
    """A margin of your own: a class in a file."""

    kind: Literal["custom"]
    file: str
    """Python file that every worker sees."""
    name: str
    """The class in it, derived from `manyfaces.models.margins.margin.Margin`."""
    parameters: dict[str, float] = Field(default_factory=dict)
    """What it is made with."""


Margin = Annotated[
    SoftmaxMargin
    | ArcFaceMargin
    | CosFaceMargin
    | CombinedMargin
    | SphereFaceMargin
    | AdaFaceMargin
    | MagFaceMargin
    | CurricularFaceMargin
    | SphereFace2Margin
    | UniFaceMargin
    | CustomMargin
    | NoMargin,
    Field(discriminator="kind"),
]


class Triplet(Node):
    """Triplet loss over the whole batch; it needs several images of an identity in a batch
    (`data.order=pk`)."""

    weight: PositiveFloat = 1.0
    """Factor of this loss."""
    mining: Literal["batch_hard", "semi_hard"] = "batch_hard"
    """Of each anchor the farthest positive and the nearest negative (arXiv 1703.07737), or of each
    anchor and positive the nearest negative that is farther away (FaceNet, arXiv 1503.03832)."""
    margin: Annotated[float, Field(ge=0, le=4)] | Literal["soft"] = 0.3
    """By how much a negative has to be farther away than a positive, in the unit of `distance`;
    `soft` is softplus, without a margin."""
    distance: Literal["euclidean", "squared"] = "euclidean"
    """Between unit embeddings, 0 to 2, or its square, FaceNet's, 0 to 4."""


class Rows(Node):
    """How class rows (centres) are stored and updated."""

    optimizer: Literal["sgd", "rowwise", "adamw"] = "sgd"
    """SGD with momentum on touched rows only; the same without the momentum's vector: unit rows and
    two numbers a row; or AdamW on touched rows only: two vectors and a number a row (arXiv
    1711.05101)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the stored rows; 16 bits are rounded stochastically. With `rowwise`, float16 rows take
    1,032 bytes a class at 512 dimensions."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """`rowwise` keeps none and steps by lr / (1 - momentum), as far as momentum carries a gradient
    in the end; `adamw` has `betas`."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """`adamw`: how much of the gradient's mean and of its square's a step keeps."""
    eps: Annotated[float, Field(ge=1e-30)] = 1e-8
    """`adamw`: added to the root of the square's mean."""
    lr_scale: PositiveFloat = 1.0
    """Factor on the backbone's learning rate; for a backbone trained with AdamW."""
    weight_decay: NonNegativeFloat | None = None
    """Of the rows; none is the backbone's. AdamW's 0.1 would pull rows under SGD to zero."""
    lazy_decay: bool = False
    """`sgd`: rows that a step leaves out decay and their momentum goes on, as in a dense optimiser,
    all at once when they are next drawn: a second pass over drawn rows and their momentum, and 4
    bytes a class."""

    @model_validator(mode="after")
    def _lazy(self) -> "Rows":
        if self.lazy_decay and self.optimizer != "sgd":
            raise ValueError(
                f"lazy_decay needs optimizer sgd, not {self.optimizer}; set "
                "head.rows.lazy_decay=false"
            )
        return self


class Head(Node):
    margin: Margin = ArcFaceMargin(kind="arcface")
    sub_centers: Annotated[int, Field(ge=1, le=16)] = 1
    """Rows of each class, of which the nearest counts: noise gathers at rows of its own (ECCV 2020,
    Deng et al., who take 3), and `manyfaces head report` lists it. Rows and arithmetic grow by this
    factor."""
    filter_above: Annotated[float, Field(gt=0, le=1)] | None = None
    """Other classes at a larger cosine are left out, as the same person under two labels
    (inter-class filtering; InsightFace)."""
    label_spaces: Literal["joint", "each"] = "joint"
    """Of the order `mixture`: one softmax over all datasets' classes, or a head for each dataset,
    whose samples see its classes only: for datasets that share people."""
    triplet: Triplet | None = None
    """A triplet loss beside the margin, as person re-identification has it, or alone by `margin:
    {kind: none}`; needs `data.order: pk`."""
    scale: Annotated[float, Field(gt=0, le=512)] = 64.0
    """Factor s of the cosines."""
    sample_rate: Probability = 1.0
    """Share of the classes that serve as negatives of a step, in blocks of 128 (Partial FC, arXiv
    2203.15565); 0 is positives only."""
    chunk_classes: PositiveInt | Literal["auto"] = "auto"
    """Classes scored at a time: the head's memory beyond its rows is batch x this. `auto` is 1,024
    on CPU, to stay in its caches, and 16,384 on a GPU, to keep it busy."""
    logits: Literal["recompute", "store16"] = "recompute"
    """Second walk over the rows: score them again, or keep 16 bits of each score from the first,
    for batch x classes x 2 bytes: faster on CPU; on a GPU it switches Triton's kernels off."""
    wire_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of embeddings and their gradients between ranks."""
    placement: Literal["device", "host"] = "device"
    """Where all class rows and their optimiser's state live: with `host` in the worker's host
    memory, and those that a step chose travel to the device and back beside the backbone; it needs
    `sample_rate` below 1. May change when a run is resumed."""
    rows: Rows = Rows()

    @model_validator(mode="after")
    def _placed(self) -> "Head":
        if self.placement == "host" and self.margin.kind == "none":
            raise ValueError(
                "placement host: margin none has no class rows to place; set head.placement=device"
            )
        if self.placement == "host" and self.sample_rate == 1:
            raise ValueError(
                "placement host needs sample_rate below 1, or all rows would travel twice in every "
                "step; set head.sample_rate=0.1"
            )
        return self
