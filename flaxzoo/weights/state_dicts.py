"""The state dicts in what a weights file holds, wherever they lie and whatever stands before their names.

A checkpoint is a tree of dicts and lists. Every dict of tensors in it is a state dict, known by the keys on the way to
it joined by dots: 'model.state_dict'. So is each part of one whose names begin alike, if it is a large one: in a file
of 'backbone.*' and 'head.*' the key 'backbone' is the first without 'backbone.'. Files are hostile: whatever can be
referred to twice is visited once, and depths and names are bounded.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.pickles import Opaque, describe
from flaxzoo.weights.torch_file import Tensor

logger = logging.getLogger('flaxzoo')

# Where a checkpoint keeps its weights if it has several state dicts: averaged ones first, as timm.
PREFERRED = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema', 'state_dict', 'model_state_dict', 'model')
# What torch puts before every name: DataParallel, DistributedDataParallel and AveragedModel; torch.compile.
WRAPPERS = ('module', '_orig_mod')
# Attributes in which programs keep a network, and some networks a Sequential, which is a part of the network.
HOLDERS = ('model', 'backbone', 'net', 'network')
DEPTH = 8  # of dicts in dicts and of prefixes; deeper ones hold something else
LONGEST = 300  # characters of a name that can be a part of a key
SHARE = 4  # a prefix counts if at least one in so many names has it


class StateDict(Mapping[str, np.ndarray]):
    """{name: array}; an array is read, and its checksum verified, when it is asked for.

    Attributes:
      others: {name: what it is} of the entries that are no tensors.
    """

    def __init__(
        self, tensors: Mapping[str, Any], read: Callable[[Any], np.ndarray], others: Mapping[str, str], prefix: str = ''
    ):
        self._tensors, self._read, self.others, self._prefix = tensors, read, others, prefix

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(self._tensors[self._prefix + name])

    def __iter__(self) -> Iterator[str]:
        start = len(self._prefix)
        return (name[start:] for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape}, as the file declares them."""
        return {name: self._tensors[self._prefix + name].shape for name in self}

    def below(self, prefix: str) -> 'StateDict':
        """The part whose names begin with `prefix`, without it."""
        others = {name[len(prefix) :]: kind for name, kind in self.others.items() if name.startswith(prefix)}
        return StateDict(self._tensors, self._read, others, self._prefix + prefix)


def find(content: Any, read: Callable[[Any], np.ndarray]) -> dict[str, StateDict]:
    """{key: state dict} of all dicts of tensors and whole modules in `content`, '' for `content` itself.

    Wrappers' prefixes that all names share ('module.', '_orig_mod.model.', ...) are removed.
    """
    found: dict[str, StateDict] = {}
    seen: set[int] = set()
    waiting = deque([((), content)])
    while waiting:
        path, value = waiting.popleft()
        inside = _inside(value)
        if id(inside) in seen or _is_optimizer(inside):
            continue
        seen.add(id(inside))
        is_module = _is_module(value)
        entries = _module_entries(value) if is_module else _entries(inside)
        tensors = {key: item for key, item in entries if type(key) is str and _is_tensor(item)}
        if tensors:
            found.setdefault('.'.join(path), _unwrap(StateDict(tensors, read, _others(entries))))
        if not is_module and len(path) < DEPTH:
            waiting.extend(((*path, key), item) for key, item in entries if _is_container(item) and _is_short(key))
    return found


def parts(found: Mapping[str, StateDict], wanted: str | None = None) -> dict[str, StateDict]:
    """`found` and, under 'KEY.PREFIX', the large parts of each whose names begin alike; a small one if `wanted`."""
    result = dict(found)
    for key, weights in found.items():
        for prefix in _prefixes(list(weights)):
            result.setdefault(f'{key}.{prefix}'.strip('.'), weights.below(prefix))
    if wanted:
        for key, weights in found.items():
            if wanted.startswith(key) and (part := weights.below(wanted[len(key) :].strip('.') + '.')):
                result.setdefault(wanted, part)
    return result


def choose(found: Mapping[str, StateDict]) -> StateDict:
    """The state dict to read if none is named: the only one, or the averaged one of several, which is logged.

    Raises:
      WeightsError: several cannot be told apart.
    """
    # Random states and histories are dicts of tensors too, but a network's names have dots.
    keys = [key for key, weights in found.items() if any('.' in name for name in weights)] or list(found)
    keys = [key for key in keys if not found[key].others] or keys
    if len(keys) == 1:
        return found[keys[0]]
    paths = {key: key.split('.') for key in keys}
    common = 0  # keys on the way to all of them
    while len({tuple(path[: common + 1]) for path in paths.values()}) == 1:
        common += 1
    for preferred in PREFERRED:
        fitting = [key for key, path in paths.items() if path[common : common + 1] == [preferred]]
        if len(fitting) == 1:
            logger.warning('the file holds several state dicts (%s): reading %r', listed(keys), fitting[0])
            return found[fitting[0]]
    raise WeightsError(f'the file holds several state dicts: {listed(keys)}; name one: key={keys[0][:100]!r}')


