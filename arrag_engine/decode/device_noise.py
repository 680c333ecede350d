"""The noise of `noise.py`, made by a device for many positions at once, and kept ahead of need.

Philox4x64-10 (Salmon et al. 2011) in plain integer operations. An int64 tensor holds the bits of
numpy's unsigned words: products wrap at 2^64, right shifts are masked, and the high word of a
product comes from 32-bit halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .noise import Noise

ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
LOW = 2**32 - 1

PLACES = 64
"""Positions of each row that a slab holds: 4 MB a row with a vocabulary of 16384."""
WORDS = 2**20
"""Random words made at a time: what they pass through takes about 40 MB."""

Make = Callable[[Tensor, Tensor, int], Tensor]
"""Gumbel noise [N, vocab] float32 of (seeds [N], positions [N], vocab)."""


def signed(word: int) -> int:
    """The int64 that has the bits of word mod 2^64."""
    return (word + 2**63) % 2**64 - 2**63


def shift(words: Tensor, bits: int) -> Tensor:
    """words >> bits of unsigned words."""
    return (words >> bits) & (2 ** (64 - bits) - 1)


def product(words: Tensor, factor: Tensor, halves: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """High and low word of the unsigned 128-bit products; halves: low, high of the factor."""
    low, high = words & LOW, shift(words, 32)
    middle = torch.addcmul(shift(low * halves[0], 32), high, halves[0])
    inner = torch.addcmul(middle & LOW, low, halves[1])
    top = torch.addcmul(shift(middle, 32), high, halves[1])
    return top + shift(inner, 32), words * factor


def philox(seeds: Tensor, positions: Tensor, count: int) -> Tensor:
    """The first words [..., count] of each (seed, position), both [...] int64.

    Bit for bit those of `np.random.Philox(key=seed, counter=position << 192).random_raw(count)`.
    """
    blocks = -(-count // 4)
    zero = torch.zeros_like(seeds)
    factor, step = constants(seeds)
    halves = factor & LOW, shift(factor, 32)
    # Words 0 and 2 of a block are multiplied; words 3 and 1 are mixed with the products.
    numbers = torch.arange(1, blocks + 1, device=seeds.device)  # numpy counts before a block
    even = torch.stack((numbers + zero[..., None], zero[..., None].expand(*zero.shape, blocks)))
    odd = torch.stack((positions, zero))[..., None]
    key = torch.stack((zero, seeds))[..., None]
    for _ in range(ROUNDS):
        high, low = product(even, factor, halves)
        even, odd = (high ^ odd ^ key).flip(0), low
        key = key + step
    return torch.stack((even[0], odd[1], even[1], odd[0]), dim=-1).flatten(-2)[..., :count]


def constants(seeds: Tensor) -> Tensor:
    """Factors, and what is added to the key after a round, as [2, 2, ..., 1] beside seeds [...]."""
    words = [[signed(w) for w in MULTIPLIERS], [signed(w) for w in reversed(KEY_STEPS)]]
    return torch.tensor(words, device=seeds.device).view(2, 2, *[1] * (seeds.dim() + 1))


def uniforms(words: Tensor) -> Tensor:
    """float64 in (0, 1) of random words, exact."""
    return (shift(words, 12).double() + 0.5) * 2.0**-52


def device_gumbel(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Gumbel noise [..., vocab] float32 of (seed, position), both [...] int64, on their device.

    The host's within one float32 step: logarithms in float64 differ by device in the last place.
    """
    values = uniforms(philox(seeds, positions, vocab + 1)[..., 1:])
    return values.log_().neg_().log_().neg_().float()


def host_gumbel(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """What `device_gumbel` returns, made by the host and copied."""
    pairs = zip(seeds.tolist(), positions.tolist(), strict=True)
    noise = [Noise(seed, position, vocab).gumbel for seed, position in pairs]
    return torch.stack(noise).to(seeds.device)


def maker(device: torch.device) -> Make:
    """How noise for a device is made: a CPU is faster with numpy, MPS has no float64."""
    return device_gumbel if device.type == "cuda" else host_gumbel


class NoiseSlab:
    """Noise of the positions that each row stands at and of the next ones.

    Position p lies in place p mod `places`, so that a refill makes every position once and a
    window may cross any border. The buffers never move: `at` may be captured in a CUDA graph;
    `begin` and `hold` run between its replays.
    """

    def __init__(
        self,
        rows: int,
        size: int,
        vocab: int,
        device: torch.device,
        places: int = PLACES,
        make: Make | None = None,
    ) -> None:
        """Room for `rows` pictures of `size` tokens."""
        self.size, self.vocab = size, vocab
        self.places, self.at_once = min(places, size), max(1, WORDS // vocab)
        self.make = make or maker(device)
        self.gumbel = torch.zeros(rows, self.places, vocab, device=device)
        """[rows, places, vocab] float32."""
        self.rows = torch.arange(rows, device=device)[:, None]
        self.begin([0] * rows)

    def begin(self, seeds: Sequence[int]) -> None:
        """Forget the noise held: each row draws a new picture."""
        self.seeds = [signed(seed) for seed in seeds]
        self.held = [range(0)] * len(seeds)

    def hold(self, starts: Sequence[int], width: int) -> None:
        """Have the noise of positions start to start + width - 1 of each row.

        Positions past the picture's end have no noise of their own.

        Raises:
            ValueError: A width that the slab does not hold.
        """
        if min(width, self.size) > self.places:
            raise ValueError(f"a window of {width} positions, the slab holds {self.places}")
        needed = [range(start, min(start + width, self.size)) for start in starts]
        if all(within(a, b) for a, b in zip(needed, self.held, strict=True)):
            return
        ahead = [range(start, min(start + self.places, self.size)) for start in starts]
        fresh = [
            (row, position)
            for row, (new, old) in enumerate(zip(ahead, self.held, strict=True))
            for position in new
            if position not in old
        ]
        self.held = ahead
        self.fill(fresh)

    def fill(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Make the noise of (row, position)s, a bounded number at a time."""
        row, position = torch.tensor(pairs).T
        place, seed = position % self.places, torch.tensor(self.seeds)[row]
        for part in torch.stack((row, place, seed, position)).split(self.at_once, dim=1):
            row, place, seed, position = part.to(self.gumbel.device)
            self.gumbel[row, place] = self.make(seed, position, self.vocab)

    def at(self, positions: Tensor) -> Tensor:
        """Gumbel noise [rows, P, vocab] of positions [rows, P] int64 that are held."""
        return self.gumbel[self.rows, positions % self.places]


def within(inner: range, outer: range) -> bool:
    """Whether a range lies in another; an empty one does."""
    return not inner or (outer.start <= inner.start and inner.stop <= outer.stop)
