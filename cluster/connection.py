"""The connection of this process to a Ray cluster, or to a Ray of its own: quiet, with the code of
this process for its workers, and with nothing shown of credentials."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from manyfaces.cluster.dashboard import TOKEN_REMEDY
from manyfaces.cluster.signals import held_back
from manyfaces.configs.errors import UserError
from manyfaces.configs.redact import redact

Code = Callable[[], AbstractContextManager[Path]]
"""Gives the folder of the `manyfaces` package, for nodes that lack it."""
OBJECT_STORE_BYTES = 100 << 20  # nothing but small messages travels through Ray
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
START_TRIES = 3
RAY_SETTINGS = {
    # Training is what the machine is for; Ray's default is 15.
    "RAY_worker_niceness": "0",
    # For a Ray of this process's own: its one node cannot be lost alone, and answers late where the
    # machine has too much to do. Ray's default is 5, after which all that runs there is killed.
    "RAY_health_check_failure_threshold": "60",
    # This silences a warning about a future default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def connected(
    address: str | None, code: Code, settings: Mapping[str, str] | None = None
) -> Iterator[None]:
    """While the block runs, Ray is connected to the cluster at `address`, without one to a Ray of
    this process's own on this machine. A connection that is there already is used, and stays.
    `settings` are environment variables for Ray besides `RAY_SETTINGS`; what a person has set
    stays.

    Raises `UserError` where no cluster answers, or none that this process can join, and where no
    Ray can be started.
    """
    for name, value in {**RAY_SETTINGS, **(settings or {})}.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray takes SIGTERM for itself, and what ends all processes of a job must not end Ray's before
    # the checkpoint.
    with held_back():
        if address is None:
            _start_ray()
        else:
            _join_cluster(address, code)
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray() -> None:
    """A Ray of this process's own on this machine."""
    import ray

    for tries_left in reversed(range(START_TRIES)):
        try:
            # The dashboard and its metrics are for clusters.
            with _redacted_command():
                ray.init(
                    address="local",
                    num_cpus=os.cpu_count(),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    **QUIET,
                )
            return
        except Exception as error:
            ray.shutdown()
            # What Ray raises when its daemons take longer than its 30 s is a bare Exception.
            if tries_left and type(error) is Exception:
                continue
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"no local Ray could be started: {reason} Try again when this computer has less to "
                "do, or use cluster.launcher=process"
            ) from error


def _join_cluster(address: str, code: Code) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    try:
        # A job's workers inherit the job's code; a driver started by hand brings its own.
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            with _redacted_command():
                ray.init(address=address, **QUIET)
            return
        with code() as package, _redacted_command():
            ray.init(address=address, runtime_env={"py_modules": [str(package)]}, **QUIET)
    except UserError:
        raise
    except ConnectionError as error:
        raise UserError(
            f"cluster.address {address}: no Ray cluster answers there; `ray start --head` "
            "starts one"
        ) from error
    except AuthenticationError as error:
        raise UserError(
            f"cluster.address {address}: the cluster wants a token, and has not got the right one; "
            f"{TOKEN_REMEDY}"
        ) from error
    except (RuntimeError, ValueError) as error:  # an address or a version that does not fit
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        told = f"cluster.address {address}: {reason.strip()}"
        raise UserError(f"{told.rstrip('.')}; {_remedy(address)}") from error


def _remedy(address: str) -> str:
    """What to do where Ray cannot join the cluster at this address."""
    meant = os.environ.get("RAY_ADDRESS")
    if address == "auto" and meant:  # Ray takes it for `auto`
        return f"RAY_ADDRESS is {meant}: unset it, or give HOST:PORT of the head"
    return "give auto or HOST:PORT of the head, and have the same Ray here as there"


@contextlib.contextmanager
def _redacted_command() -> Iterator[None]:
    """Let Ray, whose dashboard shows the command line of each driver that joins, see this one's
    without credentials."""
    from ray._private import utils

    told = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: redact(told())
    try:
        yield
    finally:
        utils.get_entrypoint_name = told
