"""A Dockerfile for the image that runs work in: the wheel and its dependencies at pinned versions,
and a user that is not root."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manyfaces.cluster.manifests.install import Pinned
from manyfaces.configs.errors import UserError
from manyfaces.configs.redact import redact

BASE = "python:3.11-bookworm"
"""Python, and the C compiler that Triton needs; PyTorch's wheels bring CUDA themselves."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of wheels without CUDA."""
FOLDER = "/opt/manyfaces"
USER_ID = 1000
"""A number, by which Kubernetes sees that it is not root."""
Build = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Settings:
    """What is built."""

    build: Build
    base: str = BASE
    torch_index: str | None = None


def dockerfile(pinned: Pinned, context: Path, settings: Settings) -> str:
    """The Dockerfile for a build in the folder `context`. Raises `UserError` for files that are not
    below it, and for an index with credentials."""
    wheel, constraints = (
        _below(path, context, option)
        for path, option in ((pinned.wheel, "--wheel"), (pinned.constraints, "--constraints"))
    )
    lines = [
        _HEAD,
        f"ARG BASE={settings.base}",
        "FROM ${BASE}",
        "",
        "# The sums are those of the files that this was written for.",
        f"COPY {wheel} {constraints} {FOLDER}/",
        f"RUN {pinned.check_sums(FOLDER)}",
        "",
        *_install_lines(pinned, settings),
        "",
        f"RUN useradd --create-home --uid {USER_ID} --shell /bin/bash manyfaces",
        f"USER {USER_ID}:{USER_ID}",
        "WORKDIR /home/manyfaces",
        'CMD ["manyfaces", "--version"]',
    ]
    if "@sha256:" not in settings.base:
        lines.insert(1, "# A tag may be moved: BASE=NAME@sha256:DIGEST keeps the base as it is.")
    return "\n".join([*lines, ""])


def _install_lines(pinned: Pinned, settings: Settings) -> list[str]:
    index = settings.torch_index or (CPU_INDEX if settings.build == "cpu" else None)
    if index is not None and redact(index) != index:
        raise UserError(
            f"--torch-index {index}: credentials stand in it, and every layer of an image can be "
            "read; take them out and have pip find them in a .netrc of the base"
        )
    lines = []
    if index is not None:
        torch = pinned.pip_install(FOLDER, what=f"--index-url {index} torch")
        lines += [
            f"# PyTorch for {settings.build.upper()}, from an index of its own.",
            f"RUN {torch}",
        ]
    lines.append(f"RUN {pinned.pip_install(FOLDER)}")
    if settings.build == "cuda":
        lines += [
            "# What NVIDIA's container runtime brings in of the driver.",
            "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        ]
    return lines


def _below(path: Path, context: Path, option: str) -> str:
    try:
        return path.resolve().relative_to(context.resolve()).as_posix()
    except ValueError:
        raise UserError(
            f"{option} {path}: is not below {context.resolve()}, and an image is built of one "
            "folder's files; copy it there, or name the folder by --context"
        ) from None


_HEAD = """\
# The image that runs of manyfaces work in. Read it, then, in the folder that it is for,
#   docker build --file FILE --tag REGISTRY/manyfaces:VERSION .
#   docker push REGISTRY/manyfaces:VERSION     # shows the digest, for --image ...@sha256:DIGEST
# Dependencies are pinned by their versions; the wheel and the list of them by their SHA-256.
# The base needs Python 3.11 or 3.12, and for GPUs a C compiler."""
