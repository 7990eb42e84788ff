"""Who gets which share of a batch or of the classes: all rank arithmetic in one place."""


def batch_share(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First sample of the rank's part of a global batch, and the one after its last. Parts are
    contiguous, in rank order, and differ by one sample at most."""
    return rank * batch_size // world_size, (rank + 1) * batch_size // world_size


def class_share(num_classes: int, rank: int, world_size: int) -> tuple[int, int]:
    """First class of the rank's part, and the one after its last, by the ceil split of
    `torch.chunk`: of few classes, the last ranks may hold none."""
    part = -(-num_classes // world_size)
    return min(rank * part, num_classes), min((rank + 1) * part, num_classes)
