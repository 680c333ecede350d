"""Keep a release as test fixtures: `python -m scripts.freeze VERSION`.

Writes tests/frozen/VERSION: the templates and their API twins, the nodes' inputs and outputs, some
commands, and the SHA-256 of the tokens that all of them draw in float32. Later versions must draw
the same. Needs an environment and a ComfyUI, as `python run.py test` leaves them.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from scripts.comfyui import ROOT, Server, find_comfyui, mount
from scripts.comfyui_client import Client, ComfyError, Workflow

FROZEN = ROOT / "tests" / "frozen"
PROBE = Path(__file__).with_name("token_hash_node")
PROBE_TYPE = "ARRAGTest_TokenHash"
SAMPLER_TOKENS = {
    "ARRAG_Sampler": 1,
    "ARRAG_DAiDSampler": 1,
    "ARRAG_FAiDSampler": 1,
    "ARRAG_MaskedSampler": 1,
}
"""Sampler nodes -> which of their outputs are the tokens."""
COMMANDS = (
    "generate --prompt 'a red car and a blue house' --cfg 1.5 --temperature 0.3 --seed 3",
    "generate --prompt 'an owl' --index pocket --only owl --neighborhood causal-24 --borders zero "
    "--position-weight 2 --weight 0.9 --retrieval-temperature 0.2 --neighbours 16 --cfg 1 "
    "--temperature 0.3 --seed 4 --batch 2",
    "generate --prompt 'a flamingo' --index pocket --only flamingo --adapter pocket --weight 0.5 "
    "--retrieval-temperature 0.2 --neighbours 16 --cfg 1.5 --temperature 0.3 --top-p 0.95 "
    "--window 4 --seed 2",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", help="name of the folder below tests/frozen")
    target = FROZEN / parser.parse_args().version
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI was found; set COMFYUI_DIR or run `python run.py test` first")
    if target.exists():
        raise SystemExit(f"{target} exists: a frozen release is never changed")
    with tempfile.TemporaryDirectory() as folder:
        base, half_done = Path(folder) / "base", Path(folder) / "frozen"
        shutil.copytree(ROOT / "workflows", half_done, ignore=shutil.ignore_patterns("*.jpg"))
        commands = {line: command_hashes(line, Path(folder)) for line in COMMANDS}
        mount(base)
        mount(base, PROBE, PROBE.name)
        with (
            Server(comfyui, base, options=["--cpu"], threads=1) as server,
            Client(server.url) as client,
        ):
            write_json(half_done / "nodes.json", node_signatures(client.get("/object_info")))
            drawn = {
                path.stem: workflow_hashes(client, json.loads(path.read_text(encoding="utf-8")))
                for path in sorted((half_done / "api").glob("*.json"))
            }
        write_json(half_done / "tokens.json", {"workflows": drawn, "commands": commands})
        shutil.copytree(half_done, target)
    print(target)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def node_signatures(object_info: dict[str, Any]) -> dict[str, Any]:
    """Inputs and outputs of our nodes, in the order in which workflows store them.

    An input is [name, type, "required" or "optional", choices of a combo or None].
    """
    return {
        node: {
            "inputs": [
                [name, input_type(spec), group, choices(spec)]
                for group in ("required", "optional")
                for name, spec in schema["input"].get(group, {}).items()
            ],
            "outputs": [
                list(pair) for pair in zip(schema["output"], schema["output_name"], strict=True)
            ],
        }
        for node, schema in object_info.items()
        if node.startswith("ARRAG_")
    }


def input_type(spec: list[Any]) -> str:
    """The type of an input: ComfyUI writes a combo as its name or as the list of its choices."""
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def choices(spec: list[Any]) -> list[str] | None:
    """What a combo offers."""
    if isinstance(spec[0], list):
        return spec[0]
    return spec[1]["options"] if spec[0] == "COMBO" else None


def workflow_hashes(client: Client, workflow: Workflow) -> dict[str, list[str]]:
    """Sampler node -> hash of the tokens of each picture that it draws in float32."""
    workflow = copy.deepcopy(workflow)
    probes = {}
    for node, body in list(workflow.items()):
        if body["class_type"] == "ARRAG_LoadModel":
            body["inputs"]["dtype"] = "fp32"
        if body["class_type"] in SAMPLER_TOKENS:
            probes[node] = f"hash of {node}"
            link = [node, SAMPLER_TOKENS[body["class_type"]]]
            workflow[probes[node]] = {"class_type": PROBE_TYPE, "inputs": {"tokens": link}}
    result = client.run(workflow)
    if result.error:
        raise ComfyError(result.error)
    return {node: result.outputs[probe]["sha256"] for node, probe in probes.items()}


def command_hashes(line: str, folder: Path) -> list[str]:
    """Hash of the tokens of each picture that a `generate` command draws in float32."""
    out, report = folder / "picture.png", folder / "report.json"
    words = [*shlex.split(line), "--dtype", "fp32", "--device", "cpu"]
    command = [sys.executable, "-m", "arrag_engine", *words, "--out", out, "--json", report]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    images = json.loads(report.read_text(encoding="utf-8"))["images"]
    return [
        hashlib.sha256(np.array(image["tokens"], "<i8").tobytes()).hexdigest() for image in images
    ]


if __name__ == "__main__":
    main()
