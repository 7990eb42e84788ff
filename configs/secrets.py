"""Secrets that stand in a configuration or in a command: what is kept of a run would hold them."""

import re

from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import flatten
from manyfaces.configs.redact import HIDDEN, names_secret, redacted
from manyfaces.configs.schema import Config

_TOKEN = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\b(hf|ghp|gho|ghs|github_pat|glpat|dapi|xox[abp])[_-]?[A-Za-z0-9_-]{20,}"
    r"|\bBearer\s+\S{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""Tokens that are known by how they begin."""
_NAMED = re.compile(r"""([\w.-]+)(["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,{}\[\]]+)""")
"""A name and its value, as YAML has them in a line."""


def keys_with_secrets(config: Config) -> list[str]:
    """The dotted keys whose values hold a secret: a URL with a password or a signature in it, a
    text whose key names one (`parameters.api_key`), and tokens of AWS, Hugging Face, GitHub and
    their like."""
    values = flatten(config.model_dump())
    return [key for key, value in values.items() if _is_secret(key, value)]


def refuse_shown_secrets(config: Config) -> None:
    """Raise `UserError` for secrets that the run's files and MLflow would show. Those in URLs are
    hidden there."""
    if keys := keys_with_secrets(redacted(config)):
        raise UserError(
            f"{', '.join(keys)}: a secret stands in it, which the run's files and MLflow would "
            "show; set it in the environment of the workers, and read it from there"
        )


def without_secrets(word: str) -> str:
    """A word of a command with `***` in place of values whose names say that they are secret, those
    in a mapping on one line included, and in place of tokens. For URLs there is `redact`."""
    key, equals, _ = word.partition("=")
    if equals and _names_secret(key):
        return f"{key}={HIDDEN}"
    return _TOKEN.sub(HIDDEN, _NAMED.sub(_without_value, word))


def _without_value(named: re.Match[str]) -> str:
    return f"{named[1]}{named[2]}{HIDDEN}" if _names_secret(named[1]) else named[0]


def _names_secret(key: str) -> bool:
    return names_secret(key.rpartition(".")[2])


def _is_secret(key: str, value: object) -> bool:
    if redacted(value) != value:
        return True
    if not isinstance(value, str) or not value:
        return False
    return _names_secret(key) or _TOKEN.search(value) is not None
