"""Shards on the machines of a Ray cluster: the one file that imports `ray`.

Ray passes pickles between the machines. So a cluster is for machines of one's own, and its address
comes from a command line or the environment, never from a file or a workflow.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from . import actor
from .lookup import ShardedLookup
from .manifest import Manifest, facts_of
from .wire import answer_of, plain_arguments

LOCAL = "local"
"""The address of a cluster of this machine alone, which ends with the process."""
TOKEN = "~/.ray/auth_token"
"""Where Ray keeps the token without which a cluster answers nobody."""
REACHING = 5.0
"""Seconds in which the first machine of a cluster must answer."""
PATIENCE = 120.0
"""Seconds in which shards of a machine that is lost must be found on others."""
OPENING = 5.0
"""The same when an index is opened: no machine was lost."""
ANSWERING = 60.0
"""Seconds in which a machine must have said which files it has."""
LOSSES = 3
"""How often actors may be lost while one question is answered."""
_connected = ""
"""The address that this process is connected to."""


def connect(address: str) -> Any:
    """The package `ray`, connected to the cluster at an address, or to a new one for `local`.

    Raises:
        InputError: The package is not installed, or there is no cluster.
    """
    global _connected
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # both are read by the import
    if address == LOCAL or _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray  # type: ignore[import]
        from ray.exceptions import RayError  # type: ignore[import]
    except ImportError:
        raise InputError(
            "a cluster needs the package ray; install it with: pip install 'arrag[cluster]'"
        ) from None
    if ray.is_initialized():
        if address != _connected:
            raise InputError(
                f"this program uses another Ray cluster than {address!r} already; restart it"
            )
        return ray
    _check_reachable(address)
    where: dict[str, Any] = {"address": address}  # without one, Ray takes any cluster that is here
    if address == LOCAL:
        where["include_dashboard"] = False
    try:
        with _found_by_workers() if address == LOCAL else nullcontext():
            ray.init(**where, configure_logging=False, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise _no_cluster(address, error) from error
    _connected = address
    return ray


def _check_reachable(address: str) -> None:
    """Ray would try for minutes, without a word."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), REACHING).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return InputError(
        f"there is no Ray cluster at {address!r} that answers ({reason}); start one with 'ray "
        f"start --head', or if it runs, copy {TOKEN} from its first machine to this one"
    )


@contextmanager
def _found_by_workers() -> Iterator[None]:
    """Processes that are started here find this package, which in ComfyUI need not be installed."""
    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = root if before is None else os.pathsep.join((root, before))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _has_token() -> bool:
    """Whether this machine has the token of a cluster, in one of the places where Ray looks."""
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    return bool(named) or Path(TOKEN).expanduser().is_file()


class Slot(NamedTuple):
    """Room for an actor: a core of a machine. In order, the first cores of all machines come
    before any second one."""

    core: int
    node: str
    """Id of the machine."""


