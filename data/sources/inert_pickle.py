"""Pickles of bytes, numbers, lists and plain arrays, read by an interpreter of their own.

Python's unpickler calls what a file names, with the arguments that the file holds. To allow only
numpy's constructors is not enough: they take flags and pointers on trust and corrupt the memory of
the process. Here a file names functions of this module alone, which make bytes of bytes.
"""

import codecs
import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from manyfaces.data.sources.inert_arrays import Array, DType, NotInertError


def load(data: bytes) -> object:
    """Read a pickle of protocol 0 to 5, of Python 2 or 3, of None, booleans, numbers, texts,
    bytes (Python 2's texts too), lists, tuples, dicts and `Array`s. Raises `NotInertError`."""
    try:
        return _Machine(data).run()
    except NotInertError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise NotInertError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class _Function:
    """What a name in a file stands for; `call` gets the machine and the arguments."""

    call: Callable[["_Machine", tuple[Any, ...]], object]


class _Machine:
    """The stack and the memo of one file."""

    def __init__(self, data: bytes) -> None:
        self.file: BinaryIO = io.BytesIO(data)
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """The stacks under each mark."""
        self.memo: dict[int, object] = {}
        # A file may name one long text over and over; honest ones encode each text once.
        self.may_encode = len(data)

    def run(self) -> object:
        """Go through the opcodes up to the end."""
        while True:
            code = self.file.read(1)
            known = _KNOWN.get(code.decode("latin-1"))
            if known is None or (run := _OPCODES.get(known.name)) is None:
                raise NotInertError(f"opcode {known.name if known else code!r} has no place in it")
            if known.name == "STOP":
                return self.pop()
            argument = None
            if known.name == "STRING":  # the reader of `pickletools` takes ASCII only
                argument = _string(self.file.readline())
            elif known.arg is not None:
                argument = known.arg.reader(self.file)
            run(self, argument)

    def pop(self) -> Any:
        """Take what lies on top."""
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Take all that lies above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        """Begin a stack on top of this one."""
        self.below.append(self.stack)
        self.stack = []

    def extend(self, items: list[Any]) -> None:
        """Add to the list on top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise NotInertError("appends to what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values, in turn, to the dict on top of the stack."""
        target = self.stack[-1]
        keys = items[0::2]
        if not isinstance(target, dict) or not all(isinstance(key, str | bytes) for key in keys):
            raise NotInertError("sets an item of what is no dict of texts")
        target.update(zip(keys, items[1::2], strict=True))

    def push_function(self, module: object, name: object) -> None:
        """Push what a name stands for."""
        key = f"{_text(module)}.{_text(name)}"
        if key not in _FUNCTIONS:
            raise NotInertError(f"it asks for {key[:80]}, which a verification set never needs")
        self.stack.append(_FUNCTIONS[key])

    def reduce(self) -> None:
        """Call the function under the arguments that lie on top."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise NotInertError("calls what is no function")
        self.stack.append(function.call(self, arguments))

    def build(self) -> None:
        """Give the array or dtype under it the state that lies on top."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, DType):
            target.take_state(_tuple_of(8, state))
        elif isinstance(target, Array):
            _, shape, dtype, by_column, body = _tuple_of(5, state)
            made = Array.of(body, dtype, shape)
            if by_column is not False and made.encoded() is None:
                raise NotInertError("an array that does not lie row by row")
            target.dtype, target.body, target.shape = made.dtype, made.body, made.shape
        else:
            raise NotInertError("gives a state to what has none")


def _string(line: bytes) -> bytes:
    """The text of a line of Python 2's `repr`."""
    line = line.rstrip(b"\n")
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise NotInertError("a text without quotes")
    return codecs.escape_decode(line[1:-1])[0]


def _text(word: object) -> str:
    if isinstance(word, bytes):
        return word.decode("ascii")
    if not isinstance(word, str):
        raise NotInertError("a name that is no text")
    return word


def _tuple_of(length: int, value: object) -> tuple[Any, ...]:
    if not isinstance(value, tuple) or len(value) != length:
        raise NotInertError("arguments of another number")
    return value


def _encode(machine: _Machine, arguments: tuple[Any, ...]) -> bytes:
    text, encoding = _tuple_of(2, arguments)
    if not isinstance(text, str) or _text(encoding) not in ("latin1", "latin-1"):
        raise NotInertError("encodes in another way than bytes are")
    machine.may_encode -= len(text)
    if machine.may_encode < 0:
        raise NotInertError("makes more bytes than it holds")
    return text.encode("latin-1")


