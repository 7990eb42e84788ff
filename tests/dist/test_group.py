"""What rank 0 does alone before the workers begin: the others wait, within a bound, and say for
what."""

import pytest
import torch.distributed as dist
from launcher import run_ranks

from manyfaces.cluster.group import first_alone, first_tells
from manyfaces.configs.errors import UserError


def told(case: str) -> str:
    def work() -> str:
        if case == "fails":
            raise UserError("no dataset there")
        if case == "takes too long":
            dist.barrier()  # until the other rank has given up
        return "done"

    try:
        return str(first_alone(work, "check the dataset", 0.5 if case == "takes too long" else 60))
    except UserError as error:
        return str(error)
    finally:
        if case == "takes too long" and dist.get_rank() == 1:
            dist.barrier()


WAITED = "rank 1 waited for rank 0 to check the dataset, which "


@pytest.mark.parametrize(
    ("case", "first", "other"),
    [
        ("goes well", "done", "None"),
        ("fails", "no dataset there", WAITED + "failed there"),
        ("takes too long", "rank 0: the other ranks are gone", WAITED + "ended or took more than"),
    ],
)
def test_the_others_wait_for_the_first(case: str, first: str, other: str) -> None:
    results = run_ranks(2, told, case, timeout_s=30)
    assert results[0].startswith(first)
    assert results[1].startswith(other)


def chosen(_: None) -> int:
    return first_tells(lambda: 7 + dist.get_rank(), "choose a number")


def test_all_hear_what_the_first_found() -> None:
    assert run_ranks(3, chosen, None, timeout_s=30) == [7, 7, 7]