class ShardActors:
    """The actors that search the shards of a manifest, no more on a machine than it has cores.

    An actor that is lost, or whose machine is, is replaced on a machine that has the files; the
    question is asked again.

    Raises:
        InputError: A shard is on no machine of the cluster, or not what the manifest says.
    """

    def __init__(self, manifest: Manifest, address: str) -> None:
        self.manifest = manifest
        self.ray = connect(address)
        self.ray.cloudpickle.register_pickle_by_value(actor)
        errors = self.ray.exceptions
        self.lost = (
            *(errors.RayActorError, errors.ActorUnschedulableError, errors.ObjectLostError),
            *(errors.NodeDiedError, errors.WorkerCrashedError, errors.OutOfMemoryError),
            errors.TaskUnschedulableError,
        )
        """What is raised where a process or a machine has gone."""
        self.actors: dict[Slot, Any] = {}
        self.slots: dict[int, Slot] = {}  # by shard
        self._place(range(len(manifest.shards)), OPENING)

    def ask(self, method: str, each: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """What shards answer to a method of `LocalLookup`, in order of their numbers."""
        left = {number: plain_arguments(arguments) for number, arguments in each.items()}
        answers: dict[int, Any] = {}
        for _ in range(LOSSES):
            asked = [
                (slot, self.actors[slot].ask.remote(method, {n: left[n] for n in numbers}))
                for slot, numbers in self._grouped(left)
            ]
            for slot, answer in asked:
                try:
                    problem, found = self.ray.get(answer)
                except self.lost:
                    self._forget(slot)
                    continue
                if problem:
                    raise InputError(problem)
                answers |= found
                left = {number: left[number] for number in left if number not in found}
            if not left:
                return [answer_of(method, answers[number]) for number in sorted(answers)]
            self._place(set(range(len(self.manifest.shards))) - set(self.slots), PATIENCE)
        shard = self.manifest.shards[min(left)]
        raise InputError(
            f"the processes that search {self.manifest.place(shard)} ended {LOSSES} times at the "
            "same question; look whether their machines have enough memory"
        )

    def _grouped(self, numbers: Any) -> list[tuple[Slot, list[int]]]:
        """(slot, its shards) of some shards."""
        groups: dict[Slot, list[int]] = {}
        for number in numbers:
            groups.setdefault(self.slots[number], []).append(number)
        return list(groups.items())

    def _forget(self, slot: Slot) -> None:
        """Drop an actor that is lost."""
        del self.actors[slot]
        self.slots = {number: own for number, own in self.slots.items() if own != slot}

    def _place(self, numbers: Any, patience: float) -> None:
        """Open some shards on machines that have them.

        Args:
            patience: Seconds in which such machines must be found.
        """
        end = time.monotonic() + patience
        left = set(numbers)
        while left:
            holders = self._holders(left)
            plan, missing = spread(self.manifest, sorted(left), holders, self.slots)
            if plan and not missing:
                left -= self._opened(plan)
            if left and time.monotonic() > end:
                shard = self.manifest.shards[min(missing or left)]
                raise InputError(
                    f"no machine of the cluster has {self.manifest.place(shard)}; put the file on "
                    "one of them, under this path, or on storage that all of them have"
                )
            if left:
                time.sleep(1.0)

    def _holders(self, numbers: Any) -> dict[Slot, set[int]]:
        """Which of some shards the machine of each slot has; of machines that are alive."""
        look = self.ray.remote(num_cpus=0, max_retries=0)(actor.present)
        paths = [str(self.manifest.place(shard)) for shard in self.manifest.shards]
        cores = {
            node["NodeID"]: max(1, int(node["Resources"].get("CPU", 1)))
            for node in self.ray.nodes()
            if node["Alive"]
        }
        asked = {node: look.options(**self._pinned(node)).remote(paths) for node in cores}
        found: dict[Slot, set[int]] = {}
        for node, answer in asked.items():
            try:
                own = set(self.ray.get(answer, timeout=ANSWERING)) & set(numbers)
            except (*self.lost, self.ray.exceptions.GetTimeoutError):
                continue
            found |= {Slot(core, node): own for core in range(cores[node])}
        return found

    def _opened(self, plan: Mapping[Slot, Sequence[int]]) -> set[int]:
        """Let the actors of slots, which are started if there is none, open shards as planned;
        returns those that are open then."""
        make = self.ray.remote(num_cpus=0, max_restarts=0)(actor.ShardActor)
        for slot in plan:
            if slot not in self.actors:
                self.actors[slot] = make.options(**self._pinned(slot.node)).remote()
        given = str(self.manifest.path), facts_of(self.manifest)
        asked = {slot: self.actors[slot].open.remote(*given, plan[slot]) for slot in plan}
        opened: set[int] = set()
        for slot, answer in asked.items():
            try:
                problem = self.ray.get(answer)
            except self.lost:
                self._forget(slot)
                continue
            if problem:
                raise InputError(problem)
            opened.update(plan[slot])
            self.slots |= dict.fromkeys(plan[slot], slot)
        return opened

    def _pinned(self, node: str) -> dict[str, Any]:
        pinned = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        return {"scheduling_strategy": pinned(node, soft=False)}


def spread(
    manifest: Manifest,
    numbers: Sequence[int],
    holders: Mapping[Slot, set[int]],
    open_: Mapping[int, Slot],
) -> tuple[dict[Slot, list[int]], list[int]]:
    """(shards by slot, shards that no machine has): each shard goes to the slot with the fewest
    pictures of those whose machines have its file.

    Args:
        holders: Which shards the machine of each slot has.
        open_: Where other shards are open.
    """
    plan: dict[Slot, list[int]] = {}
    load = dict.fromkeys(sorted(holders), 0)
    for number, slot in open_.items():
        if slot in load:
            load[slot] += manifest.shards[number].pictures
    missing = []
    for number in numbers:
        able = [slot for slot in load if number in holders[slot]]
        if not able:
            missing.append(number)
            continue
        slot = min(able, key=lambda slot: load[slot])
        load[slot] += manifest.shards[number].pictures
        plan.setdefault(slot, []).append(number)
    return plan, missing


class RayLookup(ShardedLookup):
    """The patches of an index whose shards are on the machines of a cluster: each look-up is one
    question to every actor, and finds what `ShardedLookup` finds."""

    shards: Any
    """`ShardActors`."""

    def ask(self, method: str, each: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self.shards.ask(method, dict(enumerate(each)))

    def ask_one(self, number: int, method: str, *arguments: Any) -> Any:
        return self.shards.ask(method, {number: arguments})[0]


def open_on_cluster(manifest: Manifest, address: str) -> RayLookup:
    """The shards of a manifest, on a cluster.

    Raises:
        InputError: There is no cluster, or a shard is missing or another file.
    """
    absolute = replace(manifest, path=manifest.path.absolute())
    return RayLookup(absolute, ShardActors(absolute, address))


def on_cluster(
    address: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], gpu: bool
) -> Iterator[Any]:
    """What a function returns for each of some arguments, in order, computed on a cluster: a core
    each, and a GPU where there are any and `gpu`. What a lost machine had begun is begun again.

    Raises:
        InputError: There is no cluster; what the function raises.
    """
    ray = connect(address)
    gpus = 1 if gpu and ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(function)
    left = deque(task.remote(*arguments) for arguments in calls)
    try:
        while left:
            answer = ray.get(left[0])
            left.popleft()  # before it is passed on: Ray ends the process if what is done is ended
            yield answer
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        if isinstance(error.cause, ModuleNotFoundError):
            raise InputError(actor.lacks(error.cause.name)) from None
        raise
    finally:
        _, running = ray.wait(list(left), num_returns=len(left), timeout=0) if left else ([], [])
        for answer in running:
            ray.cancel(answer)
