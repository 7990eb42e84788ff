"""Protocols opened by their configuration, and their images checked before anything is trained."""

from collections import Counter
from collections.abc import Mapping, Sequence

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


def open_all(
    configs: Sequence[ProtocolConfig], taken: Mapping[str, str] | None = None
) -> list[Protocol]:
    """Protocols opened by their configurations. `taken` are names of other results, by which no
    protocol is called unless it has that source. Raises `UserError` as `open_protocols` does."""
    protocols = []
    for config, name in zip(configs, names(configs, taken or {}), strict=True):
        protocol: Protocol = config.build()
        protocol.name, protocol.source = name, config.source()
        _check_protocol(protocol)
        protocols.append(protocol)
    return protocols


def names(configs: Sequence[ProtocolConfig], taken: Mapping[str, str]) -> list[str]:
    """What the result of each is called. Of two that are called after files of one name, each gets
    the folder of its file in front, or as many folders as tell them apart. `taken` are sources of
    other results, by their names. Raises `UserError` for names that stay the same."""
    parents = [0] * len(configs)
    while True:
        called = [config.called(above) for config, above in zip(configs, parents, strict=True)]
        times = Counter(called)
        same = [
            number
            for number, (config, name) in enumerate(zip(configs, called, strict=True))
            if times[name] > 1 or taken.get(name, config.source()) != config.source()
        ]
        if not same:
            return called
        longer = {n: configs[n].called(parents[n] + 1) for n in same}
        if all(longer[number] == called[number] for number in same):
            raise UserError(_same_name(configs[same[0]].called(), times[called[same[0]]]))
        for number in same:
            parents[number] += 1


def _same_name(name: str, times: int) -> str:
    if times > 1:
        return (
            f"evaluation: {times} protocols have a result called {name}; rename a file, or "
            "give one of evaluation.protocols another result_name"
        )
    return (
        f"{name}: a result of this name is there, and it is of other images or settings; rename "
        "the file, or give the protocol another result_name"
    )


def _check_protocol(protocol: Protocol) -> None:
    """Raise `UserError` where the protocol does not describe what it gives, or is written for an
    earlier version."""
    if hasattr(protocol, "mirrored"):
        raise UserError(
            f"{protocol.name}: {type(protocol).__name__}.mirrored is not read any more; set "
            "flip to 'sum', 'concatenate' or 'none'"
        )
    quantities: object = own_code(protocol, lambda: getattr(protocol, "quantities", None))
    described = isinstance(quantities, Sequence) and len(quantities) > 0
    if not described or not all(isinstance(each, Quantity) for each in protocol.quantities):
        raise UserError(
            f"{protocol.name}: {type(protocol).__name__}.quantities has to be a sequence of "
            f"{Quantity.__module__}.Quantity, at least one, the headline first"
        )


def check_images(protocols: Sequence[Protocol], image_hw: tuple[int, int]) -> None:
    """Decode all images that the protocols need, to this height and width in pixels, but for those
    that are read lazily. Raises `UserError` for the first that is not whole."""
    for protocol in protocols:
        if not protocol.reads_lazily:
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
