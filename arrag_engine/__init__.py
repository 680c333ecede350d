"""Retrieval-augmented autoregressive image generation (AR-RAG, arXiv 2506.06962).

    import arrag_engine as arrag

    model, index = arrag.load_model("pocket"), arrag.load_index("pocket")
    drawing = arrag.draw(model, "a flamingo", seeds=[7], layers=[arrag.Layer(index)])
    drawing.images[0].save("flamingo.png")

docs/api.md describes it. Importing the package is quick: PyTorch is imported when a name that needs
it is first used. Nothing here knows of ComfyUI.
"""

import importlib

_HOMES = {
    "api": (
        *("Drawing", "build_index", "draw", "encode", "keep"),
        *("load_adapter", "load_index", "load_model"),
    ),
    "decode": ("Kept", "load_trace", "save_trace"),
    "errors": ("InputError",),
    "faid": ("Faid",),
    "index": ("KeySpec", "PatchIndex"),
    "layers": ("KeyChoice", "Layer"),
    "outpainting": ("Outpainting",),
    "retrieval": ("Steering",),
    "settings": ("SamplingChoice", "ScheduleChoice"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *_HOME})
