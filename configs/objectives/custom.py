"""Objective custom: one of your own."""

from typing import Any, ClassVar

from manyfaces.configs.kinds import Custom
from manyfaces.configs.objectives.objective import Objective


class CustomObjective(Custom, Objective):
    """A loss of your own: a class in a file."""

    base: ClassVar[str] = "manyfaces.train.objectives.objective.Objective"

    def build(self, **more: Any) -> Any:
        """As `Custom.build`, with `weight` and `branch` where the class takes them. Raises
        `UserError` for a class that does not take one that was set."""
        fields = type(self).model_fields
        was_set: dict[str, Any] = {}
        offered: dict[str, Any] = {}
        for name in ("weight", "branch"):
            value = getattr(self, name)
            (offered if value == fields[name].default else was_set)[name] = value
        # A parameter is handed over in any case, an offer only to who takes it.
        asked = self.model_copy(update={"parameters": was_set | self.parameters})
        offered = {name: offered[name] for name in offered.keys() - self.parameters}
        return super(CustomObjective, asked).build(**offered, **more)
