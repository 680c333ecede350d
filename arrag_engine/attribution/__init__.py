"""Who a picture owes what: credits from traces, their text, Content Credentials."""

from .credits import CHUNK, Credit, Credits, Owed, make_credits
from .traces import drawing_credits, trace_credits

__all__ = [
    "CHUNK",
    "Credit",
    "Credits",
    "Owed",
    "drawing_credits",
    "make_credits",
    "trace_credits",
]
