"""Talk to a running ComfyUI as a browser does: queue workflows, watch them, fetch the pictures.

Only the websocket needs something beyond the standard library: aiohttp, which ComfyUI brings.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

Workflow = dict[str, Any]  # API format: node id -> {"class_type": ..., "inputs": {...}}

FINAL_EVENTS = {"execution_success", "execution_error", "execution_interrupted"}
PREVIEW_IMAGE, TEXT = 1, 3  # ComfyUI's numbers for kinds of binary messages


class ComfyError(Exception):
    """ComfyUI did not start, or did not do what it was asked; the message is for people."""


class Refused(ComfyError):
    """An HTTP request that ComfyUI answered with an error status."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"ComfyUI answered {status}: {body[:500]}")
        self.status = status
        self.body = body

    @property
    def details(self) -> dict[str, Any]:
        """The answer as JSON: `error` and `node_errors` of a refused workflow."""
        return json.loads(self.body)


def node_of(workflow: Workflow, class_type: str) -> str:
    """Id of the one node of this class."""
    [found] = [node for node, body in workflow.items() if body["class_type"] == class_type]
    return found


@dataclass(frozen=True)
class Message:
    """One websocket message: `data` is its JSON.

    For kind "preview" it is the picture's bytes, for "text" what a node shows below itself.
    """

    kind: str
    data: Any
    time: float = field(default_factory=time.monotonic)

    def belongs_to(self, prompt_id: str) -> bool:
        """Whether it belongs to this run; binary ones carry no id and belong to the present run."""
        return not isinstance(self.data, dict) or self.data.get("prompt_id") == prompt_id


@dataclass(frozen=True)
class Result:
    """How a queued workflow ended."""

    prompt_id: str
    messages: list[Message]
    outputs: dict[str, Any]  # node id -> what it showed, as in /history

    def of(self, kind: str) -> list[Any]:
        """The data of all messages of a kind, in order."""
        return [message.data for message in self.messages if message.kind == kind]

    @property
    def ending(self) -> str:
        """execution_success, execution_error or execution_interrupted."""
        return self.messages[-1].kind

    @property
    def error(self) -> str:
        """The sentence of the exception that ended the run, or an empty string."""
        return self.messages[-1].data.get("exception_message", "").strip()

    @property
    def executed(self) -> set[str]:
        """Ids of the nodes that did their work in this run (the rest came from the cache)."""
        return {data["node"] for data in self.of("executing") if data["node"]} - self.cached

    @property
    def cached(self) -> set[str]:
        """Ids of the nodes whose results came from the cache."""
        return {node for data in self.of("execution_cached") for node in data["nodes"]}

    def images(self, node: str | None = None) -> list[dict[str, str]]:
        """References of the pictures that all nodes, or one, saved or previewed."""
        nodes = self.outputs if node is None else {node: self.outputs.get(node, {})}
        return [image for output in nodes.values() for image in output.get("images", [])]


class Client:
    """A browser's view of a running ComfyUI: HTTP requests and one websocket.

    The websocket is read by a thread from `__enter__` to `__exit__`; `messages` grows meanwhile.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.id = uuid.uuid4().hex
        self.messages: list[Message] = []
        self._arrived = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run_loop, daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        if not self._connected.wait(timeout=30):
            raise ComfyError(f"no websocket at {self.url}")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(timeout=10)

    def get(self, path: str) -> Any:
        """JSON of a GET request; Refused if the status is an error."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        """Body of a GET request."""
        return self._request(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any) -> Any:
        """JSON answer (None if empty) to a JSON POST request."""
        headers = {"Content-Type": "application/json"}
        data = json.dumps(body).encode()
        answer = self._request(urllib.request.Request(self.url + path, data, headers))
        return json.loads(answer) if answer else None

    def queue(self, workflow: Workflow) -> str:
        """Queue a workflow in API format; returns its prompt id, Refused if it is not valid."""
        body = {"prompt": workflow, "client_id": self.id}
        return self.post("/prompt", body)["prompt_id"]

    def run(
        self,
        workflow: Workflow,
        timeout: float = 300,
        on_message: Callable[[Message], None] | None = None,
    ) -> Result:
        """Queue a workflow and wait for its end, whichever it is."""
        start = len(self.messages)
        return self.result(self.queue(workflow), start, timeout, on_message)

    def result(
        self,
        prompt_id: str,
        start: int = 0,
        timeout: float = 300,
        on_message: Callable[[Message], None] | None = None,
    ) -> Result:
        """Wait for the end of a queued workflow, reading messages from position `start` on."""
        seen: list[Message] = []
        deadline = time.monotonic() + timeout
        while not seen or seen[-1].kind not in FINAL_EVENTS:
            message = self.message(start, deadline - time.monotonic())
            start += 1
            if message.belongs_to(prompt_id):
                seen.append(message)
                if on_message:
                    on_message(message)
        return Result(prompt_id, seen, self._outputs(prompt_id))

    def message(self, position: int, timeout: float) -> Message:
        """The message at this position, waiting for it if need be."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.messages) > position, timeout):
                raise ComfyError(f"ComfyUI sent nothing more for {timeout:.0f} seconds")
            return self.messages[position]

    def interrupt(self) -> None:
        """Stop the running workflow, as the browser's stop button does."""
        self.post("/interrupt", {})

    def image(self, reference: dict[str, str]) -> bytes:
        """File contents of a picture named in a result."""
        return self.get_bytes("/view?" + urllib.parse.urlencode(reference))

    def _outputs(self, prompt_id: str) -> dict[str, Any]:
        for _ in range(50):  # the history is written a moment after the last message is sent
            if prompt_id in (history := self.get(f"/history/{prompt_id}")):
                return history[prompt_id]["outputs"]
            time.sleep(0.1)
        raise ComfyError(f"ComfyUI's history lacks the finished run {prompt_id}")

    def _request(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from None

    def _run_loop(self) -> None:
        self._task = self._loop.create_task(self._listen())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.close()

    async def _listen(self) -> None:
        address = f"{self.url}/ws?clientId={self.id}"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as websocket,
        ):
            self._connected.set()
            async for frame in websocket:
                message = _parse(frame.data)
                with self._arrived:
                    self.messages.append(message)
                    self._arrived.notify_all()


def _parse(frame: str | bytes) -> Message:
    if isinstance(frame, str):
        body = json.loads(frame)
        return Message(body["type"], body.get("data") or {})
    kind, length, rest = int.from_bytes(frame[:4], "big"), frame[4:8], frame[8:]
    if kind == PREVIEW_IMAGE:  # `length` is a number for JPEG or PNG here; the file has its type
        return Message("preview", rest)
    if kind == TEXT:  # the length of the node's id, the id, the text
        return Message("text", rest[int.from_bytes(length, "big") :].decode())
    return Message("binary", frame)
