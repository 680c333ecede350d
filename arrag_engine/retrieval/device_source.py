"""A patch index that is searched on a device, and when it pays to be."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..index import AnyIndex, PatchIndex
from ..index.keys import Keys
from ..index.search.choose import EXACT
from .device_bits import DeviceBits
from .device_search import DeviceSearcher

SHARE = 0.25
"""Of the free memory, what an index may take."""
SMALL = 100_000
"""Patches up to which the CPU answers a query in a millisecond or two. Not measured with a GPU."""


def device_index(index: PatchIndex, device: torch.device | str) -> PatchIndex:
    """The same patches, and of a view the same pictures, searched exactly on a device.

    Its hits are those of the index with a `flat` structure, or of its own structure `bits`, to the
    last bit: patches, ties by the lower number, distances. Nothing is copied before the first
    look-up. A view copies its own pictures only; so does every look-up with `allowed`. It can be
    looked up in and viewed, not saved or given other keys: choose those first.

    Raises:
        ValueError: The keys are of the `encoder` key space and the vectors are gone.
    """
    return replace(index, searcher=_searcher(index, torch.device(device)))


def on_device(
    index: PatchIndex, device: torch.device | str, free_bytes: float, exact: bool = False
) -> PatchIndex:
    """The index, searched on a device if it fits in a quarter of the memory that is free there.

    What is found stays the same: only an index whose own structure is exact moves. `ivf` and
    `compact` do not look into every list, so an exact search would find other patches and draw
    another picture, depending on how much memory happens to be free. They keep their own search.

    Args:
        free_bytes: Memory that is free on the device.
        exact: Exact search also for other structures, where keys can be made exactly: in the
            `codebook` key space. Finds more of the nearest patches than the structure does.
    """
    if index.searcher.kind not in EXACT and not (exact and index.spec.space == "codebook"):
        return index
    return device_index(index, device) if device_bytes(index) <= SHARE * free_bytes else index


def where_faster(index: AnyIndex, device: torch.device, free_bytes: float) -> AnyIndex:
    """`on_device` for an index that is large enough to be worth it, on a GPU; else, and for one in
    shards, the index."""
    if device.type == "cpu" or not isinstance(index, PatchIndex):
        return index
    if index.size < SMALL and index.searcher.kind != "bits":  # which is asked by hundreds
        return index
    return on_device(index, device, free_bytes)


class Places:
    """Where the indexes of drawings are searched: on a GPU, as far as they fit beside each other.

    Args:
        free_bytes: Memory that is free on the device.
    """

    def __init__(self, device: torch.device, free_bytes: float) -> None:
        self.device, self.left = device, free_bytes

    def __call__(self, index: AnyIndex) -> AnyIndex:
        """The index at its place; what it takes is no longer free for the next one."""
        placed = where_faster(index, self.device, self.left)
        if placed is not index and isinstance(index, PatchIndex):
            self.left -= device_bytes(index)
        return placed


def device_bytes(index: PatchIndex) -> int:
    """Bytes that the index takes on a device while it is searched there: 2 a position as codes
    (4 from 32768 codes on), 4 (1 + code dim) as encoder vectors, and up to `SCRATCH`.

    Raises:
        ValueError: See `device_index`.
    """
    searcher = _searcher(index, torch.device("cpu"))
    return (searcher if index.images is None else searcher.restrict(index.images)).nbytes


def _searcher(index: PatchIndex, device: torch.device) -> DeviceSearcher | DeviceBits:
    if index.spec.space == "encoder" and index.vectors is None:
        raise ValueError("keys of the encoder key space need the encoder's vectors")
    keys = Keys(index.tokens, index.vectors, index.codebook, index.grid, index.spec)
    return (
        DeviceBits(keys, device) if index.searcher.kind == "bits" else DeviceSearcher(keys, device)
    )
