"""The Huffman code of HPACK (RFC 7541, appendix B), decoding only.

The code is canonical: the lengths of the codes give the codes. The decoder walks the tree four
bits at a time through a table that is made on first use.
"""

from __future__ import annotations

from functools import cache, lru_cache

_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b"
    "0a0a080b080606060505050606060606060607080f060c0a0d060707070707070707070707070707"
    "07070707070707070807080d130d0e060f0506050605060606050707060606050607060505060707"
    "0707070f0b0e0d1c1416141416161617161717171717181718181617181717171715161716171718"
    "16151416161717151716161815161717151516151716171714161616171616171a1a141316171619"
    "1a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
"""Bits in the code of each byte, and of the end of the string."""

_END = 256
_PADDING = 7

Step = tuple[int, bytes, bool]
"""Where four bits lead: the next node, the bytes that they complete, whether they are allowed."""


class HuffmanError(ValueError):
    """The bytes are no Huffman-coded string."""


@cache
def _tree() -> tuple[list[list[int]], list[int | None]]:
    """Two children per inner node (an inner node, or ~symbol for a leaf), and for each inner node
    how many one-bits lead to it from the root, or None if anything else does."""
    children: list[list[int]] = [[0, 0]]
    ones: list[int | None] = [0]
    code, previous = 0, 0
    for symbol in sorted(range(len(_LENGTHS)), key=lambda s: (_LENGTHS[s], s)):
        length = _LENGTHS[symbol]
        code <<= length - previous
        previous = length
        node = 0
        for bit in range(length - 1, 0, -1):
            side = code >> bit & 1
            if not children[node][side]:
                children.append([0, 0])
                before = ones[node]
                ones.append(None if before is None or not side else before + 1)
                children[node][side] = len(children) - 1
            node = children[node][side]
        children[node][code & 1] = ~symbol
        code += 1
    return children, ones


@cache
def _steps() -> list[list[Step]]:
    children, _ = _tree()
    return [[_step(children, start, nibble) for nibble in range(16)] for start in range(256)]


def _step(children: list[list[int]], start: int, nibble: int) -> Step:
    node, out = start, bytearray()
    for bit in (3, 2, 1, 0):
        node = children[node][nibble >> bit & 1]
        if node < 0:
            if ~node == _END:
                return 0, b"", False
            out.append(~node)
            node = 0
    return node, bytes(out), True


@lru_cache(maxsize=1024)
def decode(data: bytes) -> bytes:
    """Raises HuffmanError for the end symbol inside, or padding that is not up to 7 one-bits."""
    steps, out, node = _steps(), bytearray(), 0
    for byte in data:
        for nibble in (byte >> 4, byte & 15):
            node, done, allowed = steps[node][nibble]
            if not allowed:
                raise HuffmanError("the end of the string lies inside it")
            out += done
    padding = _tree()[1][node]
    if padding is None or padding > _PADDING:
        raise HuffmanError("the padding is not a prefix of the end of the string")
    return bytes(out)
