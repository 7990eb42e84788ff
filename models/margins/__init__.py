"""Margins: what is done to cosines before they become a loss, one file each.

`Margin`, `Target` and `NegativeTransform` are what a margin of one's own is written with.
"""

from manyfaces.models.margins.margin import Margin, NegativeTransform, Target

__all__ = ["Margin", "NegativeTransform", "Target"]
