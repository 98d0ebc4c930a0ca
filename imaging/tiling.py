"""Cutting a large image into tiles that a network with a known reach can see one by one."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple


class Tile(NamedTuple):
    """A rectangle of the result and the larger one it is computed from, both in pixels.

    `core` and `seen` are (left, top, right, bottom), as Pillow's `crop` takes them; `inner` are
    the slices that cut the core out of an array computed from `seen`.
    """

    core: tuple[int, int, int, int]
    seen: tuple[int, int, int, int]

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the core within `seen`."""
        left, top = self.core[0] - self.seen[0], self.core[1] - self.seen[1]
        height, width = self.core[3] - self.core[1], self.core[2] - self.core[0]
        return slice(top, top + height), slice(left, left + width)


def tiles(width: int, height: int, size: int, radius: int) -> Iterator[Tile]:
    """Cover an image with tiles of nearly equal size, rows first.

    Where a tile meets another it sees `radius` pixels of it; at the border of the image it sees
    nothing beyond, so a network that pads with zeros pads there, as it does on the whole image.
    Hence each core is what the network makes of it in the whole image.

    Args:
        width: of the image, in pixels.
        height: of the image.
        size: largest width and height of a core.
        radius: pixels to each side of an output pixel that influence it.
    """
    for top, bottom in _spans(height, size):
        for left, right in _spans(width, size):
            seen = (
                max(left - radius, 0),
                max(top - radius, 0),
                min(right + radius, width),
                min(bottom + radius, height),
            )
            yield Tile((left, top, right, bottom), seen)


def _spans(length: int, size: int) -> list[tuple[int, int]]:
    count = -(-length // size)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))
