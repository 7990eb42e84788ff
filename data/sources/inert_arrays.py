"""numpy's arrays and scalars in a pickle, held as the bytes that the file has for them. numpy gets
them only where they are numbers, by a dtype of this module's own list."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
_TEXTS = re.compile(r"([SVU])([1-9][0-9]{0,8})")
_OBJECTS = "O8"


class NotInertError(ValueError):
    """Raised for a pickle that is malformed, or holds or asks for anything else."""


@dataclass
class DType:
    """A dtype of numbers, of texts or bytes of one length, or of objects."""

    name: str
    """As numpy has it, without the byte order: `u1`, `f4`, `S12`, `O8`."""
    order: str = "|"

    def __post_init__(self) -> None:
        if not (_NUMBERS.fullmatch(self.name) or _TEXTS.fullmatch(self.name)) and (
            self.name != _OBJECTS
        ):
            raise NotInertError(f"an array of {self.name[:20]}")

    @property
    def size(self) -> int:
        """Bytes of an element."""
        kind, count = self.name[0], int(self.name[1:])
        return 4 * count if kind == "U" else count

    def take_state(self, state: tuple[Any, ...]) -> None:
        """Take over the byte order. Raises `NotInertError` for fields, a shape, metadata and for
        sizes and flags that are not those of the name."""
        version, order, *rest = state
        alignment_and_flags: Sequence[tuple[int, int, int]] = [(-1, -1, 0)]
        if self.name == _OBJECTS:
            alignment_and_flags = [(-1, -1, 63)]
        elif self.name[0] in "SV":
            alignment_and_flags = [(self.size, 1, 0), (self.size, 1, 16)]
        elif self.name[0] == "U":
            alignment_and_flags = [(self.size, 4, 8)]
        order = order.decode("ascii") if isinstance(order, bytes) else order
        empty = all(value is None for value in rest[:3])
        numbers = all(type(value) is int for value in rest[3:])
        if (
            version != 3
            or order not in ("|", "<", ">")
            or not (empty and numbers)
            or tuple(rest[3:]) not in alignment_and_flags
        ):
            raise NotInertError("a dtype with fields or flags of its own")
        self.order = order


@dataclass
class Array:
    """A numpy array or scalar."""

    dtype: DType | None = None
    body: bytes | bytearray | list[Any] = b""
    """The elements one after the other, row by row; a list where they are objects."""
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, body: object, dtype: object, shape: object) -> "Array":
        """An array of this content. Raises `NotInertError` where it does not fit its shape."""
        if not isinstance(dtype, DType) or not isinstance(shape, tuple):
            raise NotInertError("an array without a dtype or a shape")
        if len(shape) > 32 or not all(type(length) is int and length >= 0 for length in shape):
            raise NotInertError("an array with a shape that is none")
        expected = math.prod(shape)
        if dtype.name == _OBJECTS:
            if not isinstance(body, list):
                raise NotInertError("an array of objects whose content is no list")
        elif not isinstance(body, bytes | bytearray):
            raise NotInertError("an array's content is no bytes")
        else:
            expected *= dtype.size
        if expected != len(body):
            raise NotInertError("an array whose content does not fit its shape")
        return cls(dtype, body, shape)

    def values(self) -> list[Any]:
        """The elements: numbers, texts, bytes without the zeros at their end, or objects."""
        assert self.dtype is not None
        if isinstance(self.body, list):
            return self.body
        if _NUMBERS.fullmatch(self.dtype.name):
            numbers: list[Any] = np.frombuffer(
                self.body, self.dtype.order + self.dtype.name
            ).tolist()
            return numbers
        size = self.dtype.size
        parts = [bytes(self.body[at : at + size]) for at in range(0, len(self.body), size)]
        if self.dtype.name[0] == "U":
            encoding = "utf-32-be" if self.dtype.order == ">" else "utf-32-le"
            return [part.decode(encoding).rstrip("\0") for part in parts]
        return parts if self.dtype.name[0] == "V" else [part.rstrip(b"\0") for part in parts]

    def encoded(self) -> bytes | bytearray | None:
        """The bytes of an encoded image, where the array is one: a row or a column of bytes. None
        where it is none."""
        if self.dtype is None or isinstance(self.body, list):
            return None
        long = [length for length in self.shape if length != 1]
        if self.dtype.name == "u1" and len(long) <= 1:
            return self.body
        return self.body if self.dtype.name[0] in "SV" and not long else None
