"""Fuzz the readers of foreign files, guided by coverage: every ending but `InputError` is a find.

    python -m scripts.fuzz index --seconds 600 --corpus ~/fuzz
    python -m scripts.fuzz all --seconds 60 --corpus ~/fuzz --plain

`--corpus` keeps a folder of interesting inputs for each target, and `finds-TARGET` with an input
for each fault. The guided way needs `pip install atheris` (Linux and macOS); `--plain` damages the
sound files blindly and needs nothing. A worker process does the work: one that is killed by a
signal, needs too much memory or works on one input for more than 5 seconds leaves that input, and
another one goes on. `--input FILE` runs one target on one file instead, to see what it ends with.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import mmap
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.fuzz_mutate import mutated

NAMES = (
    *("index", "checkpoint", "folder", "bin", "adapter", "header", "layout", "tokenizer", "json"),
    *("trace", "showo", "manifest"),
)
HANG = 5.0
"""Seconds."""
POLL = 0.25
MEMORY = 12 * 2**30
"""Bytes of address space of a worker: PyTorch alone takes some gigabytes."""
LARGEST = 2**21
"""Bytes of an input."""
FAST = Path("/dev/shm")


class Counter:
    """Executions and finds of a target, in a file that outlives its workers."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)

    def __getitem__(self, i: int) -> int:
        return int.from_bytes(self._map[8 * i : 8 * i + 8], "little")

    def add(self, i: int) -> None:
        self._map[8 * i : 8 * i + 8] = (self[i] + 1).to_bytes(8, "little")


@dataclass(frozen=True)
class Places:
    """Files of the fuzzing of one target."""

    corpus: Path
    finds: Path
    work: Path

    @property
    def last(self) -> Path:
        """The input that is being worked on."""
        return self.work / "last"

    @property
    def files(self) -> Path:
        """Folder for what the target writes."""
        return self.work / "files"


def main() -> int:
    a = parsed()
    if a.worker:
        return work(a.target, places(a.corpus, a.target, a.worker), a.seconds, a.plain, a.seed)
    if a.input:
        return run_once(a.target, a.input)
    found = 0
    for name in NAMES if a.target == "all" else (a.target,):
        with tempfile.TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as folder:
            found += supervise(name, places(a.corpus, name, Path(folder)), a)
    return 1 if found else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=(*NAMES, "all"))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (60)")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz"), help="folder (fuzz)")
    parser.add_argument("--plain", action="store_true", help="without atheris and coverage")
    parser.add_argument("--seed", type=int, default=None, help="of the damage (default: random)")
    parser.add_argument("--input", type=Path, help="run the target on this file only")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def places(corpus: Path, name: str, work: Path) -> Places:
    made = Places(corpus / name, corpus / f"finds-{name}", work)
    for folder in (made.corpus, made.finds, made.files):
        folder.mkdir(parents=True, exist_ok=True)
    return made


def supervise(name: str, at: Places, a: argparse.Namespace) -> int:
    """Run workers until the time is up; returns the number of finds."""
    start, count = time.monotonic(), Counter(at.work / "count")
    while (left := a.seconds - (time.monotonic() - start)) > 0:
        command = [sys.executable, "-m", "scripts.fuzz", name, "--seconds", str(left)]
        command += ["--corpus", str(at.corpus.parent), "--worker", str(at.work)]
        command += ["--plain"] * a.plain + (["--seed", str(a.seed)] if a.seed is not None else [])
        before = count[0]
        ending = watch(subprocess.Popen(command), count, left)
        if ending and count[0] == before:
            print(f"{name}: the worker does not start ({ending})", file=sys.stderr)
            return count[1] + 1
        if ending:
            count.add(1)
            data = at.last.read_bytes()
            kept = at.finds / f"{ending}-{hashlib.sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            print(f"{name}: FIND {ending}: {kept}", flush=True)
    seconds = time.monotonic() - start
    print(
        f"{name}: {count[0]} executions in {seconds:.0f} s ({count[0] / seconds:.0f} a second), "
        f"{count[1]} finds",
        flush=True,
    )
    return count[1]


