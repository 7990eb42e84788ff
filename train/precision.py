"""`train.precision: auto` of a run that is about to start: settled once for its whole life."""

from collections.abc import Callable

from manyfaces.configs import precision
from manyfaces.configs.plan import has_gpus
from manyfaces.configs.precision import Precision
from manyfaces.configs.schema import Config
from manyfaces.train.folder import RunFolder
from manyfaces.train.run_identity import identity_in_store, stored_identity
from manyfaces.train.working_folder import run_store


def settled(config: Config, folder: RunFolder, tell: Callable[[str], None]) -> Precision:
    """The precision that the run began with where that is `auto` or, where it begins now, that of
    this computer's processor or GPUs, which `tell` is told of. Raises `UserError` where the record
    of the run cannot be read."""
    is_gpu = has_gpus(config)
    if config.train.precision == "auto" and (before := _began_with(config, folder)) is not None:
        return before
    if (line := precision.told(config.train, is_gpu=is_gpu)) is not None:
        tell(line)
    return precision.precision(config.train, is_gpu=is_gpu)


def with_precision(config: Config, value: Precision) -> Config:
    """The same in this precision."""
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": value})})


def _began_with(config: Config, folder: RunFolder) -> Precision | None:
    if folder.identity.exists():
        there: dict[str, Precision] | None = stored_identity(folder)
    else:
        store = run_store(config)
        there = None if store is None else identity_in_store(store)
    return None if there is None else there.get("train.precision")
