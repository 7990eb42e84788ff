"""What Ray prints in a driver of nodes that died: the last twenty lines of a log for each of them,
where one line says all that a person can use."""

from typing import Any


def keep_first_lines() -> None:
    """From now on this process prints the first line alone of each message of Ray's daemons."""
    from ray._private import worker

    told = worker.print_to_stdstream

    def first_lines(batch: dict[str, Any], **options: Any) -> None:
        lines = [line.partition("\n")[0] for line in batch["lines"]]
        told({**batch, "lines": lines}, **options)

    worker.print_to_stdstream = first_lines
