"""A run leaves a batch with numbers that are not finite out."""

from typing import Annotated, Literal

from pydantic import Field

from manyfaces.configs.not_finite.not_finite import OnNotFinite


class LeaveOut(OnNotFinite):
    """The run goes back to its last checkpoint and leaves the batch out when its place in the
    stream comes again: for long runs that nobody watches. Samples count as seen, schedule and
    positions of all other batches stay."""

    kind: Literal["leave_out"] = "leave_out"

    at_most: Annotated[int, Field(ge=1, le=100)] = 3
    """Batches that may be left out in the run's life; the next one stops it. Those that the run of
    `run.resume_from` had left out count as well."""

    @property
    def most_left_out(self) -> int:
        return self.at_most
