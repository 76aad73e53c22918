"""`Dialect`: other names that files give the tensors of a network. A family file lists its own in `DIALECTS`."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# A pattern of the whole name in a file, and what it is in ours: a template for `re.sub`, or a function of the match.
Row = tuple[str, str | Callable[[re.Match], str]]


@dataclass(frozen=True)
class Dialect:
    """Names of the same network, with the same arithmetic, in files of another origin.

        Dialect('timm', marker=r'head\\.fc\\.weight', rename=((r'head\\.fc\\.(\\w+)', r'classifier.6.\\1'),))

    Attributes:
      name: whose names they are, for messages: 'timm', 'torchvision before 0.4'.
      marker: a file is written in this dialect if one of its names matches this pattern as a whole. None of the
        network's own names may match it, and a file matches the marker of one dialect of a family at most.
      rename: rows (pattern, replacement). The first whose pattern matches a name as a whole applies; names that none
        matches are the network's own already.
      networks: wildcards of the registered names that have this network in the dialect's package too; a larger variant
        may differ there in more than its names.
      reshaped: patterns of our names. Their tensors have the same numbers in the same order in another shape, as a
        convolution (O, I, 7, 7) whose map is 7x7 is a Linear (O, I * 49), or a vector (C,) is a scale (C, 1, 1).
    """

    name: str
    marker: str
    rename: tuple[Row, ...] = ()
    networks: tuple[str, ...] = ('*',)
    reshaped: tuple[str, ...] = ()

    def applies(self, names: Iterable[str]) -> bool:
        """Whether a file with these names is written in this dialect."""
        marker = re.compile(self.marker)
        return any(marker.fullmatch(name) for name in names)

    def translate(self, name: str) -> str:
        """Our name of what the file calls `name`."""
        for pattern, replacement in self.rename:
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name, count=1)
        return name

    def reshapes(self, name: str) -> bool:
        """Whether the tensor that we call `name` may have another shape in the file."""
        return any(re.fullmatch(pattern, name) for pattern in self.reshaped)
