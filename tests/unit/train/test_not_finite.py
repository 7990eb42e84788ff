"""What a run does with a step of no finite numbers where its record cannot be written."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from manyfaces.configs.errors import UserError
from manyfaces.train.not_finite import GoingBack, NotFinite


class Batches(list[Any]):
    """What is left out, without a file or other ranks."""

    file = SimpleNamespace(name="left_out.jsonl")
    add = list.append


def full_disk(*_: object, **facts: object) -> None:
    raise OSError("No space left on device")


@pytest.mark.parametrize(("most", "error"), [(0, UserError), (1, GoingBack)])
def test_a_record_that_cannot_be_written_parts_no_ranks(most: int, error: type[Exception]) -> None:
    loader: Any = SimpleNamespace(
        dataset=SimpleNamespace(name=str),
        order=SimpleNamespace(ids=lambda position, count: np.arange(position, position + count)),
        batch_size=4,
    )
    policy: Any = SimpleNamespace(most_left_out=most)
    checkpointer: Any = SimpleNamespace(wait=lambda: None, last_good=None)
    record: Any = SimpleNamespace(event=full_disk)
    batches: Any = Batches()
    with pytest.raises(error):
        NotFinite(policy, batches, loader, checkpointer, record).take(8, 3, "loss nan")
