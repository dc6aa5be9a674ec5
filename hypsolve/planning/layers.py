"""Blocks in the words of users: embedding, layers counted from 0, head."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def describe_blocks(blocks: range, n_blocks: int) -> str:
    """Name blocks as in ``embedding, layers 0-12``.

    Block 0 is the embedding, and the last block is the head. Layers are counted from 0.

    Examples
    --------
    >>> describe_blocks(range(0, 14), 34)
    'embedding, layers 0-12'
    >>> describe_blocks(range(33, 34), 34), describe_blocks(range(0), 34)
    ('head', 'none')
    """
    if not blocks:
        return "none"
    words = ["embedding"] if blocks.start == 0 else []
    first, last = max(blocks.start, 1) - 1, min(blocks.stop, n_blocks - 1) - 2
    if first == last:
        words.append(f"layer {first}")
    elif first < last:
        words.append(f"layers {first}-{last}")
    if blocks.stop == n_blocks:
        words.append("head")
    return ", ".join(words)


def describe_cuts(cuts: Sequence[int]) -> str:
    """Name the layers of each stage, as in ``0-12 | 13-31``.

    The embedding goes with layer 0, and the head with the last layer. A stage without a layer
    is ``embedding``, ``head``, or ``none``.

    Examples
    --------
    >>> describe_cuts((0, 14, 34))
    '0-12 | 13-31'
    >>> describe_cuts((0, 1, 1, 33, 34))
    'embedding | none | 0-31 | head'
    """
    n_layers = cuts[-1] - 2
    words = []
    for start, end in itertools.pairwise(cuts):
        first, last = max(start, 1) - 1, min(end - 2, n_layers - 1)
        if first < last:
            words.append(f"{first}-{last}")
        elif first == last:
            words.append(f"{first}")
        else:
            words.append(describe_blocks(range(start, end), cuts[-1]))
    return " | ".join(words)
