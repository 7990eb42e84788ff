"""Section `head`: the margin softmax, and how its class rows are kept."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.configs.margins.margin import Margin
from manyfaces.configs.node import NOTHING, TENSORS, Decides, Node, Probability

Decay = Annotated[float, Field(ge=0, lt=1)]


def _momentum(rows: "Rows") -> str:
    """Whether there is momentum, as far as the optimiser of the rows keeps it."""
    return "above 0" if rows.optimizer != "sgd" or rows.momentum > 0 else "0"


class Rows(Node):
    """How class rows (centres) are stored and updated."""

    optimizer: Annotated[Literal["sgd", "rowwise", "adamw"], TENSORS] = "sgd"
    """SGD with momentum on touched rows only; the same without the momentum's vector: unit rows and
    two numbers a row; or AdamW on touched rows only: two vectors and a number a row (arXiv
    1711.05101). Bytes a class at 512 dimensions: 4,096 with `sgd` and 6,148 with `adamw` in
    float32, 3,072 with `sgd` and 1,032 with `rowwise` in float16, 520 with `rowwise` in float8."""
    dtype: Literal["float32", "bfloat16", "float16", "float8"] = "float32"
    """Type of the stored rows; 16 and 8 bits are rounded stochastically, by noise that depends on
    (seed, position, class). float8 (E4M3) is for `rowwise`, whose rows have length 1: 36 million
    identities of 512 dimensions in 18.7 GB (ELMO, arXiv 2510.11168)."""
    momentum: Annotated[float, Field(ge=0, lt=1), Decides("tensors", by=_momentum)] = 0.9
    """`rowwise` keeps none and steps by lr / (1 - momentum), as far as momentum carries a gradient
    in the end; `adamw` has `betas`."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """`adamw`: how much of the gradient's mean and of its square's a step keeps."""
    eps: Annotated[float, Field(ge=1e-30)] = 1e-8
    """`adamw`: added to the root of the square's mean."""
    lr_scale: PositiveFloat = 1.0
    """Factor on the backbone's learning rate; for a backbone trained with AdamW."""
    weight_decay: NonNegativeFloat | None = None
    """Decay of the rows; none is the backbone's. AdamW's 0.1 would pull rows under SGD to zero."""
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
        if self.dtype == "float8" and self.optimizer != "rowwise":
            raise ValueError(
                f"dtype float8 needs optimizer rowwise, whose rows have length 1, not "
                f"{self.optimizer}; set head.rows.optimizer=rowwise or head.rows.dtype=float16"
            )
        return self


class Head(Node):
    """The margin softmax, and how its class rows are kept."""

    margin: Margin = ArcFace()
    """What is done to cosines before they become a loss."""
    sub_centers: Annotated[int, Field(ge=1, le=16), TENSORS] = 1
    """Rows of each class, of which the nearest counts: noise gathers at rows of its own (ECCV 2020,
    Deng et al., who take 3), and `manyfaces head report` lists it. Rows and arithmetic grow by this
    factor."""
    filter_above: Annotated[float, Field(gt=0, le=1)] | None = None
    """Other classes at a larger cosine than this are left out, as the same person under two labels
    (inter-class filtering; InsightFace)."""
    label_spaces: Literal["joint", "each"] = "joint"
    """Where several datasets are mixed: one softmax over all their classes, or a head for each
    dataset, whose samples see its classes only: for datasets that share people."""
    scale: Annotated[float, Field(gt=0, le=512)] = 64.0
    """Factor s of the cosines."""
    sample_rate: Probability = 1.0
    """Share of the classes that serve as negatives of a step, in blocks of 128 (Partial FC, arXiv
    2203.15565), the same at any number of workers, besides all positives; 0 is positives only. Only
    the rows of these classes move."""
    chunk_classes: PositiveInt | Literal["auto"] = "auto"
    """Classes scored at a time: the head's memory beyond its rows is batch x this. `auto` is 2,064
    on CPU, to stay in its caches, and 16,384 on a GPU, to keep it busy."""
    logits: Literal["recompute", "store16"] = "recompute"
    """Second pass over the rows: score them again, or keep 16 bits of each score from the first,
    for batch x classes x 2 bytes: faster on CPU and as exact; on a GPU it switches Triton's kernels
    off."""
    wire_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which embeddings and their gradients travel between ranks."""
    placement: Annotated[Literal["device", "host"], NOTHING] = "device"
    """Where all class rows and their optimiser's state live: with `host` in the worker's host
    memory, and those that a step chose travel to the device and back beside the backbone, with
    the same numbers as a result; it needs `sample_rate` below 1, and the host waits for labels. May
    change when a run is resumed."""
    rows: Rows = Rows()
    """How the class rows are stored and updated."""

    def check_unused(self, objective: str) -> None:
        """Raise `ValueError` for settings that a person would miss where the objective has no head.
        Margin, scale and rows may stand in a recipe's base."""
        for name in ("sub_centers", "filter_above", "label_spaces", "placement"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(
                    f"head.{name} {value} does nothing where objective {objective} has no class "
                    "centres; leave it out"
                )

    @model_validator(mode="after")
    def _placed(self) -> "Head":
        if self.placement == "host" and self.sample_rate == 1:
            raise ValueError(
                "placement host needs sample_rate below 1, or all rows would travel twice in every "
                "step; set head.sample_rate=0.1"
            )
        return self
