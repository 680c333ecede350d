"""A check of the instructions of a pickle before anything runs them.

PyTorch's `weights_only` reader makes tensors and plain values only, but it hashes the keys of
tables, and the hash of a tuple costs as much as the tuple is large when every member is written
out: thirty tuples, each of which contains the former one twice, would take hours.
"""

from __future__ import annotations

import pickletools
from typing import BinaryIO

LARGEST_TUPLE = 10_000
"""Values in a tuple, written out; checkpoints have shapes, strides and places of storage."""
STREAMS = 5
"""Pickles at the beginning of an unzipped `.bin` file; numbers follow."""
MARK = 0
"""In place of a value's size."""


def check_pickle(file: BinaryIO) -> None:
    """Read one pickle's instructions, from where the file stands to its end.

    Raises:
        ValueError: They are no pickle, or make a tuple that is too large.
    """
    stack: list[int] = []
    memo: dict[int, int] = {}
    try:
        for instruction, argument, _ in pickletools.genops(file):
            _follow(stack, memo, instruction, argument)
            if stack and stack[-1] > LARGEST_TUPLE:
                raise ValueError(f"a tuple in it has more than {LARGEST_TUPLE} values")
    except IndexError as error:
        raise ValueError("it takes values that are not there") from error


def _follow(
    stack: list[int], memo: dict[int, int], instruction: pickletools.OpcodeInfo, argument: object
) -> None:
    """Apply an instruction to sizes in place of values."""
    name = instruction.name
    if name == "MARK":
        stack.append(MARK)
    elif name == "DUP":
        stack.append(stack[-1])
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif "PUT" in name and isinstance(argument, int):
        memo[argument] = stack[-1]
    elif "GET" in name and isinstance(argument, int):
        stack.append(memo.get(argument, 1))
    else:
        size = 1 + sum(_taken(stack, instruction))
        stack += [size if "TUPLE" in name else 1] * len(instruction.stack_after)


def _taken(stack: list[int], instruction: pickletools.OpcodeInfo) -> list[int]:
    """Sizes of the values that an instruction takes from the stack."""
    taken: list[int] = []
    for kind in reversed(instruction.stack_before):
        if kind is pickletools.stackslice:
            while stack[-1] != MARK:
                taken.append(stack.pop())
        else:
            taken.append(stack.pop())
    return taken