def explain_none(content: Any) -> str:
    """What the content of a file is that has no state dict."""
    if _is_optimizer(content):
        return "the file holds an optimizer's state, not a model's; save model.state_dict()"
    if isinstance(content, Opaque) and not content.items:
        return f'the file holds an object of {content.name[:200]}, whose weights are not read; save its state_dict()'
    if not isinstance(content, dict | Opaque):
        return f'the file holds a {describe(content)[:200]}, not a state dict'
    names = [f'{_shown(key)[:50]} ({describe(value)[:100]})' for key, value in list(_inside(content).items())[:6]]
    return f'the file holds no state dict, that is {{name: tensor}}; it holds {", ".join(names) or "nothing"}'


def listed(keys: Collection[str]) -> str:
    """Keys as a message shows them."""
    shown = [repr(key[:50]) for key in list(keys)[:8]]
    return ', '.join([*shown, f'and {len(keys) - 8} more'] if len(keys) > 8 else shown)


def _unwrap(weights: StateDict) -> StateDict:
    """The weights without the prefixes of wrappers that all names share, in whatever order they were put.

    Numbers without a dot in their name beside them count something (`n_averaged` of AveragedModel); they go too.
    """
    for _ in range(DEPTH):
        shapes = weights.shapes
        names = [name for name, shape in shapes.items() if shape or '.' in name]
        steps = [f'{name}.'.split('.', 2) if '.' in name else [''] for name in [*names, *weights.others]]
        firsts = {step[0] for step in steps}
        of_sequential = all(step[1].isdigit() for step in steps if len(step) > 1)
        if len(firsts) != 1 or not firsts <= {*WRAPPERS, *(() if of_sequential else HOLDERS)}:
            return weights
        weights = weights.below(f'{firsts.pop()}.')
    return weights


def _prefixes(names: list[str]) -> list[str]:
    """The prefixes, with their last dot, that at least one in `SHARE` names has, shorter ones first."""
    names = [name for name in names if len(name) <= LONGEST]
    result, level = [], ['']
    for _ in range(DEPTH):
        counts: Counter[str] = Counter()
        for prefix in level:
            ends = ((name, name.find('.', len(prefix)) + 1) for name in names if name.startswith(prefix))
            counts.update(name[:end] for name, end in ends if end)
        level = [prefix for prefix, count in counts.items() if count > 1 and count * SHARE >= len(names)]
        result += level
    return result


def _inside(value: Any) -> Any:
    """The dict or list that holds what is in a value: items, or else the attributes of an object."""
    return (value.items or _state(value)) if isinstance(value, Opaque) else value


def _entries(inside: Any) -> list[tuple[Any, Any]]:
    """What a dict or list holds under which key."""
    if isinstance(inside, dict):
        return list(inside.items())
    return [(str(i), item) for i, item in enumerate(inside) if _is_container(item)] if _is_container(inside) else []


def _others(entries: list[tuple[Any, Any]]) -> dict[str, str]:
    """The entries that are no tensors; what torch's `Module.get_extra_state` adds may be anything."""
    others = {}
    for key, item in entries:
        if isinstance(key, str) and len(key) > LONGEST:
            raise WeightsError(f'refused: a name of {len(key)} characters in a state dict')
        if type(key) is not str:
            others[_shown(key)] = describe(item)
        elif not _is_tensor(item) and not key.endswith('_extra_state'):
            others[key] = describe(item)
    return others


def _shown(key: Any) -> str:
    return str(key) if isinstance(key, str) else describe(key)


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list | tuple | Opaque) and not isinstance(value, Tensor)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_short(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= LONGEST


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and 'param_groups' in value and 'state' in value


def _state(value: Any) -> dict:
    return value.state if isinstance(value, Opaque) and isinstance(value.state, dict) else {}


def _is_module(value: Any) -> bool:
    """Whether it is a torch.nn.Module that was saved as a whole."""
    return {'_parameters', '_buffers', '_modules'} <= _state(value).keys()


def _module_entries(module: Opaque) -> list[tuple[str, Any]]:
    """The entries of a module's state dict; nothing is counted twice, however often it is referred to."""
    seen: set[int] = set()

    def fresh(value: Any, kind: type) -> Any:
        if not isinstance(value, kind) or id(value) in seen:
            return kind()
        seen.add(id(value))
        return value

    entries = []
    waiting = deque([('', module)])
    while waiting:
        prefix, module = waiting.popleft()
        state = _state(module)
        hidden = {key for key in fresh(state.get('_non_persistent_buffers_set'), list) if isinstance(key, str)}
        own = [*fresh(state['_parameters'], dict).items(), *fresh(state['_buffers'], dict).items()]
        own = [(key, item) for key, item in own if _is_short(key) and item is not None and key not in hidden]
        entries += [(prefix + key, item) for key, item in own]
        children = fresh(state['_modules'], dict).items() if len(prefix) < LONGEST else ()
        waiting.extend((f'{prefix}{key}.', child) for key, child in children if _is_short(key) and _is_module(child))
    return entries
