"""What every mapping of the configuration is, and the error that a person sees."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]


class UserError(ValueError):
    """A person's mistake or a condition that a person must mend: shown as one line, without a
    traceback, exit code 2."""


class Node(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
