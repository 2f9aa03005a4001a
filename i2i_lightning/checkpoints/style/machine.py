"""The machine that a pickle is a program for, without any way to call something of the file's choice.

It knows the opcodes that Python 3 writes, and of names only those in a table, each of which stands for a
function of this project that makes plain containers, numbers, or views of the file's own bytes. Every other
name is refused where it is named.

No length is believed: texts and arrays are stretches of the file, so that what is read is never larger than
the file, and the number of operations, open containers and digits is bounded. Keys are texts and whole
numbers, because the hash of a tuple that holds another one twice, and so on, takes for ever.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from i2i_lightning.checkpoints.style.values import (
    Array,
    Buffer,
    Instance,
    Kind,
    Refused,
    array_of,
    order_of,
    shown,
)

MAX_OPERATIONS = 1_000_000
"""Of a file's program; the largest known, a training checkpoint, has a tenth of it."""
MAX_DEPTH = 200
"""Containers that are open at a time."""
MAX_NUMBER_BYTES = 16
"""Of a whole number."""
MAX_NAME_BYTES = 256


@dataclass
class Budget:
    """What is left to spend on one file.

    Args:
        copied_bytes: Bytes that may be made of texts.
        operations: Opcodes.
    """

    copied_bytes: int
    operations: int = MAX_OPERATIONS


@dataclass(frozen=True)
class Name:
    """What a file may name.

    Args:
        path: The name.
        call: What is done where the file calls it, with the machine and the arguments.
        make: What is made where the file wants a new object of it.
        kind: For the types of torch's storages, the numpy dtype.
    """

    path: str
    call: Callable[[Machine, tuple[Any, ...]], Any] | None = None
    make: Callable[[], Any] | None = None
    kind: str | None = None


Names = Mapping[tuple[str, str], Name]

