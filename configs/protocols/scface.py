"""Protocol scface: people before surveillance cameras, by distance."""

from typing import Annotated, ClassVar, Literal

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol


class SCface(Protocol):
    """SCface as the literature of low resolution has it: rank-1 of the images of five cameras at
    each of three distances, the gallery being one frontal mugshot of each person. It is not Idiap's
    verification protocol with its development and test sets."""

    kind: Literal["scface"] = "scface"
    target: ClassVar[str] = "manyfaces.train.protocols.scface.SCface"

    path: Annotated[str, PATH]
    """A folder that has, at any depth, mugshots `001_frontal.jpg` and images of the cameras
    `001_cam1_1.jpg`: person, camera and distance."""
    leave_out: Annotated[str | None, PATH] = None
    """A text file with the numbers of the people that the network was tuned on, one a line: they
    are neither in the gallery nor probes. Without it all people are."""
    flip: Flip = "sum"
    """What an embedding is of: the image, or its mirror image as well."""
