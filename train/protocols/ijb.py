"""Protocol ijb: templates of several images each, one to one and one to many."""

from collections import Counter
from collections.abc import Hashable, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.aggregations.aggregation import Aggregation as AggregationConfig
from manyfaces.configs.aggregations.media_mean import MediaMean
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.data.sources.ijb import IJBFiles, IJBSet
from manyfaces.train.aggregations.aggregation import Aggregation, ImageSets
from manyfaces.train.evaluation.result import Encoded, Quantity, Result, Table
from manyfaces.train.evaluation.templates import Members
from manyfaces.train.protocols.aligned_images import AlignedImages
from manyfaces.train.protocols.figures import Figures
from manyfaces.train.protocols.ijb_identification import TemplateIdentification
from manyfaces.train.protocols.ijb_verification import TemplateVerification
from manyfaces.train.protocols.protocol import Protocol


class IJB(Protocol):
    """IJB-B or IJB-C.

    Faces are cut out of the images by their landmarks when they are embedded. Raises `UserError`
    for files that are missing or do not fit each other, naming file:line.
    """

    reads_lazily = True

    def __init__(
        self,
        root: str,
        set: IJBSet = "IJBC",
        tasks: Sequence[Literal["verification", "identification"]] = ("verification",),
        flip: Flip = "sum",
        aggregation: AggregationConfig = MediaMean(),  # noqa: B008 - it is frozen
        also: Sequence[AggregationConfig] = (),
    ) -> None:
        self.flip = flip
        files = IJBFiles(Path(root), set)
        self.faces = files.faces()
        templates = files.templates(self.faces)
        self.members = Members.of(templates.template_M, templates.media_M, templates.image_M)
        self.tasks: list[TemplateVerification | TemplateIdentification] = []
        if "verification" in tasks:
            self.tasks.append(TemplateVerification(files.pairs(templates)))
        if "identification" in tasks:
            galleries, probes = files.galleries(templates), files.probes(templates)
            self.tasks.append(TemplateIdentification(galleries, probes))
        self.quantities: Sequence[Quantity] = [
            quantity for task in self.tasks for quantity in task.quantities
        ]
        self._aggregations = _named([aggregation, *also])

    def images(self) -> Sequence[Encoded]:
        return AlignedImages(self.faces.path, self.faces.points_N52)

    def keys(self) -> Sequence[Hashable]:
        return range(len(self.faces.names))

    def image_name(self, index: int) -> str:
        return str(self.faces.path(index))

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        sets = ImageSets(
            embeddings_ND, self.members, self.faces.detector_N, self.faces.names.to_pylist()
        )
        all_figures = {
            called: self._figures(aggregation.templates(sets))
            for called, aggregation in self._aggregations.items()
        }
        figures = next(iter(all_figures.values()))
        tables = dict(figures.tables)
        if len(all_figures) > 1:
            tables["aggregations"] = self._beside(all_figures)
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars=figures.scalars,
            counts={
                "images": len(embeddings_ND),
                "templates": self.members.num_templates,
                **figures.counts,
            },
            intervals=figures.intervals,
            curves=figures.curves,
            histograms=figures.histograms,
            tables=tables,
        )

    def _figures(self, unit_KD: NDArray[np.float64]) -> Figures:
        return reduce(or_, (task.figures(self.name, unit_KD) for task in self.tasks))

    def _beside(self, all_figures: dict[str, Figures]) -> Table:
        """What people look at first, of each aggregation."""
        return {
            called: {
                quantity.heading: figures.scalars[quantity.name]
                for quantity in self.quantities
                if quantity.heading
            }
            for called, figures in all_figures.items()
        }


def _named(configs: Sequence[AggregationConfig]) -> dict[str, Aggregation]:
    """The aggregations by what they are called; a number tells two of one name apart."""
    times = Counter[str]()
    named: dict[str, Aggregation] = {}
    for config in configs:
        called = config.called()
        times[called] += 1
        named[called if times[called] == 1 else f"{called} ({times[called]})"] = config.build()
    return named
