"""Write the lock files in scripts/locks: `python -m scripts.lock`.

Needs uv (`python -m pip install uv`) and the ComfyUI that `run.py` fetches (or COMFYUI_DIR).

test.txt    what `run.py test` installs beside torch
draw.txt    what `run.py draw` installs beside torch; the same versions
torch.txt   what the default torch pair depends on; the same versions

All three are universal: markers choose the lines for a system and a Python version. No file holds
an index address or a command line. After writing, every line is checked to have a wheel for each
system and Python version that we support.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import run
from scripts.comfyui import ROOT, find_comfyui

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SYSTEMS = ("linux", "aarch64-unknown-linux-gnu", "macos", "windows")
MACOS = "14.0"
"""The oldest macOS whose wheels are asked for; av and faiss-cpu build for no older one."""
TORCH_PACKAGES = ("torch", "torchvision", "torchaudio")
HEADER = "# Made by scripts/lock.py for Python 3.10 to 3.13 on Linux, macOS and Windows.\n"


def main() -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI was found; run `python run.py draw` once, or set COMFYUI_DIR")
    test, draw, torch = (run.LOCKS / f"{name}.txt" for name in ("test", "draw", "torch"))
    write(test, run.loose_requirements("test", comfyui), exclude=TORCH_PACKAGES)
    write(draw, run.loose_requirements("draw", comfyui), exclude=TORCH_PACKAGES, like=test)
    write(torch, run.TORCH.split(), like=test)
    for lock in (test, torch):
        check_wheels(lock)


def write(
    lock: Path, requirements: Iterable[str], exclude: Iterable[str] = (), like: Path | None = None
) -> None:
    """Resolve requirements, without some packages and what only they need, into a lock file.

    Args:
        like: A lock file whose versions are kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted, unwanted, out = (Path(folder) / name for name in ("in.txt", "not.txt", "out.txt"))
        wanted.write_text("\n".join(requirements), encoding="utf-8")
        unwanted.write_text("\n".join(exclude), encoding="utf-8")
        command = ["compile", "--universal", "--python-version", PYTHONS[0], "--no-header"]
        command += ["--no-annotate", "--quiet", "--excludes", str(unwanted), "--output-file"]
        command += [str(out), str(wanted)]
        uv(*command, *(["--constraints", str(like)] if like else []))
        lines = out.read_text(encoding="utf-8")
    if re.search(r"://|^-", lines, re.MULTILINE):
        raise SystemExit(f"{lock.name} would hold an address or an option:\n{lines}")
    lock.write_text(HEADER + lines, encoding="utf-8")
    print(f"{lock.relative_to(ROOT)}: {len(lines.splitlines())} lines")


def check_wheels(lock: Path) -> None:
    """Find out whether each system and Python version finds a wheel for each of its lines."""
    with tempfile.TemporaryDirectory() as nowhere:
        for system in SYSTEMS:
            for python in PYTHONS:
                command = ["install", "--dry-run", "--quiet", "--no-deps", "--only-binary", ":all:"]
                command += ["--target", nowhere, "--python-platform", system]
                uv(*command, "--python-version", python, "--requirements", str(lock))
            print(f"{lock.name}: wheels for {system}, Python {', '.join(PYTHONS)}")


def uv(*arguments: str) -> None:
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": MACOS}
    command = [sys.executable, "-m", "uv", "pip", *arguments]
    if subprocess.call(command, env=environment, cwd=ROOT) != 0:
        raise SystemExit("uv failed; see its last lines above (install it with pip install uv)")


if __name__ == "__main__":
    main()
