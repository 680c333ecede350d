"""Training FAiD adapters: from pictures with captions and an index to an adapter file.

The settings load without PyTorch; everything else is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .settings import TrainSettings

if TYPE_CHECKING:
    from .advice import suggest_steps
    from .data import Examples, prepare_examples, retrieve_codes
    from .loop import Place, score, train_adapter
    from .rehearsal import draw_own
    from .state import RunFolder
    from .team import Team, join_team

MODULES = {
    "advice": ("suggest_steps",),
    "data": ("Examples", "prepare_examples", "retrieve_codes"),
    "loop": ("Place", "score", "train_adapter"),
    "rehearsal": ("draw_own",),
    "state": ("RunFolder",),
    "team": ("Team", "join_team"),
}

__all__ = [
    "Examples",
    "Place",
    "RunFolder",
    "Team",
    "TrainSettings",
    "draw_own",
    "join_team",
    "prepare_examples",
    "retrieve_codes",
    "score",
    "suggest_steps",
    "train_adapter",
]


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
