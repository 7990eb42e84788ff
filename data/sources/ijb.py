"""IJB-B and IJB-C in the layout in which InsightFace's `eval_ijbc.py` reads them: images and where
the faces in them are, templates, pairs of templates, and the galleries and probes of 1:N.

    ROOT/loose_crop/NAME                     images
    ROOT/meta/ijbc_name_5pts_score.txt       NAME x1 y1 ... x5 y5 DETECTOR_SCORE
    ROOT/meta/ijbc_face_tid_mid.txt          NAME TEMPLATE MEDIA
    ROOT/meta/ijbc_template_pair_label.txt   TEMPLATE TEMPLATE 1|0
    ROOT/meta/ijbc_1N_gallery_G1.csv, _G2    TEMPLATE,SUBJECT with a header (IJB-B: S1, S2)
    ROOT/meta/ijbc_1N_probe_mixed.csv        the same

Shapes: N images, M memberships of an image in a template, K templates, P pairs.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.delimited import line_of, read_delimited

IJBSet = Literal["IJBB", "IJBC"]
Ints = NDArray[np.int32]

_GALLERIES = {"IJBB": ("S1", "S2"), "IJBC": ("G1", "G2")}
_NUMBER = pa.int32()
_POINTS = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]


@dataclass(frozen=True)
class Faces:
    """N images, with what a detector found in each."""

    folder: Path
    names: pa.StringArray
    """[N]: file names, relative to the folder."""
    points_N52: NDArray[np.float32]
    """Five landmarks (x, y) in pixels of the image: eyes, nose, corners of the mouth."""
    detector_N: NDArray[np.float32]
    """How sure the detector was."""

    def path(self, row: int) -> Path:
        """The file of an image."""
        return self.folder / str(self.names[row])


@dataclass(frozen=True)
class TemplateList:
    """K templates, each of some images."""

    file: Path
    ids_K: Ints
    """Their numbers in the files, ascending."""
    template_M: Ints
    """Which template (of the K) each membership is in."""
    media_M: Ints
    """The medium that the image is of: one number for all frames of a video."""
    image_M: Ints
    """Which image it is."""


class TemplatePairs(NamedTuple):
    """P pairs of templates."""

    first_P: Ints
    second_P: Ints
    same_P: NDArray[np.bool_]
    """Whether they are of one subject."""


class Enrolled(NamedTuple):
    """Templates of known subjects, of a gallery or of the probes."""

    template_E: Ints
    subject_E: Ints


@dataclass(frozen=True)
class IJBFiles:
    """Where the files of a set are."""

    root: Path
    name: IJBSet

    def __post_init__(self) -> None:
        if not (self.root / "meta").is_dir():
            inside = self.root / self.name
            remedy = f"give {inside}" if (inside / "meta").is_dir() else "give the folder of both"
            raise UserError(
                f"{self.root}: no meta folder in it; expected {self.name}'s loose_crop and meta; "
                f"{remedy}"
            )

    def faces(self) -> Faces:
        """The images. Raises `UserError` naming file:line for landmarks or scores that are not
        finite, for an image that is listed twice, and for one whose file is not there."""
        file = self._meta("name_5pts_score.txt")
        types = {"name": pa.string()} | dict.fromkeys([*_POINTS, "score"], pa.float32())
        table = read_delimited(file, types)
        numbers = np.stack([table[name].to_numpy() for name in [*_POINTS, "score"]], axis=1)
        _refuse(file, ~np.isfinite(numbers).all(1), "expected finite numbers")
        names = table["name"].combine_chunks()
        first_N = pc.index_in(names, names).to_numpy(zero_copy_only=False)
        _refuse(file, first_N != np.arange(len(names)), "the image is listed a second time")
        folder = self.root / "loose_crop"
        missing_N = pc.invert(pc.is_in(names, pa.array(_files(folder), pa.string())))
        _refuse(file, missing_N.to_numpy(zero_copy_only=False), f"the image is not in {folder}")
        return Faces(folder, names, numbers[:, :10].reshape(-1, 5, 2), numbers[:, 10].copy())

    def templates(self, faces: Faces) -> TemplateList:
        """The templates of these images. Raises `UserError` naming file:line where the list of the
        images and that of the templates do not fit each other."""
        file, images = self._meta("face_tid_mid.txt"), self._meta("name_5pts_score.txt")
        types = {"name": pa.string(), "template": _NUMBER, "media": _NUMBER}
        table = read_delimited(file, types)
        names = table["name"].combine_chunks()
        found = pc.index_in(names, faces.names)
        unknown_M = found.is_null().to_numpy(zero_copy_only=False)
        _refuse(file, unknown_M, f"the image is not in {images.name}")
        image_M = found.to_numpy()
        used_N = np.zeros(len(faces.names), bool)
        used_N[image_M] = True
        _refuse(images, ~used_N, f"the image is in no template of {file.name}")
        ids_K, template_M = np.unique(table["template"].to_numpy(), return_inverse=True)
        return TemplateList(
            file, ids_K, template_M.astype(np.int32), table["media"].to_numpy(), image_M
        )

    def pairs(self, templates: TemplateList) -> TemplatePairs:
        """The pairs of 1:1. Raises `UserError` naming file:line for a template that has no image
        and for a label other than 0 and 1, and where all pairs are of one kind."""
        file = self._meta("template_pair_label.txt")
        table = read_delimited(file, {"template1": _NUMBER, "template2": _NUMBER, "label": _NUMBER})
        label_P = table["label"].to_numpy()
        _refuse(file, (label_P != 0) & (label_P != 1), "expected a label of 0 or 1")
        same_P = label_P == 1
        if same_P.all() or not same_P.any():
            kind = "one subject" if same_P.all() else "two subjects"
            raise UserError(f"{file}: all {len(same_P):,} pairs are of {kind}; give both kinds")
        first_P, second_P = (
            _indices(file, table[column].to_numpy(), templates)
            for column in ("template1", "template2")
        )
        return TemplatePairs(first_P, second_P, same_P)

    def galleries(self, templates: TemplateList) -> dict[str, Enrolled]:
        """The two galleries of 1:N by their names. Raises `UserError` as `probes` does, and for a
        subject of both galleries."""
        found = {
            name: self._enrolled(f"1N_gallery_{name}.csv", templates)
            for name in _GALLERIES[self.name]
        }
        one, other = found.values()
        if len(both := np.intersect1d(one.subject_E, other.subject_E)):
            names = " and ".join(_GALLERIES[self.name])
            raise UserError(
                f"{self.root / 'meta'}: subject {both[0]} is in the galleries {names} both, and so "
                "no probe could be one of an unknown; give galleries without a common subject"
            )
        return found

    def probes(self, templates: TemplateList) -> Enrolled:
        """The probes of 1:N. Raises `UserError` naming file:line for a template that has no image
        or two subjects."""
        return self._enrolled("1N_probe_mixed.csv", templates)

    def _enrolled(self, name: str, templates: TemplateList) -> Enrolled:
        file = self._meta(name)
        types = {"TEMPLATE_ID": _NUMBER, "SUBJECT_ID": _NUMBER}
        table = read_delimited(file, types, delimiter=",", header=True)
        id_R, subject_R = (table[column].to_numpy() for column in types)
        template_R = _indices(file, id_R, templates, header=True)
        # NIST's own files have a line for each image of a template.
        template_E, first_E, place_R = np.unique(template_R, return_index=True, return_inverse=True)
        subject_E = subject_R[first_E]
        _refuse(
            file, subject_E[place_R] != subject_R, "the template has another subject above", True
        )
        return Enrolled(template_E, subject_E)

    def _meta(self, name: str) -> Path:
        return self.root / "meta" / f"{self.name.lower()}_{name}"


def _indices(file: Path, id_R: Ints, templates: TemplateList, header: bool = False) -> Ints:
    """Which template (of the K) each number names."""
    ids_K = templates.ids_K
    place_R = np.searchsorted(ids_K, id_R).clip(max=len(ids_K) - 1)
    unknown_R = ids_K[place_R] != id_R
    _refuse(file, unknown_R, f"a template of it has no image in {templates.file.name}", header)
    return place_R.astype(np.int32)


def _refuse(file: Path, bad_R: NDArray[np.bool_], why: str, header: bool = False) -> None:
    """Raise `UserError` for the first bad row, naming its line."""
    if not bad_R.any():
        return
    number = line_of(file, int(bad_R.argmax()), header=header)
    with file.open(encoding="utf-8", errors="replace") as lines:
        line = next(line for at, line in enumerate(lines, 1) if at == number)
    count = int(bad_R.sum())
    more = f" ({count:,} such lines)" if count > 1 else ""
    raise UserError(f"{file}:{number}: {line.strip()[:60]!r}: {why}{more}")


def _files(folder: Path) -> Iterator[str]:
    """The files below a folder, by their path in it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it holds the images")
    for above, _, names in os.walk(folder):
        inside = os.path.relpath(above, folder)
        yield from names if inside == "." else (f"{inside}/{name}" for name in names)
