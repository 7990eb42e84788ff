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


def recognise_each(
    paths: Sequence[Path], options: Mapping[str, object] = NO_OPTIONS
) -> list[Source]:
    """Open the sources that the paths hold. Files of a folder that are numbered as parts of one
    (`train_0.rec`, `train_1.rec`; `train-00000-of-00002.parquet`) are opened as one source, at the
    place of the first, since they share their labels. Raises `UserError` as `recognise` does."""
    parts_of: dict[object, list[Path]] = {}
    for path in paths:
        parts_of.setdefault(_run_of(path), []).append(path)
    return [recognise(parts[0], options, parts[1:]) for parts in parts_of.values()]


def _run_of(path: Path) -> object:
    """What the files have in common that one run of a program wrote; the path itself where it is no
    such file."""
    if path.is_file():
        for kind in source_kinds():
            told = kind.part_name and kind.part_name.fullmatch(path.stem)
            if told and any(claim.certain for claim in kind.claims(path)):
                return kind, path.resolve().parent, told["run"], path.suffix
    return path


def recognise(
    path: Path,
    options: Mapping[str, object] = NO_OPTIONS,
    others: Sequence[Path] = (),
    *,
    needs_labels: bool = True,
) -> Source:
    """Open the source that a path holds, `others` being further files of it.

    `options` holds values by the names of `source_options`; each kind takes its own of them, and
    None is as good as absent. With `needs_labels` false, images without an identity are taken too,
    by the kinds that may lack them. Raises `UserError` for a path that is not there, of no known
    kind, of several kinds, or broken, and for an option that no kind takes.
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
    if not needs_labels and kind.may_lack_labels:
        given["needs_labels"] = False
    source = kind(path, [*claim.files, *others], **given)
    if others:
        names = ", ".join(other.name for other in others)
        joined = (
            f"{path.name} and {names} are taken as parts of one source, by their names; to keep "
            "them apart, put each into another folder"
        )
        source.notes = [*source.notes, joined]
    _list_what_stands_beside(source, claim.files)
    return source


def _list_what_stands_beside(source: Source, files: Sequence[Path]) -> None:
    """Add to what a source leaves out all that is in its folder and is not of it."""
    if source.path.is_dir() and list(files) != [source.path]:
        used = {source.path / file.relative_to(source.path).parts[0] for file in files}
        for there in sorted(set(source.path.iterdir()) - used - set(source.companions)):
            shown = f"{there.name}/" if there.is_dir() else there.name
            source.left_out.add(shown, "beside the source, and not read")


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
