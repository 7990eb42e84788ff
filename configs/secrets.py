"""Secrets that stand in a configuration: what is kept of a job on a cluster would hold them."""

import re

from manyfaces.configs.identity import flatten
from manyfaces.configs.redact import names_secret, redacted
from manyfaces.configs.schema import Config

_TOKEN = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\b(hf|ghp|gho|ghs|github_pat|glpat|dapi|xox[abp])[_-]?[A-Za-z0-9_-]{20,}"
    r"|\bBearer\s+\S{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""Tokens that are known by how they begin."""


def keys_with_secrets(config: Config) -> list[str]:
    """The dotted keys whose values hold a secret: a URL with a password or a signature in it, a
    text whose key names one (`parameters.api_key`), and tokens of AWS, Hugging Face, GitHub and
    their like."""
    values = flatten(config.model_dump())
    return [key for key, value in values.items() if _is_secret(key, value)]


def _is_secret(key: str, value: object) -> bool:
    if redacted(value) != value:
        return True
    if not isinstance(value, str) or not value:
        return False
    return names_secret(key.rpartition(".")[2]) or _TOKEN.search(value) is not None
