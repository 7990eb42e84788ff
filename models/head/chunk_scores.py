"""The scores of one chunk of classes: cosines with the nearest sub-centre, and the logits that they
become.

Shapes as in `passes.py`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.head.passes import LOG2_E, Scoring
from manyfaces.models.head.products import times_transposed
from manyfaces.models.head.rows import Rows
from manyfaces.models.head.sampling import Chunk, Columns
from manyfaces.models.margins.margin import NegativeTransform, above


class Scores(NamedTuple):
    """Scores of one chunk, float32 [B, n], in the unit that the function which made them says."""

    values_Bn: Tensor
    slopes_Bn: Tensor | None = None
    """d f / d z, where there is a negative transform and slopes are asked for."""
    nearer: tuple[Tensor, ...] = ()
    """As `ChunkCache.nearer`, but float32; where slopes are asked for."""
    nearest_B: Tensor | None = None
    """float32 [B]: as `NegativeSums.nearest_B`; where the nearest is asked for."""


class ChunkRows:
    """The rows of a chunk, and which of its columns count for each sample."""

    def __init__(
        self,
        sub_centers: Sequence[Rows],
        chunk: Chunk,
        columns: Columns,
        inverse_norms_Kn: Tensor,
    ) -> None:
        """`inverse_norms_Kn` as in `ChunkCache`."""
        self.rows = [rows.take(chunk.ids) for rows in sub_centers]
        self.inverse_norms_Kn = inverse_norms_Kn
        column_B = columns.targets_B - chunk.first
        self.own_here_B1 = ((column_B >= 0) & (column_B < len(chunk)))[:, None]
        self.own_B1 = torch.where(self.own_here_B1, column_B[:, None], 0)
        self.space_B = columns.space_B
        self.counts_Sn: Tensor | None = None
        """1 where the class counts for samples of that label space, else 0; None where all count
        for all. Products of float32, as `margins.above` explains."""
        if chunk.excluded_n is not None:
            self.counts_Sn = (~chunk.excluded_n).float()[None]
        if chunk.space_n is not None and columns.spaces_S1 is not None:
            same_Sn = (chunk.space_n == columns.spaces_S1).float()
            self.counts_Sn = same_Sn if self.counts_Sn is None else same_Sn.mul_(self.counts_Sn)

    def set_own_(self, scores_Bn: Tensor, value_B1: Tensor | float) -> None:
        """Set each sample's own column, if it is in this chunk."""
        scores_Bn.scatter_(
            1,
            self.own_B1,
            torch.where(self.own_here_B1, value_B1, scores_Bn.gather(1, self.own_B1)),
        )

    def exclude_(self, scores_Bn: Tensor, *, own: bool) -> None:
        """Set to -inf what does not count for a sample, and if `own` the sample's own class."""
        if self.counts_Sn is not None:
            log_Sn = self.counts_Sn.log()
            scores_Bn += log_Sn if self.space_B is None else log_Sn.index_select(0, self.space_B)
        if own:
            self.set_own_(scores_Bn, -math.inf)

    def logits(
        self,
        unit_BD: Tensor,
        transform: NegativeTransform | None,
        *,
        slopes: bool = False,
        nearest: bool = False,
    ) -> Scores:
        """f(z), in units of the scale."""
        if slopes:
            values_Bn, nearer = self._nearest_sub_centers(unit_BD)
        else:
            values_Bn, nearer = self._cosines(unit_BD), ()
        nearest_B = self._nearest_negative(values_Bn.clone()) if nearest else None
        slopes_Bn = None
        if transform is not None and slopes:
            values_Bn, slopes_Bn = transform.logits_and_slopes(values_Bn)
        elif transform is not None:
            values_Bn = transform.logits(values_Bn)
        return Scores(values_Bn, slopes_Bn, nearer, nearest_B)

    def exponents(
        self,
        unit_BD: Tensor,
        scoring: Scoring,
        offset_B1: Tensor,
        *,
        slopes: bool = False,
        nearest: bool = False,
    ) -> Scores:
        """s f(z) in bits, plus the offset, [B, 1] or [1, 1]."""
        bits = scoring.scale * LOG2_E
        if scoring.transform is None and len(self.rows) == 1:
            # Norm, scale and offset in one pass over memory.
            dots_Bn, inverse_norms_n = (
                times_transposed(unit_BD, self.rows[0]),
                self.inverse_norms_Kn[0],
            )
            nearest_B = self._nearest_negative(dots_Bn * inverse_norms_n) if nearest else None
            values_Bn = torch.addcmul(offset_B1, dots_Bn, inverse_norms_n * bits, out=dots_Bn)
            return Scores(values_Bn, nearest_B=nearest_B)
        scores = self.logits(unit_BD, scoring.transform, slopes=slopes, nearest=nearest)
        values_Bn = scores.values_Bn
        return scores._replace(values_Bn=torch.add(offset_B1, values_Bn, alpha=bits, out=values_Bn))

    def _cosines(self, unit_BD: Tensor) -> Tensor:
        """Cosines with the nearest sub-centre of each class [B, n]."""
        cosines = self._by_sub_center(unit_BD)
        best_Bn = next(cosines)
        for other_Bn in cosines:
            torch.maximum(best_Bn, other_Bn, out=best_Bn)
        return best_Bn

    def _nearest_sub_centers(self, unit_BD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same cosines, and `Scores.nearer`."""
        cosines, nearer = self._by_sub_center(unit_BD), []
        best_Bn = next(cosines)
        for other_Bn in cosines:
            nearer.append(above(other_Bn, best_Bn))
            torch.maximum(best_Bn, other_Bn, out=best_Bn)
        return best_Bn, tuple(nearer)

    def _by_sub_center(self, unit_BD: Tensor) -> Iterator[Tensor]:
        for rows_nD, inverse_norms_n in zip(self.rows, self.inverse_norms_Kn, strict=True):
            yield times_transposed(unit_BD, rows_nD).mul_(inverse_norms_n)

    def _nearest_negative(self, cosines_Bn: Tensor) -> Tensor:
        """The largest cosine that counts, without the own class's [B]; overwrites `cosines_Bn`."""
        self.exclude_(cosines_Bn, own=True)
        return cosines_Bn.amax(1)
