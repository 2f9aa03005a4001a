"""The machine that a pickle is a program for, without any way to call something of the file's choice.

It knows the opcodes that Python 3 writes, and of names only those in a table, each of which stands for a
function of this project that makes plain containers, numbers, or views of the file's own bytes. Every other
name is refused where it is named.

No length is believed: texts and arrays are stretches of the file, so that what is read is never larger than
the file, and the number of operations, open containers and digits is bounded. Keys are texts and whole
numbers, because the hash of a tuple that holds another one twice, and so on, takes for ever; the numbers are
small enough for no two to have one hash, but -1 and -2.
"""

from __future__ import annotations

import pickle
import struct
import sys
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

MAX_OPERATIONS = 400_000
"""Of a file's program; those of 1024 px with a discriminator have a sixth of it."""
MAX_DEPTH = 200
"""Containers that are open at a time."""
MAX_NUMBER_BYTES = 16
"""Of a whole number."""
MAX_KEY = sys.hash_info.modulus - 1
"""Of a whole number that is a key, either way: Python's hash of one is the number itself up to there."""
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
Operation = Callable[["Machine"], None]


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
        data, budget, size = self.data, self.budget, len(self.data)
        while self.position < size:
            code = data[self.position]
            self.position += 1
            budget.operations -= 1
            if budget.operations < 0:
                raise Refused(f"it takes more than {MAX_OPERATIONS} operations")
            if code == _STOP:
                return self.pop()
            if code not in _OPERATIONS:
                raise Refused(f"it has the opcode {bytes([code])!r}, which no file of these projects has")
            _OPERATIONS[code](self)
        raise Refused("it ends early: its last operation is missing")

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
        if type(key) is int and abs(key) > MAX_KEY:
            raise Refused(f"it has a key beyond {MAX_KEY}")
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


# -------------------- the opcodes


def _text(width: int) -> Operation:
    """Push a text that comes behind its length of ``width`` bytes."""
    return lambda machine: machine.stack.append(machine.text(machine.number(width)))


def _bytes(width: int) -> Operation:
    """Push bytes that come behind their length."""
    return lambda machine: machine.stack.append(machine.take(machine.number(width)))


def _number(width: int, signed: bool) -> Operation:
    """Push a whole number of ``width`` bytes."""
    return lambda machine: machine.stack.append(int.from_bytes(machine.take(width), "little", signed=signed))


def _long(width: int) -> Operation:
    """Push a whole number that comes behind its length."""

    def push(machine: Machine) -> None:
        count = machine.number(width)
        if count > MAX_NUMBER_BYTES:
            raise Refused(f"it has a whole number of {count} bytes")
        machine.stack.append(int.from_bytes(machine.take(count), "little", signed=True))

    return push


