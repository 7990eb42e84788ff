"""Transform gray: no colour."""

from typing import ClassVar, Literal

from manyfaces.configs.transforms.transform import Transform


class Gray(Transform):
    """An image without colour."""

    kind: Literal["gray"] = "gray"
    target: ClassVar[str] = "manyfaces.data.transforms.gray.Gray"
