"""The one configuration tree. Every field has a range, a unit in its name where it has one, and a sentence under it.

Sums are told apart by a `kind` literal. `manyfaces.configs.load` makes the tree from YAML and `path.to.key=value` words.
"""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from manyfaces.configs.architectures import ViTSize

Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
SMALLEST_SHARE = Fraction(1, 1000)
"""Of a part in a mixture."""


class UserError(ValueError):
    """A person's mistake or a condition that a person must mend: shown as one line, without a traceback, exit code 2."""


class Node(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Run(Node):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "first"
    """The run's folder under `dir`. Typing the same name again resumes the run."""
    dir: str = "runs"
    """Folder of all runs; on a cluster a path that every node sees."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the weights, the order, the augmentation and the sampled classes."""
    resume_from: str | None = None
    """A checkpoint folder (`runs/OLD/checkpoints/step-...`) to start a new run name from."""


class Augment(Node):
    """Random changes of an image, in the order given here; each is a pure function of (seed, position)."""

    mask: Probability = 0.0
    """Probability that the lower face is painted gray, as a medical mask hides it."""
    mask_top: tuple[Probability, Probability] = (0.5, 0.65)
    """Lowest and highest upper edge of the mask, as a share of the height."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    misalign: Probability = 1.0
    """Probability of shift, scale and rotation together (the misalignments of ARoFace, arXiv 2407.14972)."""
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
    jpeg_quality: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (30, 90)
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
    """Folder or URL (`s3://`, `gs://`, `https://`) of the dataset: shards, `index.arrow` and `manyfaces.json`, as
    `manyfaces data convert|synth|index` write them."""
    cache_dir: str = "~/.cache/manyfaces"
    """Where each node keeps the shards of a dataset at an URL; best on its NVMe disk. All datasets and runs of the node share it."""
    cache_gb: PositiveFloat = 100.0
    """Most bytes of shards in it, in 10^9; two windows let the next one be fetched while one is trained on."""
    store_patience_s: PositiveFloat = 300.0
    """How long a store at an URL may be away before the run stops; below `cluster.step_timeout_s`."""
    image_px: Annotated[int, Field(ge=32, le=1024)] = 112
    """Side of the square image that the model sees; other sizes are resized."""
    order: Literal["shuffle", "pk", "mixture"] = "shuffle"
    """Every sample once an epoch; P identities x K images a batch (triplet losses, balanced training), all shards near; or several
    datasets mixed by weight."""
    mixture: tuple[Part, ...] = ()
    """The datasets of the order `mixture`, in place of `path`. They are taken as disjoint people, all classes of one softmax; sets that
    share people are merged by `manyfaces data convert --identity-map` instead."""
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
    """Before step 0: sizes and the ends of every shard, or SHA-256 of all bytes. `auto` hashes up to 4 GiB."""
    expect_images: PositiveInt | None = None
    """Images of the dataset the recipe is for: what the plan uses where the dataset is not at hand."""
    expect_identities: PositiveInt | None = None
    """Identities, likewise."""
    augment: Augment = Augment()

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the dataset, or of the mixture's parts."""
        return tuple(part.path for part in self.mixture) or (self.path,)

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Of the mixture's parts, 1 in all; weights are counted in decimals, so that 0.1 is a tenth."""
        weights = [Fraction(str(part.weight)) for part in self.mixture]
        return tuple(weight / sum(weights) for weight in weights)

    @model_validator(mode="after")
    def _one_or_several(self) -> "Data":
        if self.order != "mixture":
            if self.mixture:
                raise ValueError(f"mixture has {len(self.mixture)} parts, but order is {self.order}; set data.order=mixture or remove them")
            return self
        if len(self.mixture) < 2:
            example = "'[{path: A, weight: 2}, {path: B, weight: 1}]'"
            raise ValueError(f"order mixture needs two datasets, mixture has {len(self.mixture)}; set data.mixture={example}")
        if self.path:
            remedy = "make it a part, and set \"data.path=''\""
            raise ValueError(f"order mixture takes its datasets from mixture, but path is {self.path}; {remedy}")
        part, share = min(zip(self.mixture, self.shares, strict=True), key=lambda each: each[1])
        if share < SMALLEST_SHARE:
            limit = f"the smallest share is {float(SMALLEST_SHARE):.1%}"
            raise ValueError(
                f"mixture: {part.path} with weight {part.weight:g} has {float(share):.2%} of all; {limit}: raise it or leave it out"
            )
        return self


class IResNetModel(Node):
    kind: Literal["iresnet"]
    depth: Literal[18, 34, 50, 100, 200] = 50
    embedding_dim: PositiveInt = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Before the last linear layer."""


class MobileFaceNetModel(Node):
    kind: Literal["mobilefacenet"]
    scale: Literal[1, 2, 4] = 2
    """Width multiplier; 2 is InsightFace's `get_mbf`."""
    embedding_dim: PositiveInt = 512


class ViTModel(Node):
    kind: Literal["vit"]
    size: ViTSize = "base"
    embedding_dim: PositiveInt = 512
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest rate of stochastic depth, growing linearly with depth."""
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of tokens hidden in training."""


Model = Annotated[IResNetModel | MobileFaceNetModel | ViTModel, Field(discriminator="kind")]


class SoftmaxMargin(Node):
    """No margin: a baseline, and to warm up labels too noisy for one."""

    kind: Literal["softmax"]


class ArcFaceMargin(Node):
    """The default: clean data of any size."""

    kind: Literal["arcface"]
    m: Annotated[float, Field(ge=0, le=1.5)] = 0.5
    """Additive angle in radians (arXiv 1801.07698)."""
    gradient: Literal["exact", "straight_through"] = "exact"
    """`straight_through` is InsightFace's: cos(theta + m) without a bend at pi, its gradient that of cos(theta); for parity with its
    models, and milder for transformers."""


class CosFaceMargin(Node):
    """Easier to train than ArcFace: small batches, noisy labels, low sample rates, 16 bits."""

    kind: Literal["cosface"]
    m: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Subtracted from the target cosine (arXiv 1801.09414)."""


class CombinedMargin(Node):
    """Between ArcFace and CosFace, as InsightFace's recipes of 2018 had it; tune m2 and m3 on a held-out set."""

    kind: Literal["combined"]
    m1: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Factor of the angle: cos(m1 theta + m2) - m3 (arXiv 1801.07698, equation 4)."""
    m2: Annotated[float, Field(ge=0, le=1.5)] = 0.3
    m3: Annotated[float, Field(ge=0, le=1)] = 0.2


class SphereFaceMargin(Node):
    """The multiplicative angle, to compare with published work; scale 30."""

    kind: Literal["sphereface"]
    m: Annotated[float, Field(ge=1, le=8)] = 1.5
    """Factor of the angle (arXiv 1704.08063 has 4 with annealing, arXiv 2109.05565 and its code 1.5 without)."""


class AdaFaceMargin(Node):
    """Images of mixed quality, surveillance among them: blurred faces that nobody could recognise pull less."""

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
    """Long schedules on clean data: hard classes come in as the model learns; steps cost a little more."""

    kind: Literal["curricularface"]
    m: Annotated[float, Field(ge=0, le=1.5)] = 0.5
    """Additive angle in radians (arXiv 2004.00288)."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Weight of a batch in the running mean of the target cosines."""


class SphereFace2Margin(Node):
    """Noisy labels, and verification by one threshold: each class is a yes-or-no question; scale 40, all classes in every step."""

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
    """One threshold that separates all pairs, as verification uses it; all classes in every step."""

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
    """The class in it, derived from `manyfaces.models.margins.Margin`."""
    parameters: dict[str, float] = {}
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
    """Triplet loss over the whole batch; it needs several images of an identity in a batch (`data.order=pk`)."""

    weight: PositiveFloat = 1.0
    """Factor of this loss."""
    mining: Literal["batch_hard", "semi_hard"] = "batch_hard"
    """Of each anchor the farthest positive and the nearest negative (arXiv 1703.07737), or of each anchor and positive the nearest negative
    that is farther away (FaceNet, arXiv 1503.03832)."""
    margin: Annotated[float, Field(ge=0, le=4)] | Literal["soft"] = 0.3
    """By how much a negative has to be farther away than a positive, in the unit of `distance`; `soft` is softplus, without a margin."""
    distance: Literal["euclidean", "squared"] = "euclidean"
    """Between unit embeddings, 0 to 2, or its square, FaceNet's, 0 to 4."""


class Rows(Node):
    """How class rows (centres) are stored and updated."""

    optimizer: Literal["sgd", "rowwise", "adamw"] = "sgd"
    """SGD with momentum on touched rows only; the same without the momentum's vector: unit rows and two numbers a row; or AdamW on touched
    rows only: two vectors and a number a row (arXiv 1711.05101)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the stored rows; 16 bits are rounded stochastically. With `rowwise`, float16 rows take 1,032 bytes a class at 512 dimensions."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """`rowwise` keeps none and steps by lr / (1 - momentum), as far as momentum carries a gradient in the end; `adamw` has `betas`."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """`adamw`: how much of the gradient's mean and of its square's a step keeps."""
    eps: Annotated[float, Field(ge=1e-30)] = 1e-8
    """`adamw`: added to the root of the square's mean."""
    lr_scale: PositiveFloat = 1.0
    """Factor on the backbone's learning rate; for a backbone trained with AdamW."""
    weight_decay: NonNegativeFloat | None = None
    """Of the rows; none is the backbone's. AdamW's 0.1 would pull rows under SGD to zero."""
    lazy_decay: bool = False
    """`sgd`: rows that a step leaves out decay and their momentum goes on, as in a dense optimiser, all at once when they are next drawn:
    a second pass over drawn rows and their momentum, and 4 bytes a class."""

    @model_validator(mode="after")
    def _lazy(self) -> "Rows":
        if self.lazy_decay and self.optimizer != "sgd":
            raise ValueError(f"lazy_decay needs optimizer sgd, not {self.optimizer}; set head.rows.lazy_decay=false")
        return self


class Head(Node):
    margin: Margin = ArcFaceMargin(kind="arcface")
    sub_centers: Annotated[int, Field(ge=1, le=16)] = 1
    """Rows of each class, of which the nearest counts: noise gathers at rows of its own (ECCV 2020, Deng et al., who take 3), and
    `manyfaces head report` lists it. Rows and arithmetic grow by this factor."""
    filter_above: Annotated[float, Field(gt=0, le=1)] | None = None
    """Other classes at a larger cosine are left out, as the same person under two labels (inter-class filtering; InsightFace)."""
    label_spaces: Literal["joint", "each"] = "joint"
    """Of the order `mixture`: one softmax over all datasets' classes, or a head for each dataset, whose samples see its classes only:
    for datasets that share people."""
    triplet: Triplet | None = None
    """A triplet loss beside the margin, as person re-identification has it, or alone by `margin: {kind: none}`; needs `data.order: pk`."""
    scale: Annotated[float, Field(gt=0, le=512)] = 64.0
    """Factor s of the cosines."""
    sample_rate: Probability = 1.0
    """Share of the classes that serve as negatives of a step, in blocks of 128 (Partial FC, arXiv 2203.15565); 0 is positives only."""
    chunk_classes: PositiveInt | Literal["auto"] = "auto"
    """Classes scored at a time: the head's memory beyond its rows is batch x this. `auto` is 1,024 on CPU, to stay in its caches, and
    16,384 on a GPU, to keep it busy."""
    logits: Literal["recompute", "store16"] = "recompute"
    """Second walk over the rows: score them again, or keep 16 bits of each score from the first, for batch x classes x 2 bytes: faster on
    CPU; on a GPU it switches Triton's kernels off."""
    wire_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of embeddings and their gradients between ranks."""
    rows: Rows = Rows()


class SGD(Node):
    kind: Literal["sgd"]
    lr: PositiveFloat = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4


class AdamW(Node):
    kind: Literal["adamw"]
    lr: PositiveFloat = 1e-3
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1


class Schedule(Node):
    """Linear warm-up from 0, then decay to 0 at the last sample. Counted in samples, so that the world size does not matter."""

    kind: Literal["polynomial", "cosine"] = "polynomial"
    power: PositiveFloat = 2.0
    """Of the polynomial; InsightFace uses 2."""
    warmup_epochs: NonNegativeFloat = 0.0


class Train(Node):
    batch_size: PositiveInt = 128
    """Images of a step over all workers."""
    epochs: PositiveFloat = 20.0
    """Passes over the dataset; rounded up to whole steps."""
    optimizer: Annotated[SGD | AdamW, Field(discriminator="kind")] = SGD(kind="sgd")
    schedule: Schedule = Schedule()
    clip_norm: PositiveFloat = 5.0
    """Largest norm of the backbone's gradient, as InsightFace clips."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is autocast: weights, BatchNorm and the head stay float32."""
    sync_batchnorm: bool = False
    """BatchNorm over all workers; needed for results that do not depend on the number of workers."""


class Engine(Node):
    """How the backbone runs; may change when a run is resumed."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimiser state, 2 gradients too."""
    activation_checkpointing: bool = False
    """Recompute each block in backward: less memory, a third more time."""
    channels_last: bool = True
    """NHWC convolutions."""
    compile: bool = False
    """torch.compile the backbone (needs a C++ compiler)."""
    head_kernels: Literal["auto", "torch"] = "auto"
    """The head's walks on a GPU: Triton's kernels, or torch's own operations (slower; exact to 1e-6 where those are to 1e-3)."""


class Checkpoint(Node):
    every_steps: PositiveInt = 1000
    """Steps between checkpoints; the last step always has one."""
    keep: PositiveInt = 3
    """Newest checkpoints kept."""


class Tracking(Node):
    uri: str | None = None
    """MLflow tracking server; default is `MLFLOW_TRACKING_URI`, else sqlite in the runs folder."""
    experiment: str = "manyfaces"
    log_every_steps: PositiveInt = 10


class Evaluation(Node):
    pairs: tuple[str, ...] = ()
    """Verification sets (InsightFace `.bin`)."""
    every_steps: NonNegativeInt = 0
    """Steps between evaluations in training; 0 is at the end only."""
    batch_size: PositiveInt = 200


class Elastic(Node):
    min: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> "Elastic":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Cluster(Node):
    launcher: Literal["ray", "process"] = "ray"
    """Ray Train, or this one process (for debugging; under torchrun its processes are used)."""
    address: str | None = None
    """Ray cluster to join: `auto` or HOST:PORT; none starts a local one."""
    workers: PositiveInt | Elastic | Literal["auto"] = "auto"
    """Processes; `{min, max}` is elastic; `auto` is one a GPU, and without GPUs two if there are the cores."""
    threads_per_worker: PositiveInt = 1
    """torch's CPU threads; results on CPU are bit-exact only at equal numbers."""
    gpus_per_worker: Literal["auto", 0, 1] = "auto"
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Restarts after lost workers; -1 is without end."""
    step_timeout_s: PositiveFloat = 1800.0
    """A step that takes longer ends its worker, naming rank and phase."""
    schedule_timeout_s: PositiveFloat = 300.0
    """Longest wait for the workers' resources."""


class Config(Node):
    run: Run = Run()
    data: Data = Data()
    model: Model
    head: Head = Head()
    train: Train = Train()
    engine: Engine = Engine()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    evaluation: Evaluation = Evaluation()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if self.data.store_patience_s >= self.cluster.step_timeout_s:
            limit = f"cluster.step_timeout_s {self.cluster.step_timeout_s:g}, which would end the worker first"
            raise ValueError(f"data.store_patience_s {self.data.store_patience_s:g} is not below {limit}")
        self._head_fits()
        each = self.data.images_per_identity
        if self.data.order == "pk" and self.train.batch_size % each:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is no multiple of data.images_per_identity {each}; data.order pk needs it"
            )
        return self

    def _head_fits(self) -> None:
        head, kind = self.head, self.head.margin.kind
        if kind in ("sphereface2", "uniface") and head.sample_rate < 1:
            why = "whose losses of own and other classes are balanced over all of them"
            raise ValueError(f"head.sample_rate {head.sample_rate:g} does not go with {kind}, {why}; set head.sample_rate=1")
        if kind in ("sphereface2", "uniface") and self.data.order == "mixture" and head.label_spaces == "each":
            raise ValueError(f"head.label_spaces each does not go with {kind}, whose bias is one for all; set head.label_spaces=joint")
        if head.triplet is not None and self.data.order != "pk":
            why = f"data.order {self.data.order} seldom shows an identity twice in a batch"
            raise ValueError(f"head.triplet needs several images of each identity, {why}; set data.order=pk, or remove head.triplet")
        if kind == "none" and head.triplet is None:
            raise ValueError("head.margin none leaves nothing to train on; set head.triplet, or another margin")
        if kind == "curricularface" and head.scale > 256:
            raise ValueError(f"head.scale {head.scale:g}: curricularface doubles logits, at most 256 can be held; lower head.scale")
        if head.label_spaces == "each" and self.data.order != "mixture":
            raise ValueError(f"head.label_spaces each needs several datasets, data.order is {self.data.order}; set data.order=mixture")