_TEXTS = {pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8}
_BYTES = {pickle.SHORT_BINBYTES: 1, pickle.BINBYTES: 4, pickle.BINBYTES8: 8, pickle.BYTEARRAY8: 8}
_NUMBERS = {pickle.BININT1: 1, pickle.BININT2: 2, pickle.BININT: 4}
_LONGS = {pickle.LONG1: 1, pickle.LONG4: 4}
_PUTS = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4}
_GETS = {pickle.BINGET: 1, pickle.LONG_BINGET: 4}
_TUPLES = {pickle.EMPTY_TUPLE: 0, pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
# A set is read as a list: nothing here needs to look something up in one.
_CONTAINERS: dict[bytes, Callable[[], Any]] = {
    pickle.EMPTY_LIST: list,
    pickle.EMPTY_DICT: dict,
    pickle.EMPTY_SET: list,
}


class Machine:
    """Goes through one pickle.

    Args:
        data: The bytes; others may follow behind the pickle.
        position: Where it begins.
        names: What it may name.
        budget: What it may spend, shared by all pickles of a file.
        persistent: What stands for a persistent id; None where there must be none.
    """

    def __init__(
        self,
        data: Buffer,
        position: int,
        names: Names,
        budget: Budget,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data = data
        self.position = position
        self.names = names
        self.budget = budget
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return what the pickle describes; ``position`` is then behind it.

        Raises:
            Refused: If it is damaged, too large, or asks for anything that is not in ``names``.
        """
        if self.take(1).tobytes() != pickle.PROTO:
            raise Refused("it is no pickle of protocol 2 or later")
        if not 2 <= (protocol := self.take(1)[0]) <= 5:
            raise Refused(f"its pickle protocol is {protocol}; 2 to 5 are known")
        while True:
            self.budget.operations -= 1
            if self.budget.operations < 0:
                raise Refused(f"it takes more than {MAX_OPERATIONS} operations")
            code = self.take(1).tobytes()
            if code == pickle.STOP:
                return self.pop()
            self.execute(code)

    def take(self, count: int) -> Buffer:
        """Return the next bytes without a copy."""
        end = self.position + count
        if end > len(self.data):
            raise Refused(f"it ends early, or names a length of {count} bytes that it does not have")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, width: int) -> int:
        """Return the next ``width`` bytes as a number without sign."""
        return int.from_bytes(self.take(width), "little")

    def text(self, count: int) -> str:
        """Return the next bytes as a text."""
        try:
            return str(self.take(count), "utf-8")
        except UnicodeDecodeError:
            raise Refused("it has a text that is not UTF-8") from None

    def line(self) -> str:
        """Return the next bytes up to the end of the line."""
        ahead = self.data[self.position : self.position + MAX_NAME_BYTES].tobytes()
        if (length := ahead.find(b"\n")) < 0:
            raise Refused("it has a name without an end")
        line = self.text(length)
        self.position += 1
        return line

    def pop(self) -> Any:
        """Take the last value off the stack."""
        if not self.stack:
            raise Refused("it is damaged: it takes a value where there is none")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Take all values behind the last mark off the stack."""
        if not self.below:
            raise Refused("it is damaged: it ends a container that it did not begin")
        items, self.stack = self.stack, self.below.pop()
        return items

    def execute(self, code: bytes) -> None:
        """Do what one opcode says."""
        push = self.stack.append
        if code in _TEXTS:
            push(self.text(self.number(_TEXTS[code])))
        elif code in _BYTES:
            push(self.take(self.number(_BYTES[code])))
        elif code in _NUMBERS:
            push(int.from_bytes(self.take(_NUMBERS[code]), "little", signed=code == pickle.BININT))
        elif code in _LONGS:
            if (count := self.number(_LONGS[code])) > MAX_NUMBER_BYTES:
                raise Refused(f"it has a whole number of {count} bytes")
            push(int.from_bytes(self.take(count), "little", signed=True))
        elif code == pickle.BINFLOAT:
            push(struct.unpack(">d", self.take(8))[0])
        elif code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code in _CONTAINERS:
            push(_CONTAINERS[code]())
        elif code in _TUPLES:
            count = _TUPLES[code]
            items = [self.pop() for _ in range(count)]
            self.stack.append(tuple(reversed(items)))
        elif code in _PUTS or code == pickle.MEMOIZE:
            index = len(self.memo) if code == pickle.MEMOIZE else self.number(_PUTS[code])
            self.memo[index] = self.top()
        elif code in _GETS:
            index = self.number(_GETS[code])
            if index not in self.memo:
                raise Refused("it is damaged: it refers to a value that it did not have")
            push(self.memo[index])
        elif code == pickle.FRAME:
            if self.number(8) > len(self.data) - self.position:
                raise Refused("it ends early, or names a length that it does not have")
        else:
            self.execute_rare(code)

    def execute_rare(self, code: bytes) -> None:
        """Do what one of the opcodes on containers, names and objects says."""
        if code == pickle.MARK:
            if len(self.below) >= MAX_DEPTH:
                raise Refused(f"it has more than {MAX_DEPTH} containers inside each other")
            self.below.append(self.stack)
            self.stack = []
        elif code == pickle.POP:
            if self.stack:
                self.stack.pop()
            else:
                self.pop_mark()
        elif code == pickle.POP_MARK:
            self.pop_mark()
        elif code == pickle.TUPLE:
            self.stack_after_mark(tuple)
        elif code == pickle.LIST:
            self.stack_after_mark(list)
        elif code == pickle.DICT:
            items = self.pop_mark()
            made: dict[Any, Any] = {}
            self.stack.append(made)
            set_items(made, items)
        elif code in (pickle.APPENDS, pickle.ADDITEMS, pickle.APPEND):
            items = [self.pop()] if code == pickle.APPEND else self.pop_mark()
            if type(self.top()) is not list:
                raise Refused("it is damaged: it appends to what is no list")
            self.top().extend(items)
        elif code in (pickle.SETITEMS, pickle.SETITEM):
            items = [self.pop(), self.pop()][::-1] if code == pickle.SETITEM else self.pop_mark()
            set_items(self.top(), items)
        elif code == pickle.GLOBAL:
            module = self.line()
            self.stack.append(self.find(module, self.line()))
        elif code == pickle.STACK_GLOBAL:
            name, module = self.pop(), self.pop()
            self.stack.append(self.find(module, name))
        elif code == pickle.REDUCE:
            arguments, function = self.pop(), self.pop()
            self.stack.append(self.call(function, arguments))
        elif code == pickle.NEWOBJ:
            arguments, cls = self.pop(), self.pop()
            if not isinstance(cls, Name) or cls.make is None or arguments != ():
                raise Refused(f"it makes a new {named(cls)} in a way that is not known")
            self.stack.append(cls.make())
        elif code == pickle.BUILD:
            state = self.pop()
            build(self.top(), state)
        elif code == pickle.BINPERSID:
            identity = self.pop()
            if self.persistent is None:
                raise Refused("it refers to something outside of itself (a persistent id)")
            self.stack.append(self.persistent(identity))
        else:
            raise Refused(f"it has the opcode {code!r}, which no file of these projects has")

    def stack_after_mark(self, make: Callable[[list[Any]], Any]) -> None:
        """Put what ``make`` makes of all values behind the last mark in their place."""
        items = self.pop_mark()
        self.stack.append(make(items))

    def top(self) -> Any:
        """Return the last value, which stays."""
        if not self.stack:
            raise Refused("it is damaged: it takes a value where there is none")
        return self.stack[-1]

    def find(self, module: object, name: object) -> Name:
        """Return what a name stands for."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("it is damaged: it has a name that is no text")
        if (module, name) not in self.names:
            raise Refused(f"it names {shown(module)}.{shown(name)}; nothing of it was run")
        return self.names[module, name]

    def call(self, function: object, arguments: object) -> Any:
        """Return what stands for the result of a call."""
        if not isinstance(function, Name) or function.call is None:
            raise Refused(f"it calls {named(function)}; nothing of it was run")
        if not isinstance(arguments, tuple):
            raise Refused(f"it calls {function.path} with {shown(arguments)} for arguments")
        try:
            return function.call(self, arguments)
        except (ValueError, TypeError, IndexError, OverflowError):
            raise Refused(f"it calls {function.path} with arguments that this does not have") from None


def named(value: object) -> str:
    """Return what a file names, or what else it has in the place of a name, for a message."""
    return value.path if isinstance(value, Name) else shown(value)


def set_items(target: object, items: list[Any]) -> None:
    """Set keys and values, which come in turn."""
    if type(target) is not dict or len(items) % 2:
        raise Refused("it is damaged: it sets keys of what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int):
            raise Refused("it has a key that is neither a text nor a whole number")
        target[key] = value


def build(target: object, state: object) -> None:
    """Give an object its state."""
    if isinstance(target, Instance) and target.state is None and type(state) is dict:
        # What it may hold of source code is not needed and not kept.
        target.state = {key: value for key, value in state.items() if key != "build_module_src"}
    elif isinstance(target, Array):
        target.fill(array_of(state))
    elif isinstance(target, Kind):
        target.order = order_of(state)
    elif type(target) is dict and (state is None or type(state) is dict):
        pass  # attributes of a dict, such as the versions in a state_dict
    else:
        raise Refused(f"it gives {shown(target)} a state")
