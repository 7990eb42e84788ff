"""Protocols opened by their configuration, and their images checked before anything is trained."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Protocol as ProtocolConfig
from manyfaces.configs.split import batch_share
from manyfaces.train.evaluation.decoding import ImageDecoder, decode_threads, not_decodable
from manyfaces.train.evaluation.result import Quantity
from manyfaces.train.protocols.protocol import Protocol, own_code

_BATCH_SIZE = 256


def open_protocols(config: schema.Config) -> list[Protocol]:
    """The protocols of a run, all of whose images can be decoded.

    In a process group each rank tries the images of its own share. Raises `UserError` for what
    cannot be opened, for an image that is not whole, and for two results of one name; it is not
    collective, so call it in `on_all_ranks`.
    """
    image_hw = config.data.image_hw
    return open_all(config.evaluation.all_protocols(), image_hw)


def open_all(configs: Sequence[ProtocolConfig], image_hw: tuple[int, int]) -> list[Protocol]:
    """The same for some protocols and a height and width of the images."""
    for name, times in Counter(config.called() for config in configs).items():
        if times > 1:
            raise UserError(
                f"evaluation: {times} protocols have a result called {name}; rename a file, or "
                "give one of evaluation.protocols another result_name"
            )
    protocols = []
    for config in configs:
        protocol: Protocol = config.build()
        protocol.name = config.called()
        _check_quantities(protocol)
        _check_images(protocol, image_hw)
        protocols.append(protocol)
    return protocols


def _check_quantities(protocol: Protocol) -> None:
    """Raise `UserError` where the protocol does not describe what it gives."""
    quantities: object = own_code(protocol, lambda: getattr(protocol, "quantities", None))
    described = isinstance(quantities, Sequence) and len(quantities) > 0
    if not described or not all(isinstance(each, Quantity) for each in protocol.quantities):
        raise UserError(
            f"{protocol.name}: {type(protocol).__name__}.quantities has to be a sequence of "
            f"{Quantity.__module__}.Quantity, at least one, the headline first"
        )


def _check_images(protocol: Protocol, image_hw: tuple[int, int]) -> None:
    """Decode this rank's share of the images. Raises `UserError` for the first that is not
    whole."""
    distinct = own_code(protocol, lambda: protocol.distinct)
    first, end = 0, len(distinct.images)
    if dist.is_initialized():
        first, end = batch_share(end, dist.get_rank(), dist.get_world_size())
    decoder = ImageDecoder(image_hw, _BATCH_SIZE, torch.device("cpu"), decode_threads())
    for start in range(first, end, _BATCH_SIZE):
        batch = distinct.images[start : min(start + _BATCH_SIZE, end)]
        rows_N = decoder.finish(decoder.start(batch)).rows_N
        if len(rows_N) < len(batch):
            bad = start + int(np.setdiff1d(np.arange(len(batch)), rows_N)[0])
            raise not_decodable(protocol.image_name(int(distinct.first_n[bad])))
