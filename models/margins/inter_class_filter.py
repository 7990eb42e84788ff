"""Inter-class filtering: very near classes are left out of a sample's loss."""

from typing import NamedTuple

from torch import Tensor

from manyfaces.models.margins.margin import NegativeTransform, above

_REMOTE = 1e4
"""A logit that lies so far below all others counts as nothing: its exponential is 0 in float32."""


class InterClassFilter(NamedTuple):
    """A class nearer than the threshold is taken for the same person under another label, and left
    out (Partial FC, arXiv 2203.15565). InsightFace sets its logit to 0, which beside exp(s z) is as
    good as nothing."""

    threshold: float
    """Cosine above which a class is left out."""
    inner: NegativeTransform | None
    """The margin's own transform."""

    def logits(self, cosines: Tensor) -> Tensor:
        near = above(cosines, self.threshold)
        logits = cosines if self.inner is None else self.inner.logits(cosines)
        return logits.sub_(near, alpha=_REMOTE)

    def logits_and_slopes(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        near = above(cosines, self.threshold)
        if self.inner is None:
            logits, slopes = cosines, cosines.new_ones(())
        else:
            logits, slopes = self.inner.logits_and_slopes(cosines)
        return logits.sub_(near, alpha=_REMOTE), slopes

    def for_samples(self, samples_m: Tensor) -> NegativeTransform:
        if self.inner is None:
            return self
        return self._replace(inner=self.inner.for_samples(samples_m))
