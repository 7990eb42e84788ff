"""Protocols opened by their configuration, and their images checked before anything is trained."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Protocol as ProtocolConfig
from manyfaces.train.evaluation.decoding import ImageDecoder, decode_threads, not_decodable
from manyfaces.train.evaluation.result import Quantity
from manyfaces.train.protocols.protocol import Protocol, own_code

_BATCH_SIZE = 256


def open_protocols(config: schema.Config) -> list[Protocol]:
    """The protocols of a run. Raises `UserError` for what cannot be opened, and for two results of
    one name."""
    return open_all(config.evaluation.all_protocols())


def open_all(configs: Sequence[ProtocolConfig]) -> list[Protocol]:
    """Protocols opened by their configurations. Raises `UserError` as `open_protocols` does."""
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


def check_images(protocols: Sequence[Protocol], image_hw: tuple[int, int]) -> None:
    """Decode all images that the protocols need, to this height and width in pixels. Raises
    `UserError` for the first that is not whole."""
    for protocol in protocols:
        _check_images(protocol, image_hw)


def _check_images(protocol: Protocol, image_hw: tuple[int, int]) -> None:
    distinct = own_code(protocol, lambda: protocol.distinct)
    decoder = ImageDecoder(image_hw, _BATCH_SIZE, torch.device("cpu"), decode_threads())
    for start in range(0, len(distinct.images), _BATCH_SIZE):
        batch = distinct.images[start : start + _BATCH_SIZE]
        rows_N = decoder.finish(decoder.start(batch)).rows_N
        if len(rows_N) < len(batch):
            bad = start + int(np.setdiff1d(np.arange(len(batch)), rows_N)[0])
            raise not_decodable(protocol.image_name(int(distinct.first_n[bad])))
