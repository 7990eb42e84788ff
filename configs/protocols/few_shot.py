"""Protocol few_shot: whom an image shows, among people of whom there are a few images each."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from manyfaces.configs.protocols.probe import Probe


class FewShot(Probe):
    """Identification by a few images of each person: in each of many episodes, `shots` images of
    each of `ways` people are enrolled as the mean of their unit embeddings, and another image of
    each is asked for, by the cosine (prototypes of arXiv 1703.05175)."""

    kind: Literal["few_shot"] = "few_shot"
    target: ClassVar[str] = "manyfaces.train.protocols.few_shot.FewShot"

    ways: Annotated[int, Field(ge=2)] = 20
    """People of an episode."""
    shots: PositiveInt = 1
    """Images of each that are enrolled; identities with fewer than one more are left out."""
    episodes: Annotated[int, Field(ge=2)] = 1000
    """Times that people and images are drawn."""
