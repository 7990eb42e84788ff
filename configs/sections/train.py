"""Section `train`: batches, passes, optimiser, schedule, precision."""

from typing import Annotated, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from manyfaces.configs.node import NOTHING, Node
from manyfaces.configs.not_finite.not_finite import OnNotFinite
from manyfaces.configs.not_finite.stop import Stop
from manyfaces.configs.optimizers.optimizer import Optimizer
from manyfaces.configs.optimizers.sgd import SGD
from manyfaces.configs.schedules.polynomial import Polynomial
from manyfaces.configs.schedules.schedule import Schedule


class Train(Node):
    """Batches, passes over the data, optimiser, schedule and precision."""

    batch_size: PositiveInt = 128
    """Images of a step over all workers."""
    micro_batch_size: Annotated[PositiveInt | None, NOTHING] = None
    """Images that a worker puts through the network at a time, for a batch that does not fit in
    memory: the loss and its gradient stay those of the whole batch, for a second forward pass
    (gradient caching, arXiv 2101.06983). Null is a worker's whole share of the batch. The
    statistics of BatchNorm are those of such a part, and what the network draws at random is drawn
    for each part. It may change when a run is resumed."""
    epochs: PositiveFloat = 20.0
    """Passes over the dataset; rounded up to whole steps."""
    optimizer: Optimizer = SGD()
    """How the network's weights follow its gradient."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Passes over the dataset in which the learning rate rises from 0; 0 starts at the largest."""
    schedule: Schedule = Polynomial()
    """How the learning rate falls behind the warm-up."""
    clip_norm: PositiveFloat = 5.0
    """Largest norm of the network's gradient, as InsightFace clips."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """bfloat16 is autocast: weights, BatchNorm and the head stay float32. `auto` is bfloat16 on
    GPUs and on processors that have instructions for it (AVX-512, AMX or Arm's BF16), and float32
    on others, which would compute it in software, many times slower; a run that is resumed keeps
    what it began with."""
    sync_batchnorm: bool = False
    """BatchNorm over all workers, on GPUs and CPUs; needed for results that do not depend on the
    number of workers, unless the network has none (`model.neck`). What the network draws at random
    (dropout, `drop_path`, `mask_ratio`) is drawn anew by each worker all the same."""
    on_not_finite: OnNotFinite = Stop()
    """What is done where a loss or a gradient is not finite; it may change when a run is
    resumed."""

    def num_micro_batches(self, world_size: int) -> int:
        """In how many parts every worker puts its share of the batch through the network: as many
        on each, although shares differ by an image."""
        if self.micro_batch_size is None:
            return 1
        smallest, largest = self.batch_size // world_size, -(-self.batch_size // world_size)
        return min(-(-largest // self.micro_batch_size), max(smallest, 1))

    def images_at_a_time(self, world_size: int) -> int:
        """Images that a worker has in the network at a time, at most: `micro_batch_size`, or one
        more where that is 1 and shares differ."""
        largest = -(-self.batch_size // world_size)
        return -(-largest // self.num_micro_batches(world_size))
