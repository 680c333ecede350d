"""Draw one picture in a real ComfyUI with the shipped DAiD workflow: the work of `run.py draw`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from scripts.comfyui import CACHE, ROOT, Server, find_comfyui, mount
from scripts.comfyui_client import Client, ComfyError, Message, node_of

WORKFLOW = ROOT / "workflows" / "api" / "daid.json"
SAMPLER = "ARRAG_DAiDSampler"


def main() -> int:
    options = parse_arguments()
    try:
        draw(options)
    except ComfyError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py draw", description=__doc__)
    parser.add_argument("--prompt", help="what to draw (default: the workflow's)")
    parser.add_argument(
        "--only",
        help="pictures of the index to retrieve from: a part of their captions (default: those "
        "that share the prompt's rare words)",
    )
    parser.add_argument("--seed", type=int, help="another seed, another picture")
    parser.add_argument("--out", type=Path, default=Path("arrag.png"), help="PNG to write")
    parser.add_argument("--port", type=int, help="port of ComfyUI (default: a free one)")
    parser.add_argument("--serve", action="store_true", help="stay up for the browser until Ctrl-C")
    return parser.parse_args()


def draw(options: argparse.Namespace) -> None:
    """Start ComfyUI, queue the workflow, save its picture."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise ComfyError("no ComfyUI was found; set COMFYUI_DIR or start this with `run.py draw`")
    base = CACHE / "base"
    mount(base)
    print(f"Starting ComfyUI ({comfyui})", flush=True)
    with Server(comfyui, base, options.port, device_options()) as server:
        with Client(server.url) as client:
            if SAMPLER not in client.get("/object_info"):
                raise ComfyError(f"the extension did not load; see {server.log}")
            save_picture(client, options)
        if options.serve:
            print(f"ComfyUI is at {server.url} until Ctrl-C", flush=True)
            server.wait()


def device_options() -> list[str]:
    """Options for ComfyUI: without an accelerator it needs --cpu."""
    if version("torch").endswith("+cpu"):
        return ["--cpu"]  # without the two seconds that it takes to ask torch
    import torch

    return [] if torch.accelerator.is_available() else ["--cpu"]


def save_picture(client: Client, options: argparse.Namespace) -> None:
    """Run the workflow with the user's prompt and seed and write its PNG."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    if options.only is not None:
        workflow[node_of(workflow, "ARRAG_LoadIndex")]["inputs"]["only"] = options.only
    inputs = workflow[node_of(workflow, SAMPLER)]["inputs"]
    chosen = {"prompt": options.prompt, "seed": options.seed}
    inputs.update({name: value for name, value in chosen.items() if value is not None})
    print(f"Drawing {inputs['prompt']!r}, seed {inputs['seed']}", flush=True)
    result = client.run(workflow, on_message=show_progress(sys.stderr.isatty()))
    if result.error:
        raise ComfyError(result.error)
    options.out.write_bytes(client.image(result.images()[0]))
    print(f"Saved {options.out.resolve()}", flush=True)


def show_progress(terminal: bool) -> Callable[[Message], None]:
    """A message handler that keeps one line of the terminal up to date."""

    def show(message: Message) -> None:
        if terminal and message.kind == "progress":
            value, whole = message.data["value"], message.data["max"]
            end = "\n" if value == whole else ""
            print(f"\r{100 * value / whole:3.0f} % drawn", end=end, file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    sys.exit(main())
