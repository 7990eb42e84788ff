"""Settings of runs: all of one, and those in which several differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from manyfaces.configs.identity import flatten
from manyfaces.configs.redact import redacted

ABSENT = "—"
"""What stands where a run has no such setting."""


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs."""

    key: str
    values: Sequence[str]
    """That of each run, in their order."""


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """The settings in which the configurations differ, in the order in which they stand there. A
    setting of which a run knows nothing, as an earlier version wrote it, differs too."""
    flat = [flatten(redacted(dict(config))) for config in configs]
    keys = dict.fromkeys(key for each in flat for key in each)
    return [
        Difference(key, [setting_text(each[key]) if key in each else ABSENT for each in flat])
        for key in keys
        if any(key not in each or each[key] != flat[0].get(key) for each in flat)
    ]


def setting_text(value: Any) -> str:
    """A value as it stands in a recipe."""
    if isinstance(value, str):
        return value or "''"
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
