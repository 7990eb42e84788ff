"""Identities of several sources as one list: distinct by default, joined where a person says so."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.names import short_names
from manyfaces.data.sources.source import Source

Ints = NDArray[np.int64]


def merge_identities(
    sources: Sequence[Source], identity_map: Path | None
) -> tuple[list[str], Ints]:
    """Name all identities, and find that of each image of all sources, one source after the other.

    Identities of several sources are named `source/identity`; `identity_map` (lines
    `name<TAB>merged name`) joins some. Raises `UserError`.
    """
    merged_name = _read_identity_map(identity_map) if identity_map else {}
    codes: dict[str, int] = {}
    columns, unknown = [], set(merged_name)
    for label, source in zip(short_names([s.path for s in sources]), sources, strict=True):
        names = source.identities
        if len(sources) > 1:
            names = [f"{label}/{name}" for name in names]
        if bad := next((name for name in names if not name.isprintable()), None):
            raise UserError(
                f"{source.path}: identity {bad!r} cannot be a line of identities.txt; rename it"
            )
        unknown -= set(names)
        merged = [merged_name.get(name, name) for name in names]
        own_codes = np.array([codes.setdefault(name, len(codes)) for name in merged])
        columns.append(own_codes[source.label_N])
    if unknown:
        raise UserError(
            f"{identity_map}: no identity {min(unknown)!r} in the sources ({len(unknown)} such "
            f"lines); known is {next(iter(codes))!r}"
        )
    return list(codes), np.concatenate(columns)


def _read_identity_map(path: Path) -> dict[str, str]:
    joined: dict[str, str] = {}
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, _, merged = line.partition("\t")
        if not name.strip() or not merged.strip() or "\t" in merged:
            raise UserError(
                f"{path}:{number}: expected `source identity name<TAB>merged name`, got "
                f"{line[:80]!r}"
            )
        if name.strip() in joined:
            raise UserError(
                f"{path}:{number}: {name.strip()!r} stands in a line above already; each identity "
                "has one line"
            )
        joined[name.strip()] = merged.strip()
    return joined
