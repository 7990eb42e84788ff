"""The machine that wheels are gathered for: its Python and its platform."""

import re
from dataclasses import dataclass

from manyfaces.configs.errors import UserError

_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""Older names of glibc's versions 2.N in tags (PEP 600)."""
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}


@dataclass(frozen=True)
class Target:
    """A CPython such as 3.12 on a Linux such as manylinux_2_28_x86_64, which means glibc 2.28 or
    newer. Raises `UserError` for others."""

    python: str
    platform: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python):
            raise UserError(f"--python {self.python}: expected a version such as 3.12")
        if not re.fullmatch(rf"manylinux_2_\d+_({'|'.join(_OLDEST_GLIBC)})", self.platform):
            raise UserError(
                f"--platform {self.platform}: expected manylinux_2_N_ARCH for glibc 2.N, such as "
                f"manylinux_2_28_x86_64; ARCH is {' or '.join(_OLDEST_GLIBC)}"
            )

    @property
    def glibc(self) -> int:
        """N of the oldest glibc 2.N that the machine may have."""
        return int(self.platform.split("_")[2])

    @property
    def machine(self) -> str:
        """What `uname -m` prints there."""
        return self.platform.split("_", 3)[3]

    @property
    def platforms(self) -> list[str]:
        """All platform tags of wheels that run there, the newest first: pip takes `--platform`
        word by word."""
        found = []
        for glibc in range(self.glibc, _OLDEST_GLIBC[self.machine] - 1, -1):
            found.append(f"manylinux_2_{glibc}_{self.machine}")
            if glibc in _LEGACY:
                found.append(f"{_LEGACY[glibc]}_{self.machine}")
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The values of environment markers there (PEP 508). pip itself reads markers as of the
        machine that it runs on, whatever `--python-version` says."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def pip_options(self) -> list[str]:
        """The options by which pip chooses wheels for it."""
        abi = f"cp{self.python.replace('.', '')}"
        options = ["--python-version", self.python, "--implementation", "cp", "--abi", abi]
        for platform in self.platforms:
            options += ["--platform", platform]
        return options