def watch(worker: subprocess.Popen[bytes], count: Counter, seconds: float) -> str:
    """How a worker ended: empty if its time was up, `hang`, or the number of what it ended with."""
    done, moved, end = count[0], time.monotonic(), time.monotonic() + seconds
    while worker.poll() is None:
        time.sleep(POLL)
        now = time.monotonic()
        if count[0] != done:
            done, moved = count[0], now
        elif done and now - moved > HANG and worker.poll() is None:
            worker.kill()
            worker.wait()
            return "hang" if now < end else ""
    return f"exit{worker.returncode}" if worker.returncode else ""


def work(name: str, at: Places, seconds: float, plain: bool, seed: int | None) -> int:
    """The worker: run the target until the time is up."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    engine = blind if plain else guided
    return engine(name, at, seconds, seed)


def once(name: str, at: Places) -> Callable[[bytes], None]:
    """A function that runs the target on some bytes, counts, and keeps what is a find."""
    from scripts.fuzz_targets import TARGETS, check, skip_initialisation

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for number, data in enumerate(TARGETS[name].seeds(at.files)):
        (at.corpus / f"seed-{number}").write_bytes(data)
    shutil.rmtree(at.files)
    at.files.mkdir()
    skip_initialisation()
    count, seen = Counter(at.work / "count"), set[str]()

    def run(data: bytes) -> None:
        at.last.write_bytes(data)
        error = check(TARGETS[name], data, at.files)
        count.add(0)
        if error is not None and (label := label_of(error)) not in seen:
            seen.add(label)
            if not (at.finds / label).exists():
                count.add(1)
                (at.finds / label).write_bytes(data)
                trace = "".join(traceback.format_exception(error)[-6:])[-1500:]
                print(f"{name}: FIND {at.finds / label}\n{trace!a}", flush=True)

    return run


def label_of(error: BaseException) -> str:
    """The identity of a fault: its type, and the lines of the engine in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "arrag_engine" in f.filename] or frames
    return f"{type(error).__name__}-{Path(ours[-1].filename).stem}-{ours[-1].lineno}"


def blind(name: str, at: Places, seconds: float, seed: int | None) -> int:
    """Damage what lies in the corpus, without a look at what it covers."""
    run, rng, end = once(name, at), random.Random(seed), time.monotonic() + seconds
    pool = [path.read_bytes() for path in sorted(at.corpus.iterdir())]
    for data in pool:
        run(data)
    while time.monotonic() < end:
        run(damaged(rng.choice(pool), rng))
    return 0


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Once in most cases, now and then several times."""
    data = mutated(data, rng)
    while rng.random() < 0.3:
        data = mutated(data, rng)
    return data


def guided(name: str, at: Places, seconds: float, seed: int | None) -> int:
    """Damage what reached new lines of the engine; libFuzzer chooses."""
    atheris: Any = importlib.import_module("atheris")  # not among the requirements

    with atheris.instrument_imports(include=["arrag_engine"]):
        run = once(name, at)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return mutated(data, rng, lambda data: atheris.Mutate(data, max(1, len(data))))[:most]

    options = [f"-max_total_time={max(1, int(seconds))}", f"-max_len={LARGEST}", "-len_control=0"]
    options += ["-rss_limit_mb=0", "-timeout=600", "-print_final_stats=0", "-verbosity=0"]
    options += [f"-artifact_prefix={at.work}/"] + (
        [f"-seed={seed + 1}"] if seed is not None else []
    )
    atheris.Setup([sys.argv[0], *options, str(at.corpus)], run, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def run_once(name: str, path: Path) -> int:
    """Run a target on a file and show what it ends with."""
    from scripts.fuzz_targets import TARGETS, check

    with tempfile.TemporaryDirectory() as folder:
        error = check(TARGETS[name], path.read_bytes(), Path(folder))
    if error is not None:
        traceback.print_exception(error)
    return 0 if error is None else 1


if __name__ == "__main__":
    raise SystemExit(main())
