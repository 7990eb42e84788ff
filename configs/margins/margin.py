"""The family of margins: what is done to cosines before they become a loss."""

from typing import Any, ClassVar

from manyfaces.configs.kinds import Kind


class Margin(Kind):
    """What is done to cosines before they become a loss."""

    folder: ClassVar[str] = "manyfaces.configs.margins"
    config_key: ClassVar[str] = "head.margin"


def check_binary(word: str, config: Any) -> None:
    """Raise `ValueError` for what a logistic loss of each class does not go with."""
    head = config.head
    if head.sample_rate < 1:
        raise ValueError(
            f"head.sample_rate {head.sample_rate:g} does not go with {word}, whose losses of own "
            "and other classes are balanced over all of them; set head.sample_rate=1"
        )
    if len(config.data.mixture) > 1 and head.label_spaces == "each":
        raise ValueError(
            f"head.label_spaces each does not go with {word}, whose bias is one for all; set "
            "head.label_spaces=joint"
        )