def _float(machine: Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


def _constant(value: object) -> Operation:
    return lambda machine: machine.stack.append(value)


def _container(make: Callable[[], Any]) -> Operation:
    """Push a new container."""
    return lambda machine: machine.stack.append(make())


def _small_tuple(count: int) -> Operation:
    """Put a tuple in the place of the last ``count`` values."""

    def make(machine: Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return make


def _marked(make: Callable[[list[Any]], Any]) -> Operation:
    """Put a container in the place of all values behind the last mark."""

    def replace(machine: Machine) -> None:
        items = machine.pop_mark()
        machine.stack.append(make(items))

    return replace


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    set_items(made, items)
    return made


def _put(width: int) -> Operation:
    """Remember the last value under a number."""

    def remember(machine: Machine) -> None:
        machine.memo[machine.number(width)] = machine.top()

    return remember


def _memoize(machine: Machine) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _get(width: int) -> Operation:
    """Push a value that was remembered."""

    def recall(machine: Machine) -> None:
        index = machine.number(width)
        if index not in machine.memo:
            raise Refused("it is damaged: it refers to a value that it did not have")
        machine.stack.append(machine.memo[index])

    return recall


def _frame(machine: Machine) -> None:
    if machine.number(8) > len(machine.data) - machine.position:
        raise Refused("it ends early, or names a length that it does not have")


def _mark(machine: Machine) -> None:
    if len(machine.below) >= MAX_DEPTH:
        raise Refused(f"it has more than {MAX_DEPTH} containers inside each other")
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def _extend(machine: Machine, items: list[Any]) -> None:
    target = machine.top()
    if type(target) is not list:
        raise Refused("it is damaged: it appends to what is no list")
    target.extend(items)


def _append(machine: Machine) -> None:
    _extend(machine, [machine.pop()])


def _appends(machine: Machine) -> None:
    _extend(machine, machine.pop_mark())


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    set_items(machine.top(), [key, value])


def _set_items(machine: Machine) -> None:
    items = machine.pop_mark()
    set_items(machine.top(), items)


def _global(machine: Machine) -> None:
    module = machine.line()
    machine.stack.append(machine.find(module, machine.line()))


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(machine.find(module, name))


def _reduce(machine: Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.stack.append(machine.call(function, arguments))


def _new_object(machine: Machine) -> None:
    arguments, cls = machine.pop(), machine.pop()
    if not isinstance(cls, Name) or cls.make is None or arguments != ():
        raise Refused(f"it makes a new {named(cls)} in a way that is not known")
    machine.stack.append(cls.make())


def _build(machine: Machine) -> None:
    state = machine.pop()
    build(machine.top(), state)


def _persistent_id(machine: Machine) -> None:
    identity = machine.pop()
    if machine.persistent is None:
        raise Refused("it refers to something outside of itself (a persistent id)")
    machine.stack.append(machine.persistent(identity))


_STOP = pickle.STOP[0]
_OPERATIONS: Mapping[int, Operation] = {
    code[0]: operation
    for code, operation in {
        pickle.SHORT_BINUNICODE: _text(1),
        pickle.BINUNICODE: _text(4),
        pickle.BINUNICODE8: _text(8),
        pickle.SHORT_BINBYTES: _bytes(1),
        pickle.BINBYTES: _bytes(4),
        pickle.BINBYTES8: _bytes(8),
        pickle.BYTEARRAY8: _bytes(8),
        pickle.BININT1: _number(1, signed=False),
        pickle.BININT2: _number(2, signed=False),
        pickle.BININT: _number(4, signed=True),
        pickle.LONG1: _long(1),
        pickle.LONG4: _long(4),
        pickle.BINFLOAT: _float,
        pickle.NONE: _constant(None),
        pickle.NEWTRUE: _constant(True),
        pickle.NEWFALSE: _constant(False),
        pickle.EMPTY_LIST: _container(list),
        pickle.EMPTY_DICT: _container(dict),
        # A set is read as a list: nothing here needs to look something up in one.
        pickle.EMPTY_SET: _container(list),
        pickle.EMPTY_TUPLE: _small_tuple(0),
        pickle.TUPLE1: _small_tuple(1),
        pickle.TUPLE2: _small_tuple(2),
        pickle.TUPLE3: _small_tuple(3),
        pickle.TUPLE: _marked(tuple),
        pickle.LIST: _marked(list),
        pickle.DICT: _marked(_dict_of),
        pickle.BINPUT: _put(1),
        pickle.LONG_BINPUT: _put(4),
        pickle.MEMOIZE: _memoize,
        pickle.BINGET: _get(1),
        pickle.LONG_BINGET: _get(4),
        pickle.FRAME: _frame,
        pickle.MARK: _mark,
        pickle.POP: _pop,
        pickle.POP_MARK: _pop_mark,
        pickle.APPEND: _append,
        pickle.APPENDS: _appends,
        pickle.ADDITEMS: _appends,
        pickle.SETITEM: _set_item,
        pickle.SETITEMS: _set_items,
        pickle.GLOBAL: _global,
        pickle.STACK_GLOBAL: _stack_global,
        pickle.REDUCE: _reduce,
        pickle.NEWOBJ: _new_object,
        pickle.BUILD: _build,
        pickle.BINPERSID: _persistent_id,
    }.items()
}
"""What each opcode does; of the others, no file of these projects has one."""
