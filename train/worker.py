"""What the launcher runs in every worker. It imports nothing heavy, so that it can tell how long
that takes."""

from typing import Any

from manyfaces.train.startup import Startup


def work(payload: dict[str, Any]) -> None:
    """Run this worker's part of the run that `payload` tells of."""
    startup = Startup()
    from manyfaces.train import session

    startup.done("imports")
    session.work(payload, startup)
