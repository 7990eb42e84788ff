"""Which kind of source a path holds, and which options the kinds take."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.source import (
    Claim,
    Option,
    Source,
    files_with_suffix,
    recognised,
    source_kinds,
)

NO_OPTIONS: Mapping[str, object] = MappingProxyType({})
_NAMES_A_KIND = 3


def recognise(path: Path, options: Mapping[str, object] = NO_OPTIONS) -> Source:
    """Open the source that a path holds.

    `options` holds values by the names of `source_options`; each kind takes its own of them, and
    None is as good as absent. Raises `UserError` for a path that is not there, of no known kind, of
    several kinds, or broken, and for an option that no kind takes.
    """
    known = [option.name for option in source_options()]
    if unknown := [name for name in options if name not in known]:
        raise UserError(
            f"no source takes the option {unknown[0]!r}; the options are {', '.join(known)}"
        )
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {recognised()}")
    claims_of = {kind: kind.claims(path) for kind in source_kinds()}
    claims = [(kind, claim) for kind, found in claims_of.items() for claim in found]
    certain = [(kind, claim) for kind, claim in claims if claim.certain]
    if len(certain) > 1:
        shown = ", ".join(_shown(claims_of))
        raise UserError(f"{path}: holds several sources ({shown}); name one of them, or each")
    # Where the source is the folder itself, shards in it would be passed over without a word.
    is_folder = all(claim.files == [path] for _, claim in certain)
    if is_folder and path.is_dir() and files_with_suffix(path, ".tar"):
        beside = f" beside {certain[0][1].shown}" if certain else ""
        remedy = ", or move them elsewhere to convert the rest" if certain else ""
        raise UserError(
            f"{path}: holds .tar shards{beside}, which need no conversion; run `manyfaces data "
            f"index {path}`{remedy}"
        )
    if not claims:
        raise UserError(f"{path}: not a source; {recognised()}")
    kind, claim = (certain or claims)[0]
    own = {option.name for option in kind.options}
    given = {name: value for name, value in options.items() if name in own and value is not None}
    return kind(path, claim.files, **given)


def source_options() -> Sequence[Option]:
    """All options of all kinds of source, each once, for the command line."""
    options: dict[str, Option] = {}
    for kind in reversed(source_kinds()):
        for option in kind.options:
            assert options.setdefault(option.name, option) == option, (
                f"source {kind.kind}: another kind has the option {option.name} with another "
                "meaning"
            )
    return list(options.values())


def _shown(claims_of: Mapping[type[Source], list[Claim]]) -> list[str]:
    """The first names of what each kind is certain of."""
    shown: list[str] = []
    for claims in claims_of.values():
        names = (name for claim in claims if claim.certain for name in claim.names())
        shown.extend(islice(names, _NAMES_A_KIND))
    return shown
