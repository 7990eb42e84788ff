"""Protocol error_discard: do qualities tell which images to leave out."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol

FMR = Annotated[float, Field(gt=0, lt=1)]


class ErrorDiscard(Protocol):
    """Error versus discard: how far the false non-match rate (FNMR) at a fixed false match rate
    (FMR) falls when the pairs of the lowest quality are left out, 0 to 95 % of them. A pair has the
    quality of its worse image. The less area under the curve, the better the quality.

    Each curve is there twice: with the threshold of all pairs (ISO/IEC 29794-1, NIST), and with one
    that is estimated anew from the pairs that remain (CR-FIQA, arXiv 2112.06592).
    """

    kind: Literal["error_discard"] = "error_discard"
    target: ClassVar[str] = "manyfaces.train.protocols.error_discard.ErrorDiscard"

    path: Annotated[str, PATH]
    """A verification set in InsightFace's layout (`.bin`), or a list of pairs, as in the protocol
    verification."""
    root: Annotated[str | None, PATH] = None
    """The folder that the images of a list are below; null is the folder of the list."""
    interleave: bool = False
    """Take a file that holds all pairs of one kind first, as those of CALFW and CPLFW do."""
    flip: Flip = "sum"
    """What embeddings are compared, as in the protocol verification. The norm is that of what is
    compared, any other score of the network the mean of the image's and its mirror image's."""
    scores: Annotated[tuple[str, ...], Field(min_length=1)] = ("norm",)
    """Which numbers about an image are taken for its quality, higher is better: `norm`, the length
    of its embedding (MagFace, AdaFace), a score that the network gives (`quality`, after the
    objective cr_fiqa), or a column of `scores_file`."""
    fmrs: Annotated[tuple[FMR, ...], Field(min_length=1)] = (1e-2, 1e-3)
    """False match rates; one that is finer than a pair of the set cannot be told."""
    scores_file: Annotated[str | None, PATH] = None
    """A CSV with one column for each score, under its name, and the column `image`: of a `.bin` the
    number of an image from 0 on (those of pair i are 2i and 2i + 1), of a list its path as it
    stands below `root`."""

    @field_validator("scores", "fmrs")
    @classmethod
    def _once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError("has the same value twice")
        return values

    def check(self, config: Any) -> None:
        """Raise `ValueError` for a score that the run's network will surely not give."""
        given = {"norm", *config.objective.score_branches()}
        unknown = [score for score in self.scores if score not in given]
        is_ours = "custom" not in (config.model.word(), config.objective.word())
        if unknown and is_ours and self.scores_file is None:
            raise ValueError(
                f"protocol error_discard has the score {unknown[0]}, and the network of this run "
                f"gives {' and '.join(sorted(given))}; set objective=cr_fiqa for quality, or give "
                "the score in scores_file"
            )

    def named_after(self) -> str:
        return self.path

    def called(self, parents: int = 0) -> str:
        name = super().called(parents)
        return name if self.result_name is not None else f"{name}-discard"
