"""Which versions go together, for all that compare nodes with each other or with this machine."""

PACKAGES = {
    "torch": "torch",
    "ray": "ray",
    "deepspeed": "deepspeed",
    "dali": "nvidia-dali-cuda130",
}
"""The distributions that are compared, by the names that people are told."""
NUMBERS_ALIKE = 2
"""How many numbers of a version have to be alike where code and a configuration travel, which a
patch release does not change."""


def compute_together(name: str, one: str, other: str) -> bool:
    """Whether ranks on nodes with these versions of the package, or of `python`, go together.
    Builds of one release for a CPU and for a GPU do: a head often has no GPU. Between releases
    nobody promises that pickles and collectives agree, but for those of Python that fix faults."""
    if name == "python":
        return talk_together(one, other)
    return _numbers(one) == _numbers(other)


def talk_together(one: str, other: str) -> bool:
    """Whether a machine with one version can send work to nodes with the other."""
    return _numbers(one)[:NUMBERS_ALIKE] == _numbers(other)[:NUMBERS_ALIKE]


def _numbers(version: str) -> list[str]:
    """The numbers of a version, without the name of its build."""
    return version.partition("+")[0].split(".")
