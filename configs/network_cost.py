"""What the network costs one worker in a step, without torch: memory, operations, bytes sent.

Letters: W workers, B images of a step. ZeRO is arXiv 1910.02054.
"""

from dataclasses import dataclass
from math import ceil

from manyfaces.configs.precision import precision
from manyfaces.configs.schema import Config

FP32 = 4
BUCKET_NUMBERS = 50_000_000
"""Most gradients that DeepSpeed gathers in one bucket (`train/engine.py`)."""


@dataclass(frozen=True)
class NetworkCost:
    """What the network costs, by the formulas beside them. Bytes are of the fullest worker unless
    a field says otherwise."""

    parameters: int
    """Parameters of the network, which all workers share."""
    trained: int
    """Those of them that are trained; all, unless there are adapters."""
    multiply_adds: int
    """Multiply-adds of one image's forward pass."""
    flops: int
    """Operations of a step, over all workers."""
    weight_bytes: int
    gathered_bytes: int
    """Bytes of other workers' weights that stage 3 holds from forward to backward pass."""
    gradient_bytes: int
    optimizer_bytes: int
    buffer_bytes: int
    """Bytes of the buffers in which DeepSpeed gathers what it sends."""
    activation_bytes: int
    """Bytes that are kept from forward to backward pass."""
    step_bytes: int
    """Bytes that are needed while the optimiser steps, when no activation is kept any more: a flat
    copy of the gradients."""
    wire_bytes: int
    """Bytes of gradients and weights that a worker sends in a step."""
    checkpoint_bytes: int
    """Bytes of weights and optimiser states in a checkpoint, whole."""

    @property
    def state_bytes(self) -> int:
        """Memory of one worker that stays from step to step."""
        state = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        return state + self.buffer_bytes


def network_cost(config: Config, world_size: int, *, is_gpu: bool) -> NetworkCost:
    """The cost of the network on so many workers, with GPUs or without."""
    batch, image_hw = config.train.batch_size, config.data.image_hw
    cost = config.model.cost(image_hw)
    weights, stage = cost.parameters * FP32, config.engine.zero_stage
    trained = config.model.trained_parameters(image_hw) * FP32
    states = config.train.optimizer.num_states * trained
    bf16 = precision(config.train, is_gpu=is_gpu) == "bfloat16"
    checkpointing = config.engine.activation_checkpointing

    # Stage 1 keeps 1/W of the optimiser's states, stage 2 of the gradients too, stage 3 of the
    # weights too (section 5). DeepSpeed's stages 1 and up also step a float32 copy of their 1/W of
    # the weights (`single_partition_of_fp32_groups`); autocast keeps the weights in 16 bits for
    # the backward.
    def sharded(size: int, from_stage: int) -> int:
        return ceil(size / world_size) if stage >= from_stage else size

    stepped_copy = sharded(trained, 1) if stage >= 1 else 0
    autocast_copy = weights // 2 if bf16 else 0  # at stage 3 they are gathered in 16 bits
    # Backward is two forwards: towards inputs and towards weights, which a fixed base has none of.
    # A checkpointed block runs forward twice, and so does the whole network where a batch goes
    # through it in several parts (`train/gradient_cache.py`).
    num_micro_batches = config.train.num_micro_batches(world_size)
    in_parts = num_micro_batches > 1
    passes = (2 if config.model.adapters else 3) + int(checkpointing) + int(in_parts)
    kept = config.model.checkpointed_share if checkpointing else 1.0
    images = config.train.images_at_a_time(world_size)
    # The step on a batch in parts keeps all its embeddings and their gradient.
    embeddings = 2 * FP32 * config.model.embedding_dim * ceil(batch / world_size) * in_parts
    kept_bytes = cost.activations * (2 if bf16 else FP32)
    kept_bytes += cost.float32_activations * 2 * bf16
    return NetworkCost(
        parameters=cost.parameters,
        trained=trained // FP32,
        multiply_adds=cost.multiply_adds,
        flops=passes * 2 * cost.multiply_adds * batch,
        weight_bytes=sharded(weights, 3) + autocast_copy,
        gathered_bytes=0 if bf16 else weights - sharded(weights, 3),
        gradient_bytes=sharded(trained, 2),
        optimizer_bytes=sharded(states, 1) + stepped_copy,
        buffer_bytes=_buffer_bytes(trained, stage, overlaps=is_gpu),
        activation_bytes=round(kept * kept_bytes * images) + embeddings,
        step_bytes=sharded(trained, 1) if stage or world_size > 1 else 0,
        wire_bytes=_wire_bytes(trained, stage, world_size, bf16, num_micro_batches),
        checkpoint_bytes=trained + states,
    )


def _buffer_bytes(trained: int, stage: int, *, overlaps: bool) -> int:
    """DeepSpeed's buckets, which stay from one backward pass to the next: none at stage 0, two
    where gradients are sent while others are computed."""
    bucket = min(trained, BUCKET_NUMBERS * FP32)
    return 0 if stage == 0 else bucket * (2 if overlaps else 1)


def _wire_bytes(
    trained: int, stage: int, world_size: int, bf16: bool, num_micro_batches: int
) -> int:
    """Bytes that a worker sends in a step.

    A ring (Patarasuk, Yuan 2009) sends (W-1)/W of the buffer for a reduce-scatter or an all-gather,
    twice that for an all-reduce. Stage 0 all-reduces float32 gradients. From stage 1 gradients are
    sent in 16 bits under autocast (DeepSpeed's `torch_autocast` gives Linear and Conv weights that
    dtype): at stages 1 and 2 DeepSpeed all-reduces them, a bucket of several owners at a time
    (`use_multi_rank_bucket_allreduce`), at stage 3 it reduces them to their owners. Up to stage 1
    that is once a step; from stage 2, where no worker keeps all gradients, at each micro-batch.
    The stepped weights are gathered in float32; at stage 3 as gradients are sent, and once for each
    micro-batch: they stay from its forward to its backward pass (`stage3_max_reuse_distance`), and
    through the forward passes that come before the first of these.
    """

    def ring(size: int) -> int:
        return size * (world_size - 1) // world_size

    if stage == 0:
        return 2 * ring(trained)
    sent = ring(trained // 2 if bf16 else trained)
    if stage == 3:
        return num_micro_batches * 2 * sent
    return (num_micro_batches if stage == 2 else 1) * 2 * sent + ring(trained)
