"""Find, start and stop a ComfyUI with this extension mounted in it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from scripts.comfyui_client import ComfyError

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".comfyui"
PACK = "ComfyUI-ARRAG"
LAUNCHER = Path(__file__).with_name("launch_comfyui.py")


def find_comfyui() -> Path | None:
    """The ComfyUI of COMFYUI_DIR, else the newest one that `run.py` unpacked, else None."""
    if folder := os.environ.get("COMFYUI_DIR"):
        return Path(folder).resolve()
    unpacked = max(CACHE.glob("ComfyUI-*/main.py"), default=None)
    return unpacked.parent if unpacked else None


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def mount(base: Path, pack: Path = ROOT, name: str = PACK) -> Path:
    """Make a pack a custom node of a base directory: a link, or a copy where links fail."""
    target = base / "custom_nodes" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(pack, target_is_directory=True)
    except OSError:  # Windows without developer mode, some network and USB drives
        hidden = shutil.ignore_patterns(".*", "__pycache__", "tests")
        shutil.copytree(pack, target, ignore=hidden)
    return target


class Server:
    """One ComfyUI process with a base directory of its own: nothing is written into its folder.

    Use it as a context manager; `log` holds everything the process prints. `threads` limits what
    torch computes with.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        port: int | None = None,
        options: Iterable[str] = (),
        threads: int | None = None,
    ) -> None:
        self.comfyui = comfyui
        self.base = base
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "comfyui.log"
        self.options = [*options]
        self.environment = dict(os.environ)
        if threads:
            self.environment["OMP_NUM_THREADS"] = str(threads)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 180) -> None:
        """Start the process and wait until it answers; ComfyError with its last lines if not."""
        command = [sys.executable, str(LAUNCHER), str(self.comfyui / "main.py")]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        command += ["--disable-api-nodes", "--base-directory", str(self.base)]
        command += ["--database-url", "sqlite:///:memory:", *self.options]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.comfyui,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ComfyError(f"ComfyUI did not start; {self.log} ends with\n{self.tail()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def wait(self) -> None:
        """Block until the process ends by itself."""
        if self._process is not None:
            self._process.wait()

    def tail(self, lines: int = 15) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5):
                return True
        except OSError:
            return False
