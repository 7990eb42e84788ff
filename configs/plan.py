"""The arithmetic of a run before anything runs, without torch: parameters, memory of a worker,
bytes and operations of a step, steps, disk.

Letters: C classes, D embedding dimensions, B images of a step, W workers, P backbone parameters.
Bytes are estimates from the formulas beside them; the allocator, cuDNN, NCCL and the buckets of
DeepSpeed take their own on top.
"""

import os
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

from manyfaces.configs.architectures import Cost, iresnet_cost, mobilefacenet_cost, vit_cost
from manyfaces.configs.head_cost import Machine, alternatives, describe, head_cost
from manyfaces.configs.schema import (
    AdamW,
    Config,
    Elastic,
    IResNetModel,
    MobileFaceNetModel,
    UserError,
)

FP32 = 4
JPEG_BYTES = 5000
"""A 112 px face at JPEG quality 95; our development faces have 4,163 bytes on average."""
CHECKPOINTED = {"iresnet": 0.5, "mobilefacenet": 0.5, "vit": 0.125}
"""Share of the activations left by checkpointing: each block's input, and one block's inside at a
time (IResNet-50 0.47, ViT-B 0.09)."""


def world_size(config: Config) -> int:
    """Workers to plan for: the most that an elastic run may have; `auto` as this machine's devices
    and cores have it."""
    workers = config.cluster.workers
    if isinstance(workers, Elastic):
        return workers.max
    if workers != "auto":
        return workers
    gpus = 0 if config.cluster.gpus_per_worker == 0 else _num_gpus()
    return gpus or min(2, max((os.cpu_count() or 1) // config.cluster.threads_per_worker, 1))


def num_steps(config: Config, num_images: int) -> int:
    """`train.epochs` passes, rounded up to whole steps; counted in decimals, so that 0.1 epochs are
    a tenth."""
    return ceil(Fraction(str(config.train.epochs)) * num_images / config.train.batch_size)


def total_samples(config: Config, num_images: int) -> int:
    """Samples of all steps: where the schedule reaches 0."""
    return num_steps(config, num_images) * config.train.batch_size


def warmup_samples(config: Config, num_images: int) -> int:
    """Samples until the learning rate is whole."""
    return round(Fraction(str(config.train.schedule.warmup_epochs)) * num_images)


def backbone_cost(config: Config) -> Cost:
    """Parameters, multiply-adds and activations of the backbone."""
    model, px = config.model, config.data.image_px
    if isinstance(model, IResNetModel):
        return iresnet_cost(model.depth, px, model.embedding_dim)
    if isinstance(model, MobileFaceNetModel):
        return mobilefacenet_cost(model.scale, px, model.embedding_dim)
    return vit_cost(model.size, px, model.embedding_dim)


@dataclass(frozen=True)
class Plan:
    """What a run will cost. Memory and wire are of one worker, the fullest."""

    num_images: int
    num_identities: int
    world_size: int
    images_per_worker: int
    """Of a step, where the batch does not divide: the largest share."""
    epochs: float
    batch_size: int
    num_steps: int
    num_samples: int
    warmup_samples: int

    backbone_parameters: int
    head_parameters: int
    multiply_adds: int
    """Of one image's forward pass through the backbone."""
    backbone_flops: int
    """Of a step, over all workers."""
    head_flops: int

    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    head_bytes: int
    head_host_bytes: int
    """In host memory beside a GPU; not in `memory_bytes`."""
    head_workspace_bytes: int
    activation_bytes: int

    read_bytes: int
    """Of a step, over all workers."""
    upload_bytes: int
    gradient_wire_bytes: int
    """Sent in a step."""
    head_wire_bytes: int
    """Sent in a step."""
    head_travel_bytes: int
    """Of class rows in a step, to the device and back."""

    checkpoint_bytes: int
    kept_checkpoints: int

    @property
    def memory_bytes(self) -> int:
        """Of one worker, all together."""
        state = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        return state + self.head_bytes + self.head_workspace_bytes + self.activation_bytes

    def lines(self) -> list[tuple[str, str]]:
        """Label and text, for people."""
        passes = f"{self.epochs:g} epochs, {self.num_samples:,} samples"
        warmup = f", warm-up {self.warmup_samples:,}" if self.warmup_samples else ""
        per_worker = (
            f"{self.images_per_worker:,} images each" if self.world_size > 1 else "all images"
        )
        travel, host = _size(self.head_travel_bytes), _size(self.head_host_bytes)
        return [
            ("dataset", f"{self.num_images:,} images of {self.num_identities:,} identities"),
            (
                "backbone",
                f"{_count(self.backbone_parameters)} parameters, {_count(self.multiply_adds)} "
                "multiply-adds an image",
            ),
            ("head", f"{_count(self.head_parameters)} parameters"),
            ("steps", f"{self.num_steps:,} of {self.batch_size:,} images ({passes}{warmup})"),
            ("workers", f"{self.world_size}, {per_worker}"),
            ("memory a worker", f"about {_size(self.memory_bytes)}"),
            ("  weights", _size(self.weight_bytes)),
            ("  gradients", _size(self.gradient_bytes)),
            ("  optimizer", _size(self.optimizer_bytes)),
            ("  head rows and state", _size(self.head_bytes)),
            ("  head workspace", _size(self.head_workspace_bytes)),
            ("  activations", f"about {_size(self.activation_bytes)}"),
            *(
                [("host memory a worker", f"head rows and state, {host}")]
                if self.head_host_bytes
                else []
            ),
            ("read a step", f"about {_size(self.read_bytes)} over all workers"),
            ("upload a step", f"{_size(self.upload_bytes)} a worker"),
            *(
                [
                    (
                        "chosen rows a step",
                        f"{travel} to the device and back a worker, beside the backbone",
                    )
                ]
                if self.head_travel_bytes
                else []
            ),
            (
                "sent a step",
                f"gradients {_size(self.gradient_wire_bytes)}, head {_size(self.head_wire_bytes)} "
                "a worker",
            ),
            (
                "arithmetic a step",
                f"backbone {_count(self.backbone_flops)}FLOP, head {_count(self.head_flops)}FLOP",
            ),
            (
                "checkpoint",
                f"{_size(self.checkpoint_bytes)}, "
                f"{_size(self.kept_checkpoints * self.checkpoint_bytes)} in all",
            ),
        ]


def plan(config: Config, num_images: int, num_identities: int, world_size: int) -> Plan:
    """The plan of a run on this dataset and this many workers. Raises `UserError` for what cannot
    run at all."""
    batch, px, dim = config.train.batch_size, config.data.image_px, config.model.embedding_dim
    if num_images < 1 or num_identities < 1:
        raise UserError(f"{num_images} images of {num_identities} identities: nothing to train on")
    if batch < world_size:
        raise UserError(
            f"train.batch_size {batch} is below {world_size} workers, and each needs an image; "
            "raise it or lower cluster.workers"
        )
    cost = backbone_cost(config)
    weights = cost.parameters * FP32
    bf16 = config.train.precision == "bfloat16"
    stage = config.engine.zero_stage
    share = ceil(batch / world_size)

    # ZeRO (arXiv 1910.02054, section 5): stage 1 keeps 1/W of the optimiser's state, stage 2 of the
    # gradients too, stage 3 of the weights too. DeepSpeed's stages 1 and up also step a float32
    # copy of their 1/W of the weights (`single_partition_of_fp32_groups`); autocast keeps the
    # weights in 16 bits for the backward.
    def sharded(size: int, from_stage: int) -> int:
        return ceil(size / world_size) if stage >= from_stage else size

    states = num_optimizer_states(config) * weights
    held = sharded(weights, 3) + (weights // 2 if bf16 else 0)
    optimizer = sharded(states, 1) + (sharded(weights, 1) if stage >= 1 else 0)

    is_gpu = has_gpus(config)
    head, whole_head = (
        head_cost(config.head, num_identities, dim, batch, workers, is_gpu=is_gpu)
        for workers in (world_size, 1)
    )

    # A checkpointed block runs forward twice.
    passes = 4 if config.engine.activation_checkpointing else 3
    kept = CHECKPOINTED[config.model.kind] if config.engine.activation_checkpointing else 1.0

    # A ring (Patarasuk, Yuan 2009) sends (W-1)/W of the buffer for a reduce-scatter or an
    # all-gather, twice that for an all-reduce. Stage 0 all-reduces float32 gradients; from stage 1
    # they are reduced to their owner, in 16 bits under autocast (DeepSpeed's `torch_autocast` gives
    # Linear and Conv weights that dtype), and the stepped weights gathered, at stage 3 once more
    # for the backward.
    def ring(size: int) -> int:
        return size * (world_size - 1) // world_size

    wire = (
        2 * ring(weights)
        if stage == 0
        else ring(weights // 2 if bf16 else weights) + (2 if stage == 3 else 1) * ring(weights)
    )
    head_parameters = (
        num_identities * (dim if config.head.margin.kind != "none" else 1) * config.head.sub_centers
    )
    return Plan(
        num_images=num_images,
        num_identities=num_identities,
        world_size=world_size,
        images_per_worker=share,
        epochs=config.train.epochs,
        batch_size=batch,
        num_steps=num_steps(config, num_images),
        num_samples=total_samples(config, num_images),
        warmup_samples=warmup_samples(config, num_images),
        backbone_parameters=cost.parameters,
        head_parameters=head_parameters,
        multiply_adds=cost.multiply_adds,
        backbone_flops=passes
        * 2
        * cost.multiply_adds
        * batch,  # backward is two forwards: towards inputs and towards weights
        head_flops=whole_head.flops,
        weight_bytes=held,
        gradient_bytes=sharded(weights, 2),
        optimizer_bytes=optimizer,
        head_bytes=head.device_bytes,
        head_host_bytes=head.host_bytes,
        head_workspace_bytes=head.workspace_bytes,
        activation_bytes=round(kept * cost.activations * share * (2 if bf16 else FP32)),
        read_bytes=batch * JPEG_BYTES * px * px // 112**2,
        upload_bytes=share * 3 * px * px,  # uint8: normalisation belongs to the device
        gradient_wire_bytes=wire,
        head_wire_bytes=head.wire_bytes,
        head_travel_bytes=head.travel_bytes,
        checkpoint_bytes=weights + states + whole_head.state_bytes,
        kept_checkpoints=config.checkpoint.keep,
    )


def head_lines(config: Config, found: Plan, machine: Machine) -> list[tuple[str, str]]:
    """What each setting of the head's rows and logits would cost a worker, and the quickest that
    fits its memory."""
    others = found.memory_bytes - found.head_bytes - found.head_workspace_bytes
    header = (
        "memory a worker, rows and logits moved a step, sent, arithmetic, about the time on "
        f"{machine.name}"
    )
    lines: list[tuple[str, str]] = [("head settings", header)]
    fitting: list[tuple[float, float, int, str]] = []  # of equals, the first
    for head in alternatives(
        config.head,
        kernels=machine.is_gpu and config.engine.head_kernels == "auto",
        is_gpu=machine.is_gpu,
        world_size=found.world_size,
    ):
        cost = head_cost(
            head,
            found.num_identities,
            config.model.embedding_dim,
            found.batch_size,
            found.world_size,
            is_gpu=machine.is_gpu,
        )
        total, seconds = others + cost.device_bytes + cost.workspace_bytes, machine.seconds(cost)
        fits = total <= machine.memory_bytes
        if fits:
            fitting.append((seconds, total, len(fitting), describe(head)))
        moved = " ".join(
            f"{_size(moved):>9}" for moved in (total, cost.traffic_bytes, cost.wire_bytes)
        )
        figures = f"{moved} {_count(cost.flops):>7}FLOP {1e3 * seconds:>8.3g} ms"
        remark = ", ".join(["this recipe"] * (head == config.head) + ["does not fit"] * (not fits))
        lines.append((f"  {describe(head)}", f"{figures}  {remark}".rstrip()))
    best = (
        min(fitting)[-1]
        if fitting
        else "none: more workers, a lower head.sample_rate, a smaller batch or head.placement=host"
    )
    return [*lines, (f"cheapest in {_size(machine.memory_bytes)}", best)]


def has_gpus(config: Config) -> bool:
    """Whether workers have GPUs, as far as one can tell without asking: where that is `auto`, if
    this computer has one, or has too few cores for them."""
    few = world_size(config) * config.cluster.threads_per_worker <= (os.cpu_count() or 1)
    gpus = config.cluster.gpus_per_worker
    return gpus == 1 or (gpus == "auto" and (_num_gpus() > 0 or not few))


def machine(config: Config, memory_gb: float | None) -> Machine:
    """A worker's: a GPU of the H100's class, or its threads of this computer."""
    if has_gpus(config):
        return Machine("an H100-class GPU", True, (memory_gb or 80) * 1e9, 4e14, 3e12)
    threads = config.cluster.threads_per_worker
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world_size(config)
    memory = memory_gb * 1e9 if memory_gb else whole
    return Machine(
        f"{threads} CPU thread{'s' * (threads > 1)}", False, memory, 2e11 * threads, 1e10 * threads
    )


def _num_gpus() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def num_optimizer_states(config: Config) -> int:
    """Numbers that the backbone's optimiser keeps for each weight."""
    optimizer = config.train.optimizer
    return 2 if isinstance(optimizer, AdamW) else int(optimizer.momentum > 0)


def _count(number: float) -> str:
    for unit in ("", " k", " M", " G", " T", " P"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} E"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} PiB"
