"""Aggregation quality_weighted: the mean of unit embeddings, weighted by scores from a file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.delimited import read_delimited
from manyfaces.train.aggregations.aggregation import Aggregation, ImageSets
from manyfaces.train.evaluation.templates import pooled

_NAMES = ("name", "key")


class QualityWeighted(Aggregation):
    """The quality-weighted mean. Raises `UserError` for a file that cannot be read, and for an
    image that has no score or one that is no positive number."""

    def __init__(self, scores: str, column: str = "quality") -> None:
        self.path = Path(scores)
        self._names, self._scores = _read(self.path, column)

    def templates(self, sets: ImageSets) -> NDArray[np.float64]:
        return pooled(
            sets.embeddings_ND,
            sets.members,
            length="unit",
            weight_N=self.weights(sets.names),
            by_media=False,
        )

    def weights(self, names: Sequence[str]) -> NDArray[np.float32]:
        """The scores of the images with these names, [N]."""
        wanted = pa.array(names, pa.string())
        row_N = pc.index_in(wanted, self._names)
        if row_N.null_count:
            missing = wanted.filter(row_N.is_null())
            raise UserError(
                f"{self.path}: no score of {missing[0].as_py()} ({len(missing):,} such images of "
                f"{len(wanted):,}); it needs one for every image, by the names of the set"
            )
        weight_N: NDArray[np.float32] = self._scores[row_N.to_numpy()]
        usable_N = np.isfinite(weight_N) & (weight_N > 0)
        if not usable_N.all():
            bad = int(usable_N.argmin())
            raise UserError(
                f"{self.path}: the score of {names[bad]} is {weight_N[bad]:g}; weights have to be "
                "positive numbers"
            )
        return weight_N


def _read(path: Path, column: str) -> tuple[pa.Array, NDArray[np.float32]]:
    """The names and the scores in a file."""
    if path.suffix != ".parquet":
        table = read_delimited(path, {"name": pa.string(), "score": pa.float32()})
        return table["name"].combine_chunks(), table["score"].to_numpy()
    try:
        schema = pq.read_schema(path)
        name = next((each for each in _NAMES if each in schema.names), None)
        if name is None or column not in schema.names:
            raise UserError(
                f"{path}: has the columns {', '.join(schema.names)}; expected {column} and one of "
                f"{', '.join(_NAMES)}; name the column of the scores by `column`"
            )
        table = pq.read_table(path, columns=[name, column])
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: no readable parquet file ({error})") from error
    scores = table[column].cast(pa.float32()).to_numpy().copy()
    return table[name].cast(pa.string()).combine_chunks(), scores
