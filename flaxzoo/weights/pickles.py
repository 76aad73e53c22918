"""An interpreter of the part of the pickle language that checkpoints need; it can run nothing.

Python's own unpickler resolves any importable name and calls it, and it allocates what a hostile file declares before
it looks for the bytes. Here the names that mean something are the keys of a table that the caller gives; every other
name, and whatever is made by calling it, is an `Opaque`: a note of what the pickle says, which nothing ever calls.
Everything else on the stack is plain data (numbers, strings, tuples, lists, dicts; sets are lists). No value is larger
than the file, all together are not much larger, and the time is proportional to its length: nothing that can be
referred to twice is walked through.
Opcodes of protocols 2 to 5: https://github.com/python/cpython/blob/main/Lib/pickletools.py.
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from flaxzoo.weights.errors import WeightsError

MARK = object()
UNSET = object()
LONGEST_NAME = 300  # of a module or of what is in it
MOST_ARGUMENTS = 8  # the most that a function of torch.save has
# An opcode is a byte, and what it makes is up to a hundred. Weights have about 30 opcodes a tensor, and are large: a
# file may have so many opcodes, and one more for each SPARSEST bytes.
MOST_OPCODES = 1_000_000
SPARSEST = 64
# opcode -> format of the number that follows it
NUMBERS = {
    pickle.BININT: '<i',
    pickle.BININT1: '<B',
    pickle.BININT2: '<H',
    pickle.BINFLOAT: '>d',
}
# opcode -> format of the length that follows it
STRINGS = {
    pickle.SHORT_BINSTRING: '<B',  # str of Python 2, in which the oldest releases were written
    pickle.BINSTRING: '<i',
    pickle.SHORT_BINUNICODE: '<B',
    pickle.BINUNICODE: '<I',
    pickle.BINUNICODE8: '<Q',
}
BYTES = {pickle.SHORT_BINBYTES: '<B', pickle.BINBYTES: '<I', pickle.BINBYTES8: '<Q', pickle.LONG1: '<B'}
CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
# opcode -> format of the length of something that is kept as its type alone
SWALLOWED = {pickle.LONG4: ('<i', 'int'), pickle.BYTEARRAY8: ('<Q', 'bytearray')}
PUTS = {pickle.BINPUT: '<B', pickle.LONG_BINPUT: '<I'}
GETS = {pickle.BINGET: '<B', pickle.LONG_BINGET: '<I'}


class Opaque:
    """An object of a class that means nothing here, as its pickle describes it; also such a class or function itself.

    Attributes:
      name: 'module.name' of its class, or of the function that would have made it.
      items: what was set by `object[key] = value`, as in subclasses of dict.
      state: its attributes, usually a dict, or None.
    """

    __slots__ = ('items', 'name', 'state')

    def __init__(self, name: str):
        self.name, self.items, self.state = name, {}, None


class Number(str):
    """A number, bool or None as a dict's key, by its text.

    The hashes of numbers can be chosen to collide, which makes a dict as slow as a list; those of strings cannot.
    """

    __slots__ = ()


def loads(
    data: memoryview,
    names: Mapping[str, Any],
    persistent: Callable[[tuple], Any],
    start: int = 0,
    *,
    size: int | None = None,
) -> tuple[Any, int]:
    """The object pickled in `data` at byte `start`, and the byte after it.

    Args:
      data: the pickle, which may go on after its end.
      names: {'module.name': value} of the names that mean something; the functions among them are called.
      persistent: called with each persistent id, a tuple.
      start: where the pickle begins.
      size: bytes of the whole file, if `data` is a part of it.

    Raises:
      WeightsError: the pickle is truncated, damaged, uses other opcodes or has far more than weights need.
    """
    machine = _Machine(data, names, persistent, start, len(data) if size is None else size)
    try:
        return machine.run(), machine.position
    except WeightsError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise WeightsError(f'the pickle is damaged at byte {machine.position}') from error


class _Machine:
    """The stack, the memo and the position in the bytes."""

    def __init__(
        self, data: memoryview, names: Mapping[str, Any], persistent: Callable[[tuple], Any], start: int, size: int
    ):
        self.data, self.names, self.persistent, self.position, self.size = data, names, persistent, start, size
        self.stack: list[Any] = []
        self.memo: list[Any] = []
        self.texts: dict[str, str] = {}  # one copy of each name, however often it is referred to

    def run(self) -> Any:
        left = MOST_OPCODES + self.size // SPARSEST
        while (opcode := self.take(1)) != pickle.STOP:
            if not left:
                raise WeightsError('refused: the pickle has far more parts than weights of its size have')
            self.step(opcode)
            left -= 1
        return self.stack.pop()

    def step(self, opcode: bytes) -> None:
        """Runs one opcode: pushes data, builds a container or refers to a name."""
        push = self.stack.append
        if opcode in NUMBERS:
            push(self.number(NUMBERS[opcode]))
        elif opcode in STRINGS:
            # Python 2's str may be bytes of anything, such as a numpy array beside the weights.
            errors = 'replace' if opcode in (pickle.SHORT_BINSTRING, pickle.BINSTRING) else 'surrogatepass'
            push(self.take(self.number(STRINGS[opcode])).decode('utf-8', errors))
        elif opcode in BYTES:
            value = self.take(self.number(BYTES[opcode]))
            push(int.from_bytes(value, 'little', signed=True) if opcode == pickle.LONG1 else value)
        elif opcode in CONSTANTS:
            push(CONSTANTS[opcode])
        elif opcode == pickle.EMPTY_DICT:
            push({})
        elif opcode in (pickle.EMPTY_LIST, pickle.EMPTY_SET):
            push([])
        elif opcode == pickle.MARK:
            push(MARK)
        elif opcode in TUPLES:
            push(tuple(self.pop(TUPLES[opcode])))
        elif opcode == pickle.TUPLE:
            push(tuple(self.pop_mark()))
        elif opcode == pickle.FROZENSET:
            push(self.pop_mark())
        elif opcode in SWALLOWED:
            layout, kind = SWALLOWED[opcode]
            self.take(self.number(layout))
            push(Opaque(kind))
        elif opcode in (pickle.APPEND, pickle.APPENDS, pickle.ADDITEMS):
            self.extend(self.pop(1) if opcode == pickle.APPEND else self.pop_mark())
        elif opcode in (pickle.SETITEM, pickle.SETITEMS):
            self.update(self.pop(2) if opcode == pickle.SETITEM else self.pop_mark())
        elif opcode in PUTS:
            self.put(self.number(PUTS[opcode]))
        elif opcode == pickle.MEMOIZE:
            self.put(len(self.memo))
        elif opcode in GETS:
            if (value := self.memo[self.number(GETS[opcode])]) is UNSET:
                raise IndexError('memo')
            push(value)
        elif opcode == pickle.POP:
            self.stack.pop()
        elif opcode == pickle.POP_MARK:
            self.pop_mark()
        elif opcode in (pickle.PROTO, pickle.FRAME):
            self.take(1 if opcode == pickle.PROTO else 8)
        else:
            self.refer(opcode)

    def refer(self, opcode: bytes) -> None:
        """Runs an opcode by which pickles name and call things."""
        if opcode == pickle.GLOBAL:
            self.stack.append(self.name(self.line(), self.line()))
        elif opcode == pickle.STACK_GLOBAL:
            self.stack.append(self.name(*self.pop(2)))
        elif opcode in (pickle.REDUCE, pickle.NEWOBJ):
            self.stack.append(call(*self.pop(2)))
        elif opcode == pickle.NEWOBJ_EX:
            kind, arguments, _ = self.pop(3)
            self.stack.append(call(kind, arguments))
        elif opcode == pickle.INST:
            kind = self.name(self.line(), self.line())
            self.stack.append(call(kind, tuple(self.pop_mark())))
        elif opcode == pickle.OBJ:
            kind, *arguments = self.pop_mark()
            self.stack.append(call(kind, tuple(arguments)))
        elif opcode == pickle.BUILD:
            # Attributes of a dict, such as the versions in a state dict's _metadata, hold no weights.
            target, state = self.pop(2)
            if isinstance(target, Opaque):
                target.state = state
            self.stack.append(target)
        elif opcode == pickle.BINPERSID:
            self.stack.append(self.persistent(self.stack.pop()))
        else:
            shown = f'0x{opcode.hex()} at byte {self.position - 1}'
            raise WeightsError(f'refused: the pickle uses opcode {shown}, which torch.save does not write')

    def name(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str) or max(len(module), len(name)) > LONGEST_NAME:
            raise WeightsError('refused: the pickle asks for something that is no name in a module')
        wanted = f'{module}.{name}'
        return self.names[wanted] if wanted in self.names else Opaque(self.texts.setdefault(wanted, wanted))

    def put(self, number: int) -> None:
        """Picklers count what they remember, so that no number is larger than the bytes before it."""
        if number > self.position:
            raise IndexError('memo')
        self.memo.extend([UNSET] * (number + 1 - len(self.memo)))
        self.memo[number] = self.stack[-1]

    def extend(self, values: list) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise WeightsError('refused: the pickle appends to something that is not a list')

    def update(self, items: list) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, Opaque) else target
        if not isinstance(target, dict) or len(items) % 2:
            raise WeightsError('refused: the pickle sets items of something that is not a dict')
        for key, value in zip(items[::2], items[1::2], strict=True):
            set_item(target, key, value)

    def pop(self, count: int) -> list:
        values = self.stack[-count:]
        if len(values) < count or any(value is MARK for value in values):
            raise IndexError('stack')
        del self.stack[-count:]
        return values

    def pop_mark(self) -> list:
        values = []
        while (value := self.stack.pop()) is not MARK:
            values.append(value)
        return values[::-1]

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.data) - self.position:
            raise WeightsError('the pickle is truncated, or declares more bytes than the file has')
        self.position += count
        return bytes(self.data[self.position - count : self.position])

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """The text up to the end of the line, a name."""
        text = bytes(self.data[self.position : self.position + LONGEST_NAME])
        end = text.index(b'\n')
        self.position += end + 1
        return text[:end].decode()


def call(function: Any, arguments: Any) -> Any:
    """What a function of the table makes of the arguments; of anything opaque another opaque value, without a call."""
    if not isinstance(arguments, tuple):
        raise WeightsError('refused: the pickle calls something without a tuple of arguments')
    if isinstance(function, Opaque):
        return Opaque(function.name)
    if not isinstance(function, FunctionType) or len(arguments) > MOST_ARGUMENTS:
        raise WeightsError('refused: the pickle calls something that is not a function of torch.save')
    return function(*arguments)


def set_item(target: dict, key: Any, value: Any) -> None:
    """`target[key] = value`; only strings and bytes stay the keys that they are."""
    if isinstance(key, int | float | None):
        key = Number(f'[{key}]')
    elif not isinstance(key, str | bytes):
        key = Opaque(type(key).__name__)  # tuples could be made to take for ever to hash
    target[key] = value


def describe(value: Any) -> str:
    """The name of what a value in a file is an object of."""
    return value.name if isinstance(value, Opaque) else type(value).__name__.lower()
