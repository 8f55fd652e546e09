"""Interpreter of pickles that imports and calls nothing named in them.

A pickle is a program. It is interpreted here step by step: names listed by the caller are mapped to
constructors of the caller, and every other object becomes an :class:`Unknown`. So the tensors of a
checkpoint can be read even if it contains arguments, optimizers or hooks of any library.

Python's ``pickletools`` documents the opcodes and parses them.
"""

from __future__ import annotations

import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

MAX_STEPS = 2_000_000
"""Maximum number of opcodes; a checkpoint has about forty per tensor."""
_MAX_KEY = 2**64

Name: TypeAlias = tuple[str, str]
"""Module and name."""
Names: TypeAlias = Mapping[Name, Any]
"""Replacement of each name: a :class:`Constructor` or a value."""


@dataclass(frozen=True, slots=True, eq=False)
class Unknown:
    """Placeholder for an object of a class that isn't needed; its content is discarded.

    Attributes:
        name: module and name of the class, for messages.
    """

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Constructor:
    """A function that creates an object from the arguments in the pickle."""

    make: Callable[..., Any]


class Built(ABC):
    """An object whose state is set after its creation."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Set the state; raises TypeError or ValueError if it is invalid."""


def read_pickle(file: BinaryIO, names: Names, persistent: Callable[[Any], Any] = Unknown) -> Any:
    """Return the object described by a pickle: dicts, lists, tuples, strings and numbers.

    Args:
        file: read from its position to the end of the pickle.
        names: replacement of each name in the pickle.
        persistent: returns the object of a persistent id.

    Raises:
        ValueError, TypeError, IndexError, KeyError: the pickle is damaged or longer than
            ``MAX_STEPS``.
    """
    machine = _Machine(names, persistent)
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if steps > MAX_STEPS:
            raise ValueError("a pickle of too many steps")
        machine.step(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    """Stack, marks and memo of a pickle."""

    def __init__(self, names: Names, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._names = names
        self._persistent = persistent

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _ARGUMENTS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _TUPLES:
            self.collect(tuple, _TUPLES[opcode])
        elif opcode in _WITH_ARGUMENT:
            _WITH_ARGUMENT[opcode](self, argument)
        elif opcode in _PLAIN:
            _PLAIN[opcode](self)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"{opcode} isn't possible in a file")

    def pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def drop_to_mark(self) -> None:
        self.pop_to_mark()

    def set_mark(self) -> None:
        self._marks.append(len(self.stack))

    def pop(self) -> None:
        if self._marks and self._marks[-1] == len(self.stack):
            self._marks.pop()
        else:
            self.stack.pop()

    def duplicate(self) -> None:
        self.stack.append(self.stack[-1])

    def collect(self, make: Callable[[list[Any]], Any], count: int) -> None:
        values = [self.stack.pop() for _ in range(count)]
        self.stack.append(make(values[::-1]))

    def make_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def make_list(self) -> None:
        self.stack.append(self.pop_to_mark())

    def make_dict(self) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_pairs(items)

    def append(self) -> None:
        self.extend_list([self.stack.pop()])

    def extend(self) -> None:
        self.extend_list(self.pop_to_mark())

    def extend_list(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Unknown):
            raise TypeError("only lists take values")

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_pairs([key, value])

    def set_items(self) -> None:
        self.set_pairs(self.pop_to_mark())

    def set_pairs(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif not isinstance(target, Unknown):
            raise TypeError("only dicts take items")

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def put(self, number: int) -> None:
        self._memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self._memo[number])

    def push_name(self, name: str) -> None:
        self.look_up(*name.split(" ", 1))

    def pop_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a name that isn't text")
        self.look_up(module, name)

    def look_up(self, module: str, name: str) -> None:
        known = self._names.get((module, name))
        self.stack.append(Unknown(f"{module}.{name}") if known is None else known)

    def construct(self, constructor: Any, arguments: Any) -> None:
        if isinstance(constructor, Constructor):
            self.stack.append(constructor.make(*arguments))
        elif isinstance(constructor, Unknown):
            self.stack.append(constructor)
        else:
            raise TypeError("only what has a name can be made")

    def reduce(self) -> None:
        arguments, constructor = self.stack.pop(), self.stack.pop()
        self.construct(constructor, arguments)

    def reduce_with_keywords(self) -> None:
        self.stack.pop()  # no listed constructor takes keywords
        self.reduce()

    def make_object(self) -> None:
        constructor, *arguments = self.pop_to_mark()
        self.construct(constructor, arguments)

    def make_instance(self, name: str) -> None:
        arguments = self.pop_to_mark()
        self.push_name(name)
        self.construct(self.stack.pop(), arguments)

    def build_last(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Built):
            self.stack[-1].build(state)

    def load_persistent_text(self, text: str) -> None:
        self.stack.append(self._persistent(text))

    def load_persistent(self) -> None:
        self.stack.append(self._persistent(self.stack.pop()))


def _key(key: Any) -> Any:
    """Return the key, or a placeholder if hashing it could take very long (nested tuples, ints)."""
    if isinstance(key, str | bytes | float | None) or (
        isinstance(key, int) and -_MAX_KEY < key < _MAX_KEY
    ):
        return key
    return Unknown(type(key).__name__)


def _dict_of(pairs: Any = (), *_rest: Any) -> dict[Any, Any]:
    return {
        _key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)
    }


DICTS: Names = {
    ("collections", "OrderedDict"): Constructor(_dict_of),
    ("collections", "defaultdict"): Constructor(lambda *_factory: {}),
}
"""Names of mappings, which become dicts."""

_ARGUMENTS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    )
)
"""Opcodes whose argument is the value."""
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # sets are not needed, and may be slow to hash
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_WITH_ARGUMENT: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.push_name,
    "INST": _Machine.make_instance,
    "PERSID": _Machine.load_persistent_text,
}
_PLAIN: Mapping[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.set_mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": _Machine.duplicate,
    "TUPLE": _Machine.make_tuple,
    "LIST": _Machine.make_list,
    "FROZENSET": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "ADDITEMS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "MEMOIZE": _Machine.memoize,
    "STACK_GLOBAL": _Machine.pop_name,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.reduce_with_keywords,
    "OBJ": _Machine.make_object,
    "BUILD": _Machine.build_last,
    "BINPERSID": _Machine.load_persistent,
}
