"""Shards on the machines of a Ray cluster: the one file that imports `ray`.

Ray passes pickles between the machines. So a cluster is for machines of one's own, and its address
comes from a command line or the environment, never from a file or a workflow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import InputError
from .lookup import LocalLookup, ShardedLookup
from .manifest import Manifest, open_shard

LOCAL = "local"
"""The address of a cluster of this machine alone, which ends with the process."""
PATIENCE = 120.0
"""Seconds in which shards of a machine that is lost must be found on others."""
STARTING = 60.0
"""Seconds in which a machine must have opened its shards."""


def connect(address: str) -> Any:
    """The package `ray`, connected to the cluster at an address, or to a new one for `local`.

    Raises:
        InputError: The package is not installed, or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import
    try:
        import ray  # type: ignore[import]
    except ImportError:
        raise InputError(
            "a cluster needs the package ray; install it with: pip install 'arrag[cluster]'"
        ) from None
    if ray.is_initialized():
        return ray
    where: dict[str, Any] = {} if address == LOCAL else {"address": address}
    if address == LOCAL:
        where = {"include_dashboard": False}
    try:
        ray.init(**where, configure_logging=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            f"there is no Ray cluster at {address!r} ({reason}); start one with 'ray start --head'"
        ) from error
    return ray


class Machine:
    """An actor: the shards that one machine searches, all of them at once."""

    def __init__(self, manifest: Manifest, numbers: Sequence[int]) -> None:
        self.shards = {number: LocalLookup(open_shard(manifest, number)) for number in numbers}
        self.pool = ThreadPoolExecutor(max(1, min(len(numbers), os.cpu_count() or 1)))

    def node(self) -> str:
        """Id of the machine; answered once the shards are open."""
        import ray  # type: ignore[import]

        return ray.get_runtime_context().get_node_id()

    def ask(self, method: str, each: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """What shards answer to a method of `LocalLookup`, by their numbers."""

        def answer(number: int) -> Any:
            return getattr(self.shards[number], method)(*each[number])

        if len(each) == 1:
            return {number: answer(number) for number in each}
        return dict(zip(each, self.pool.map(answer, each), strict=True))


def present(manifest: Manifest) -> list[int]:
    """Numbers of the shards whose files are on this machine."""
    places = enumerate(map(manifest.place, manifest.shards))
    return [number for number, place in places if place.is_file()]


class Machines:
    """The actors that search the shards of a manifest.

    An actor that is lost, or whose machine is, is replaced on a machine that has the files; the
    question is asked again.

    Raises:
        InputError: A shard is on no machine of the cluster, or not what the manifest says.
    """

    def __init__(self, manifest: Manifest, address: str) -> None:
        self.manifest = manifest
        self.ray = connect(address)
        self.actors: dict[int, Any] = {}  # by shard
        self._place(range(len(manifest.shards)))

    def ask(self, method: str, each: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """What shards answer to a method of `LocalLookup`, in order of their numbers."""
        answers: dict[int, Any] = {}
        while left := {n: arguments for n, arguments in each.items() if n not in answers}:
            asked = [
                (numbers, actor.ask.remote(method, {n: left[n] for n in numbers}))
                for actor, numbers in self._grouped(left)
            ]
            lost: list[int] = []
            for numbers, answer in asked:
                try:
                    answers |= self._get(answer)
                except self.ray.exceptions.RayActorError:
                    lost += numbers
            if lost:
                self._place(lost)
        return [answers[number] for number in sorted(answers)]

    def _grouped(self, numbers: Any) -> list[tuple[Any, list[int]]]:
        """(actor, its shards) of some shards."""
        groups: dict[Any, list[int]] = {}
        for number in numbers:
            groups.setdefault(self.actors[number], []).append(number)
        return list(groups.items())

    def _get(self, answer: Any, timeout: float | None = None) -> Any:
        """A result of the cluster; what went wrong there with a sentence is raised here."""
        try:
            return self.ray.get(answer, timeout=timeout)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise

    def _place(self, numbers: Any) -> None:
        """New actors for some shards."""
        end = time.monotonic() + PATIENCE
        left = set(numbers)
        while left:
            plan, missing = spread(self.manifest, sorted(left), self._holders(left))
            if plan and not missing:
                left -= self._started(plan)
            if left and time.monotonic() > end:
                shard = self.manifest.shards[min(missing or left)]
                raise InputError(
                    f"no machine of the cluster has {self.manifest.place(shard)}; put the file on "
                    "one of them, under this path, or on storage that all of them have"
                )
            if left:
                if not self._waits():
                    end = 0.0
                time.sleep(1.0)

    def _waits(self) -> bool:
        """Whether a machine may still come back or be found dead: some are not alive, or an actor
        of before was lost."""
        return bool(self.actors) or any(not node["Alive"] for node in self.ray.nodes())

    def _holders(self, numbers: Any) -> dict[str, set[int]]:
        """Which of some shards each living machine has, by the machine's id."""
        look = self.ray.remote(num_cpus=0, max_retries=0)(present)
        nodes = [node["NodeID"] for node in self.ray.nodes() if node["Alive"]]
        asked = {node: look.options(**self._pinned(node)).remote(self.manifest) for node in nodes}
        found: dict[str, set[int]] = {}
        for node, answer in asked.items():
            try:
                found[node] = set(self._get(answer, STARTING)) & set(numbers)
            except self.ray.exceptions.RayError:
                continue  # a machine that has just gone
        return found

    def _started(self, plan: Mapping[str, Sequence[int]]) -> set[int]:
        """Start an actor on each machine of a plan; returns the shards that are open then."""
        make = self.ray.remote(num_cpus=0, max_restarts=0)(Machine)
        actors = {
            node: make.options(**self._pinned(node)).remote(self.manifest, numbers)
            for node, numbers in plan.items()
        }
        open_: set[int] = set()
        for node, actor in actors.items():
            try:
                self._get(actor.node.remote(), STARTING)
            except self.ray.exceptions.RayActorError as error:
                if sentence := said(error):
                    raise InputError(sentence) from None
                continue  # the machine has gone meanwhile
            except self.ray.exceptions.GetTimeoutError:
                continue
            open_.update(plan[node])
            self.actors |= dict.fromkeys(plan[node], actor)
        return open_

    def _pinned(self, node: str) -> dict[str, Any]:
        pinned = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        return {"scheduling_strategy": pinned(node, soft=False)}


def said(error: Exception) -> str:
    """The sentence of the `InputError` with which an actor failed to start; empty if it is none."""
    lines = [line.strip() for line in str(error).splitlines() if "InputError: " in line]
    return lines[-1].split("InputError: ", 1)[1] if lines else ""


def spread(
    manifest: Manifest, numbers: Sequence[int], holders: Mapping[str, set[int]]
) -> tuple[dict[str, list[int]], list[int]]:
    """(shards by machine, shards that no machine has): each shard goes to the machine with the
    fewest pictures of those that have its file.

    Args:
        holders: Which shards each machine has.
    """
    plan: dict[str, list[int]] = {}
    load = dict.fromkeys(sorted(holders), 0)
    missing = []
    for number in numbers:
        able = [node for node in load if number in holders[node]]
        if not able:
            missing.append(number)
            continue
        node = min(able, key=lambda node: load[node])
        load[node] += manifest.shards[number].pictures
        plan.setdefault(node, []).append(number)
    return plan, missing


class RayLookup(ShardedLookup):
    """The patches of an index whose shards are on the machines of a cluster: each look-up is one
    question to every machine, and finds what `ShardedLookup` finds."""

    shards: Any
    """`Machines`."""

    def ask(self, method: str, each: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self.shards.ask(method, dict(enumerate(each)))

    def ask_one(self, number: int, method: str, *arguments: Any) -> Any:
        return self.shards.ask(method, {number: arguments})[0]


def open_on_cluster(manifest: Manifest, address: str) -> RayLookup:
    """The shards of a manifest, on a cluster.

    Raises:
        InputError: There is no cluster, or a shard is missing or another file.
    """
    return RayLookup(manifest, Machines(manifest, address))


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
    answers = [task.remote(*arguments) for arguments in calls]
    try:
        for answer in answers:
            try:
                yield ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise InputError(str(error.cause)) from None
                raise
    finally:
        for answer in answers:
            ray.cancel(answer, force=False)
