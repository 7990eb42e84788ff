"""The order of a run: the configured kind over each part of the dataset."""

from manyfaces.configs.orders import order as schema
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.orders.mixed import Mixed, part_seed
from manyfaces.data.orders.order import Order


def build_order(dataset: Dataset, config: schema.Order, seed: int) -> Order:
    """The stream of sample ids that the configuration asks for: its order over the only part, or
    over each of several, mixed by their shares."""
    if len(dataset.parts) == 1:
        order: Order = config.build(part=dataset.part, seed=seed)
        return order
    return Mixed(
        [
            config.build(part=part, seed=part_seed(seed, number))
            for number, part in enumerate(dataset.parts)
        ],
        dataset.shares,
        seed,
        [part.first_sample for part in dataset.parts],
        [part.first_shard for part in dataset.parts],
    )


def check_sizes(dataset: Dataset, config: schema.Order, batch_size: int) -> None:
    """Raise `UserError` naming the first part that is too small for its share of a batch in this
    order."""
    for part, share in zip(dataset.parts, dataset.shares, strict=True):
        config.check_size(batch_size, part.manifest.num_identities, part.where, share)
