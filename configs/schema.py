"""The one configuration tree. Every field has a range, a unit in its name where it has one, and a
sentence under it.

Sums are told apart by a `kind` literal. `manyfaces.configs.load` makes the tree from YAML and
`path.to.key=value` words.
"""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from manyfaces.configs.architectures import ViTSize
from manyfaces.configs.data_schema import *
from manyfaces.configs.head_schema import *
from manyfaces.configs.node import *


class Run(Node):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "first"
    """The run's folder under `dir`. Typing the same name again resumes the run."""
    dir: str = "runs"
    """Folder of all runs; on a cluster a path that every node sees."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the weights, the order, the augmentation and the sampled classes."""
    resume_from: str | None = None
    """A checkpoint folder (`runs/OLD/checkpoints/step-...`) to start a new run name from."""


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
    """Linear warm-up from 0, then decay to 0 at the last sample. Counted in samples, so that the
    world size does not matter."""

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
    """BatchNorm over all workers; needed for results that do not depend on the number of
    workers."""


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
    """The head's walks on a GPU: Triton's kernels, or torch's own operations (slower; exact to 1e-6
    where those are to 1e-3)."""


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
    """Processes; `{min, max}` is elastic; `auto` is one a GPU, and without GPUs two if there are
    the cores."""
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
            limit = (
                f"cluster.step_timeout_s {self.cluster.step_timeout_s:g}, which would end the "
                "worker first"
            )
            raise ValueError(
                f"data.store_patience_s {self.data.store_patience_s:g} is not below {limit}"
            )
        self._head_fits()
        each = self.data.images_per_identity
        if self.data.order == "pk" and self.train.batch_size % each:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is no multiple of "
                f"data.images_per_identity {each}; data.order pk needs it"
            )
        return self

    def _head_fits(self) -> None:
        head, kind = self.head, self.head.margin.kind
        if kind in ("sphereface2", "uniface") and head.sample_rate < 1:
            why = "whose losses of own and other classes are balanced over all of them"
            raise ValueError(
                f"head.sample_rate {head.sample_rate:g} does not go with {kind}, {why}; set "
                "head.sample_rate=1"
            )
        if (
            kind in ("sphereface2", "uniface")
            and self.data.order == "mixture"
            and head.label_spaces == "each"
        ):
            raise ValueError(
                f"head.label_spaces each does not go with {kind}, whose bias is one for all; set "
                "head.label_spaces=joint"
            )
        if head.triplet is not None and self.data.order != "pk":
            why = f"data.order {self.data.order} seldom shows an identity twice in a batch"
            raise ValueError(
                f"head.triplet needs several images of each identity, {why}; set data.order=pk, or "
                "remove head.triplet"
            )
        if kind == "none" and (head.sub_centers > 1 or head.filter_above is not None):
            key = "filter_above" if head.sub_centers == 1 else "sub_centers"
            raise ValueError(
                f"head.{key} does nothing where head.margin is none, which has no class centres; "
                "remove it"
            )
        if kind == "none" and head.triplet is None:
            raise ValueError(
                "head.margin none leaves nothing to train on; set head.triplet, or another margin"
            )
        if kind == "curricularface" and head.scale > 256:
            raise ValueError(
                f"head.scale {head.scale:g}: curricularface doubles logits, at most 256 can be "
                "held; lower head.scale"
            )
        if head.label_spaces == "each" and self.data.order != "mixture":
            raise ValueError(
                f"head.label_spaces each needs several datasets, data.order is {self.data.order}; "
                "set data.order=mixture"
            )
