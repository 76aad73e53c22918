"""An interpreter of the part of the pickle language that state dicts need; it can run nothing.

Python's own unpickler resolves any importable name and calls it, and it allocates what a hostile file declares before
it looks for the bytes. Here the names that a file may use are the keys of a table that the caller gives; everything
else on the stack is plain data (numbers, strings, tuples, lists, dicts), and no value is larger than the file.
Opcodes of protocols 2 to 5: https://github.com/python/cpython/blob/main/Lib/pickletools.py.
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from flaxzoo.weights.errors import WeightsError

MARK = object()
# What a dict's key may be: tuples could be made to take for ever to hash.
KEYS = (str, bytes, int, float, bool, type(None))
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
PUTS = {pickle.BINPUT: '<B', pickle.LONG_BINPUT: '<I'}
GETS = {pickle.BINGET: '<B', pickle.LONG_BINGET: '<I'}


def loads(
    data: memoryview, names: Mapping[str, Any], persistent: Callable[[tuple], Any], start: int = 0
) -> tuple[Any, int]:
    """The object pickled in `data` at byte `start`, and the byte after it.

    Args:
      data: the pickle, which may go on after its end.
      names: {'module.name': value} of all that the pickle may refer to; functions may also be called.
      persistent: called with each persistent id, a tuple.
      start: where the pickle begins.

    Raises:
      WeightsError: another name is asked for, or the pickle is truncated, damaged or uses other opcodes.
    """
    machine = _Machine(data, names, persistent, start)
    try:
        return machine.run(), machine.position
    except WeightsError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise WeightsError(f'the pickle is damaged at byte {machine.position}') from error


class _Machine:
    """The stack, the memo and the position in the bytes."""

    def __init__(self, data: memoryview, names: Mapping[str, Any], persistent: Callable[[tuple], Any], start: int):
        self.data, self.names, self.persistent, self.position = data, names, persistent, start
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (opcode := self.take(1)) != pickle.STOP:
            self.step(opcode)
        return self.stack.pop()

    def step(self, opcode: bytes) -> None:
        """Runs one opcode: pushes data, builds a container or refers to a name."""
        push = self.stack.append
        if opcode in NUMBERS:
            push(self.number(NUMBERS[opcode]))
        elif opcode in STRINGS:
            push(self.take(self.number(STRINGS[opcode])).decode('utf-8', 'surrogatepass'))
        elif opcode in BYTES:
            value = self.take(self.number(BYTES[opcode]))
            push(int.from_bytes(value, 'little', signed=True) if opcode == pickle.LONG1 else value)
        elif opcode in CONSTANTS:
            push(CONSTANTS[opcode])
        elif opcode == pickle.EMPTY_DICT:
            push({})
        elif opcode == pickle.EMPTY_LIST:
            push([])
        elif opcode == pickle.MARK:
            push(MARK)
        elif opcode in TUPLES:
            push(tuple(self.pop(TUPLES[opcode])))
        elif opcode == pickle.TUPLE:
            push(tuple(self.pop_mark()))
        elif opcode in (pickle.APPEND, pickle.APPENDS):
            self.extend(self.pop(1) if opcode == pickle.APPEND else self.pop_mark())
        elif opcode in (pickle.SETITEM, pickle.SETITEMS):
            self.update(self.pop(2) if opcode == pickle.SETITEM else self.pop_mark())
        elif opcode in PUTS:
            self.memo[self.number(PUTS[opcode])] = self.stack[-1]
        elif opcode == pickle.MEMOIZE:
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode in GETS:
            push(self.memo[self.number(GETS[opcode])])
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
        elif opcode == pickle.REDUCE:
            function, arguments = self.pop(2)
            if not isinstance(function, FunctionType) or not isinstance(arguments, tuple):
                raise WeightsError('refused: the pickle calls something that is not a function of torch.save')
            self.stack.append(function(*arguments))
        elif opcode == pickle.BUILD:
            # Attributes of a dict, such as the versions in a state dict's _metadata, hold no weights.
            target, _ = self.pop(2)
            if not isinstance(target, dict):
                raise WeightsError('refused: the pickle sets attributes of something that is not a dict')
            self.stack.append(target)
        elif opcode == pickle.BINPERSID:
            self.stack.append(self.persistent(self.stack.pop()))
        else:
            shown = f'0x{opcode.hex()} at byte {self.position - 1}'
            raise WeightsError(f'refused: the pickle uses opcode {shown}, which torch.save does not need for tensors')

    def name(self, module: str, name: str) -> Any:
        wanted = f'{module}.{name}'
        if wanted not in self.names:
            raise WeightsError(
                f'refused: the pickle asks for {wanted[:200]!r}; only tensors in dicts and lists are read. If this is '
                'a file that you trust, open it in torch and save its state_dict()'
            )
        return self.names[wanted]

    def extend(self, values: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise WeightsError('refused: the pickle appends to something that is not a list')
        target.extend(values)

    def update(self, items: list) -> None:
        target = self.stack[-1]
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
        """The text up to the end of the line, at most 300 bytes of it."""
        text = bytes(self.data[self.position : self.position + 300])
        end = text.index(b'\n')
        self.position += end + 1
        return text[:end].decode()


def set_item(target: dict, key: Any, value: Any) -> None:
    """`target[key] = value` for the keys that a state dict may have."""
    if not isinstance(key, KEYS):
        raise WeightsError(f'refused: the pickle has a dict whose key is a {type(key).__name__}')
    target[key] = value
