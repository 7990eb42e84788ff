"""How manyfaces is installed at pinned versions: a wheel told by its SHA-256, and the versions that
it is tested with."""

from dataclasses import dataclass
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
"""The versions that manyfaces is tested with, in a checkout of it."""
EXTRAS = ("gcs", "http", "s3", "timm")
"""What a run may need besides, by what it is for."""


@dataclass(frozen=True)
class Pinned:
    """The files that an installation is made of."""

    wheel: Path
    constraints: Path
    extras: tuple[str, ...] = ()

    def check_sums(self, folder: str) -> str:
        """A command that fails where the files of the folder are not these."""
        sums = "".join(
            f"{file_sha256(path)}  {folder}/{path.name}\\n"
            for path in (self.wheel, self.constraints)
        )
        return f"printf '{sums}' | sha256sum --check --strict"

    def pip_install(self, folder: str, *, pip: str = "pip", what: str = "") -> str:
        """A command that installs the wheel in the folder, or `what` instead, at these versions."""
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        wanted = what or f"'{folder}/{self.wheel.name}{extras}'"
        pins = f"{folder}/{self.constraints.name}"
        return f"{pip} install --no-cache-dir --constraint {pins} {wanted}"


def pinned(wheel: Path, constraints: Path | None, extras: tuple[str, ...]) -> Pinned:
    """The files of an installation; without `constraints` those of this checkout. Raises
    `UserError` for what is not there."""
    if wheel.suffix != ".whl" or not wheel.name.startswith("manyfaces-") or not wheel.is_file():
        raise UserError(
            f"--wheel {wheel}: is no wheel of manyfaces; `pip wheel --no-deps -w dist .` in a "
            "checkout makes one"
        )
    for extra in extras:
        if extra not in EXTRAS:
            raise UserError(f"--extra {extra}: there is none; the extras are {', '.join(EXTRAS)}")
    found = constraints or CONSTRAINTS
    if not found.is_file():
        remedy = (
            "--constraints FILE has to name constraints.txt of a checkout of manyfaces"
            if constraints is None
            else "give constraints.txt of a checkout of manyfaces"
        )
        raise UserError(f"{found}: no such file; {remedy}")
    return Pinned(wheel, found, extras)
