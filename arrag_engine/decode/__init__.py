"""Decoding: from a model and a recipe to token grids."""

from .draw import draw_one_by_one, draw_pictures
from .fixed import WIDTH, pass_width
from .graphs import GraphRecorder
from .kept import Kept
from .recipe import Drawing, Progress, Recipe
from .recorded import KeptPasses
from .trace import Trace, TraceLayer
from .trace_file import is_trace, load_trace, save_trace, trace_facts

__all__ = [
    "WIDTH",
    "Drawing",
    "GraphRecorder",
    "Kept",
    "KeptPasses",
    "Progress",
    "Recipe",
    "Trace",
    "TraceLayer",
    "draw_one_by_one",
    "draw_pictures",
    "is_trace",
    "load_trace",
    "pass_width",
    "save_trace",
    "trace_facts",
]
