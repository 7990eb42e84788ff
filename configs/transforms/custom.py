"""Transform custom: one of your own."""

from typing import Any, ClassVar

from manyfaces.configs.kinds import Custom, imported
from manyfaces.configs.node import Probability
from manyfaces.configs.transforms.transform import Transform


class CustomTransform(Custom, Transform):
    """A transform of your own: a class in a file."""

    base: ClassVar[str] = "manyfaces.data.transforms.transform.Transform"
    target: ClassVar[str] = "manyfaces.data.transforms.sometimes.Sometimes"

    p: Probability = 1.0
    """Probability that an image is changed. The class itself need not know of it."""

    def build(self, **more: Any) -> Any:
        """An object of the class, or one that carries it out with probability `p`. Raises
        `UserError` for a file that does not hold it."""
        built = super().build(**more)
        if self.p == 1:
            return built
        return imported(self.target)(self.p, built)
