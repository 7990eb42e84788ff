"""YAML that a person reads before it is applied: keys in their order, long texts as they are, and
comments; and names as other systems take them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a reader would have to look up `*id001`


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def commented_yaml(
    documents: Sequence[Mapping[str, Any]], head: str, comments: Mapping[str, str]
) -> str:
    """The documents with `head` above them, and above the first line of each key that `comments`
    names what it says of that key; lines of a comment are kept."""
    texts = [
        yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
        for document in documents
    ]
    lines = "---\n".join(texts).splitlines()
    for key, comment in comments.items():
        lines = _with_comment(lines, key, comment)
    return "\n".join([*_as_comment(head), *lines, ""])


def dns_name(name: str) -> str:
    """The name in lower-case letters, digits and hyphens, from a letter on."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return plain if plain[:1].isalpha() else f"run-{plain}".strip("-")


def _with_comment(lines: list[str], key: str, comment: str) -> list[str]:
    for number, line in enumerate(lines):
        if found := re.match(rf"( *(?:- )?){re.escape(key)}:(?: |$)", line):
            indent = " " * len(found[1].replace("- ", ""))
            return lines[:number] + _as_comment(comment, indent) + lines[number:]
    return lines


def _as_comment(text: str, indent: str = "") -> list[str]:
    return [f"{indent}# {line}".rstrip() for line in text.splitlines()]
