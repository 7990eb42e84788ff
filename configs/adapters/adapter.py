"""The family of adapters: small weights that are trained beside the fixed ones of a backbone."""

from typing import Any, ClassVar

from manyfaces.configs.kinds import Kind
from manyfaces.configs.node import TENSORS, Decides


class Adapter(Kind):
    """What is trained of a backbone whose own weights stay as `model.init` gave them.

    `target` is a subclass of `manyfaces.models.adapters.adapter.Adapter`, made with the fields.
    """

    folder: ClassVar[str] = "manyfaces.configs.adapters"
    config_key: ClassVar[str] = "model.adapters"
    decides: ClassVar[Decides] = TENSORS

    def check(self, config: Any) -> None:
        if config.model.init is None:
            raise ValueError(
                "adapters are trained beside fixed weights, and model.init names none; set "
                "model.init to the base model's, or model.adapters=[]"
            )

    def num_parameters(self, depth: int, width: int) -> int:
        """About how many weights it adds to a transformer of so many blocks of this width."""
        raise NotImplementedError
