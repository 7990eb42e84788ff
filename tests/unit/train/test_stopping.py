"""A run that ends is given away only when nothing of it is being written any more."""

import pytest

from manyfaces.cluster.stop import StoppedError
from manyfaces.configs.errors import UserError
from manyfaces.train.stopping import finishing


def end_by(error: Exception, waited: list[str]) -> None:
    def wait() -> None:
        waited.append(str(error))
        raise UserError("the disk is full")

    with finishing(wait):
        raise error


@pytest.mark.parametrize("error", [UserError("no data"), StoppedError("SIGTERM")])
def test_what_is_being_written_is_finished_and_the_end_keeps_its_reason(error: UserError) -> None:
    waited: list[str] = []
    with pytest.raises(type(error), match=str(error)):
        end_by(error, waited)
    assert waited == [str(error)]


def test_a_rank_that_fails_waits_for_nobody() -> None:
    waited: list[str] = []
    with pytest.raises(RuntimeError, match="a mistake"):
        end_by(RuntimeError("a mistake"), waited)
    assert waited == []
