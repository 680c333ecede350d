"""The share of a picture owed to each source, to the model, and to kept tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace

from ..errors import printable
from ..index import Source

CHUNK = "arrag_credits"
"""Keyword of the PNG text chunk."""
LONGEST_TEXT = 2000
"""Characters of a name, an origin or a licence in the data."""
ALL_TEXTS = 3_000_000
"""Characters of all of them together: a PNG with more text than readers accept opens nowhere."""
LONGEST_SHOWN = 200
"""The same in a line for people."""
SMALL = 0.005
"""Sources below this share of a picture are summed up in the text."""


@dataclass(frozen=True)
class Credit:
    """What a picture owes to one source. An unknown fact is an empty text."""

    name: str
    origin: str
    licence: str
    sha256: str
    share: float
    """Of the picture, in [0, 1]."""


@dataclass(frozen=True)
class Credits:
    """What a picture owes to whom; all shares add up to 1."""

    sources: tuple[Credit, ...] = ()
    """The largest share first."""
    model: float = 1.0
    kept: float = 0.0
    """Share of the tokens that were given, not drawn."""
    unlisted: float = 0.0
    """Owed to patches where no candidate that the trace has proposed the token."""
    looked_up: int = 0
    """Sources that were found near some position, whether or not a token is owed to them."""

    def as_json(self) -> str:
        """All of it as ASCII JSON, which any reader of PNG text takes."""
        longest = min(LONGEST_TEXT, ALL_TEXTS // (3 * max(len(self.sources), 1)))
        cut = tuple(_shortened(credit, longest) for credit in self.sources)
        return json.dumps({"version": 1, **asdict(replace(self, sources=cut))})

    def as_text(self) -> str:
        """The same for people, a line each; small shares of sources are summed up."""
        large = [credit for credit in self.sources if credit.share >= SMALL]
        small = [credit.share for credit in self.sources if credit.share < SMALL]
        lines = [("the model", self.model)]
        lines += [("tokens of the picture that was given", self.kept)] if self.kept else []
        lines += [(_described(credit), credit.share) for credit in large]
        lines += [(f"{len(small)} more sources, each below 0.5 %", sum(small))] if small else []
        lines += [("sources that the trace does not list", self.unlisted)] if self.unlisted else []
        shown = [f"{100 * share:5.1f} %  {text}" for text, share in lines]
        silent = self.looked_up - len(self.sources)
        if silent > 0:
            shown.append(f"{silent} more sources were looked up; no token is owed to them.")
        return "\n".join(["Shares of the picture's tokens:", *shown])


@dataclass(frozen=True)
class Owed:
    """Of one layer: what a picture owes to the rows of a table of sources."""

    sources: Sequence[Source]
    shares: Mapping[int, float]
    """By source number, of the picture."""
    unlisted: float = 0.0
    looked_up: Sequence[int] = ()
    """Numbers of all sources that were found."""


def make_credits(layers: Iterable[Owed], kept: float = 0.0) -> Credits:
    """The credits of a picture. Rows with the same facts, such as crops of one file, are one
    source, in one layer or several."""
    shares: dict[tuple[str, str, str, str], float] = {}
    looked_up: set[tuple[str, str, str, str]] = set()
    unlisted = 0.0
    for layer in layers:
        unlisted += layer.unlisted
        looked_up.update(_facts(layer.sources[n]) for n in layer.looked_up)
        for number, share in layer.shares.items():
            facts = _facts(layer.sources[number])
            shares[facts] = shares.get(facts, 0.0) + share
    credits = (Credit(*facts, share) for facts, share in shares.items())
    ordered = tuple(sorted(credits, key=lambda c: (-c.share, astuple(c))))
    model = max(0.0, 1 - kept - unlisted - sum(shares.values()))
    return Credits(ordered, model, kept, unlisted, len(looked_up | shares.keys()))


def _facts(source: Source) -> tuple[str, str, str, str]:
    return source.name, source.origin, source.licence, source.sha256


def _shortened(credit: Credit, longest: int) -> Credit:
    fields = ("name", "origin", "licence")
    return replace(credit, **{name: _cut(getattr(credit, name), longest) for name in fields})


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def one_line(text: str, longest: int = LONGEST_SHOWN) -> str:
    """A stranger's text in a line for people: no line break, nothing that cannot be printed."""
    return printable(" ".join(text.split()), longest=longest)


def _described(credit: Credit) -> str:
    facts = {
        "licence": credit.licence,
        "from": credit.origin,
        "sha256": credit.sha256,
    }
    known = [f"{label} {one_line(text)}" for label, text in facts.items() if text]
    return ", ".join([one_line(credit.name) or "a source without a name", *known])
