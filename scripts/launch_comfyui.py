"""`python launch_comfyui.py MAIN.PY ARGS...`: run ComfyUI, also without torchvision's operators.

Some package mirrors pair a CPU build of torch with the CUDA build of torchvision. Its compiled half
cannot be loaded then, and importing it fails because it describes two operators that nobody
declared. ComfyUI needs only its Python half: declaring the two is enough.
"""

from __future__ import annotations

import runpy
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache  # once per process; the declarations live as long as what is returned
def declare_missing_operators() -> object:
    """Declare torchvision's operators if its compiled half does not fit the installed torch."""
    try:
        fits = not version("torch").endswith("+cpu") or version("torchvision").endswith("+cpu")
    except PackageNotFoundError:
        return None
    if fits:
        return None
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(operator)
    return library


if __name__ == "__main__":
    declare_missing_operators()
    main = Path(sys.argv[1]).resolve()
    sys.argv = [str(main), *sys.argv[2:]]
    sys.path[0] = str(main.parent)
    runpy.run_path(str(main), run_name="__main__")
