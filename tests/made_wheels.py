"""Tiny wheels, which say what they depend on and hold one module."""

import base64
import hashlib
import zipfile
from pathlib import Path


def made_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    requires: tuple[str, ...] = (),
    *,
    tag: str = "py3-none-any",
    python: str = ">=3.9",
    content: bytes = b"",
) -> Path:
    """A wheel in `folder` whose only module is `name`, with `content` in a file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        f"Requires-Python: {python}",
        *(f"Requires-Dist: {requirement}" for requirement in requires),
    ]
    kind = ["Wheel-Version: 1.0", "Generator: made", f"Root-Is-Purelib: true\nTag: {tag}"]
    files = {
        f"{name}/__init__.py": f"__version__ = {version!r}\n".encode(),
        f"{name}/content.bin": content,
        # Packages hold copies of others together with what these say of themselves.
        f"{name}/vendored/other-2.0.dist-info/METADATA": b"Requires-Dist: never\n",
        f"{info}/METADATA": ("\n".join(metadata) + "\n").encode(),
        f"{info}/WHEEL": ("\n".join(kind) + "\n").encode(),
    }
    record = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).decode().rstrip("=")
        record.append(f"{path},sha256={digest},{len(text)}\n")
    wheel = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join([*record, f"{info}/RECORD,,\n"]))
    return wheel