def _no_bytes(_: _Machine, arguments: tuple[Any, ...]) -> bytes:
    _tuple_of(0, arguments)
    return b""


def _bytearray(machine: _Machine, arguments: tuple[Any, ...]) -> object:
    """Make a bytearray of bytes or, in Python 2's protocols, of a text and its encoding. It is
    given as bytes, since nothing changes it."""
    if len(arguments) == 1 and isinstance(arguments[0], bytes):
        return arguments[0]
    return _encode(machine, arguments) if arguments else b""


def _dtype(_: _Machine, arguments: tuple[Any, ...]) -> DType:
    if not arguments:
        raise NotInertError("a dtype without a name")
    return DType(_text(arguments[0]))


def _empty_array(_: _Machine, arguments: tuple[Any, ...]) -> Array:
    if not arguments or arguments[0] is not _FUNCTIONS["numpy.ndarray"]:
        raise NotInertError("an array of another class")
    return Array()


def _from_buffer(_: _Machine, arguments: tuple[Any, ...]) -> Array:
    body, dtype, shape, order = _tuple_of(4, arguments)
    made = Array.of(body, dtype, shape)
    if _text(order) != "C" and made.encoded() is None:
        raise NotInertError("an array that does not lie row by row")
    return made


def _scalar(_: _Machine, arguments: tuple[Any, ...]) -> Array:
    dtype, body = _tuple_of(2, arguments)
    return Array.of(body, dtype, ())


def _refused(_: _Machine, arguments: tuple[Any, ...]) -> object:
    raise NotInertError("makes an array in another way than numpy writes it")


# numpy moved its modules in 2.0.
_FUNCTIONS: Mapping[str, _Function] = {
    "_codecs.encode": _Function(_encode),
    "__builtin__.bytes": _Function(_no_bytes),
    "builtins.bytes": _Function(_no_bytes),
    "__builtin__.bytearray": _Function(_bytearray),
    "builtins.bytearray": _Function(_bytearray),
    "numpy.dtype": _Function(_dtype),
    "numpy.ndarray": _Function(_refused),
    **{
        f"numpy.{core}.{name}": _Function(call)
        for core in ("core", "_core")
        for name, call in (
            ("multiarray._reconstruct", _empty_array),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _from_buffer),
        )
    },
}


_KNOWN = {opcode.code: opcode for opcode in pickletools.opcodes}


def _push(machine: _Machine, argument: object) -> None:
    machine.stack.append(argument)


def _push_python_2_text(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument if isinstance(argument, bytes) else argument.encode("latin-1"))


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[argument] = machine.stack[-1]


def _get(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.memo[argument])


def _tuple_of_last(count: int) -> Callable[[_Machine, Any], None]:
    def run(machine: _Machine, _: object) -> None:
        if len(machine.stack) < count:
            raise NotInertError("a tuple of more than there is")
        items = tuple(machine.stack[len(machine.stack) - count :])
        del machine.stack[len(machine.stack) - count :]
        machine.stack.append(items)

    return run


def _global(machine: _Machine, argument: Any) -> None:
    machine.push_function(*argument.split(" ", 1))


def _stack_global(machine: _Machine, _: object) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_function(module, name)


_OPCODES: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, a: None),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"), _push),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _push_python_2_text),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "NONE": lambda m, a: _push(m, None),
    "NEWTRUE": lambda m, a: _push(m, True),
    "NEWFALSE": lambda m, a: _push(m, False),
    "MEMOIZE": lambda m, a: _put(m, len(m.memo)),
    "MARK": lambda m, a: m.mark(),
    "EMPTY_LIST": lambda m, a: _push(m, []),
    "LIST": lambda m, a: _push(m, m.pop_mark()),
    "APPEND": lambda m, a: m.extend([m.pop()]),
    "APPENDS": lambda m, a: m.extend(m.pop_mark()),
    "EMPTY_DICT": lambda m, a: _push(m, {}),
    "SETITEM": lambda m, a: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, a: m.set_items(m.pop_mark()),
    "TUPLE": lambda m, a: _push(m, tuple(m.pop_mark())),
    **{
        name: _tuple_of_last(n)
        for n, name in enumerate(("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
    },
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda m, a: m.reduce(),
    "BUILD": lambda m, a: m.build(),
}
