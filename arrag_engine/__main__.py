"""`python -m arrag_engine`, and the command `arrag` of the installed package."""

import sys
from importlib.util import find_spec

NO_TORCH = (
    "arrag needs PyTorch, which is not installed; run `pip install 'arrag[torch]'`, or install the "
    "build for your GPU as pytorch.org describes"
)


def main() -> int:
    """Run one command; returns the exit code."""
    if find_spec("torch") is None:
        sys.stderr.write(f"error: {NO_TORCH}\n")
        return 2
    from .cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
