"""`python -m arrag_engine`, and the command `arrag` of the installed package."""

import os
import signal
import sys
from importlib.util import find_spec
from types import FrameType

NO_TORCH = (
    "arrag needs PyTorch, which is not installed; run `pip install 'arrag[torch]'`, or install the "
    "build for your GPU as pytorch.org describes"
)


def main() -> int:
    """Run one command; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    if find_spec("torch") is None:
        sys.stderr.write(f"error: {NO_TORCH}\n")
        return 2
    # Read when PyTorch loads its thread library. Waiting threads that spin take the core that the
    # thread they wait for needs, as soon as another process computes too (docs/measurements.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .cli import main as run

    return run()


def interrupt(_signal: int, frame: FrameType | None) -> None:
    """Ctrl-C as everywhere, but during an import the program ends at once: there an exception may
    be swallowed, or printed as one of the module that is being imported."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, b"stopped\n")
            os._exit(1)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
