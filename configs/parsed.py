"""Small JSON files parsed into types: what does not fit is one line."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from manyfaces.configs.errors import UserError

AnyModel = TypeVar("AnyModel", bound=BaseModel)


def parsed(model: type[AnyModel], body: bytes | str, where: str, remedy: str) -> AnyModel:
    """What the JSON says, as this model. Raises `UserError` with the place, the first field that is
    wrong and the remedy, also where it is no JSON."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise UserError(f"{where}: {first_fault(error)}; {remedy}") from error


def first_fault(error: ValidationError) -> str:
    """The first field that is wrong, and what is wrong with it."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])
