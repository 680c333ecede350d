"""Make the templates' thumbnails by running them: `python -m scripts.make_thumbnails`.

Needs an environment and a ComfyUI, as `python run.py test` leaves them. A thumbnail is square; two
pictures of one workflow are side by side in it. The template for one's own pictures draws from
pictures of the benchmark.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

from PIL import Image

from scripts.comfyui import ROOT, Server, find_comfyui, mount
from scripts.comfyui_client import Client, ComfyError, node_of
from scripts.pocket.bench import DATA
from scripts.pocket.bench.scenes import read_scenes

SIDE = 384  # pixels
OWN_FOLDER = "mine"
OWN = "a kangaroo"
"""Caption of the pictures of one's own."""


def main() -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI was found; set COMFYUI_DIR or run `python run.py test` first")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        mount(base)
        write_own_pictures(base / "input" / OWN_FOLDER)
        with (
            Server(comfyui, base, options=["--cpu"]) as server,
            Client(server.url) as client,
        ):
            for path in sorted((ROOT / "workflows" / "api").glob("*.json")):
                target = ROOT / "workflows" / f"{path.stem}.jpg"
                squared(run(client, path)).save(target, quality=90)
                print(target)


def run(client: Client, path: Path) -> list[Image.Image]:
    """The pictures that a workflow saves, in the order of its nodes."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    if path.stem == "own_pictures":
        workflow[node_of(workflow, "ARRAG_BuildIndex")]["inputs"]["folder"] = OWN_FOLDER
        workflow[node_of(workflow, "ARRAG_DAiDSampler")]["inputs"]["prompt"] = OWN
    result = client.run(workflow)
    if result.error:
        raise ComfyError(f"{path.name}: {result.error}")
    references = [
        image for node in sorted(result.outputs, key=int) for image in result.images(node)
    ]
    return [Image.open(io.BytesIO(client.image(reference))) for reference in references]


def write_own_pictures(folder: Path) -> None:
    """Pictures of a subject outside the model's vocabulary, as a user would add them."""
    folder.mkdir(parents=True)
    scenes = [s for s in read_scenes(DATA) if s.truth.text.startswith(OWN)]
    for number, scene in enumerate(scenes):
        Image.fromarray(scene.pixels).save(folder / f"{number}.png")


def squared(pictures: list[Image.Image], gap: int = 8) -> Image.Image:
    """The pictures side by side on a white square, whole and as large as they fit."""
    side = (SIDE - gap * (len(pictures) - 1)) // len(pictures)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    for number, picture in enumerate(pictures):
        scaled = picture.convert("RGB").resize((side, side))
        canvas.paste(scaled, (number * (side + gap), (SIDE - side) // 2))
    return canvas


if __name__ == "__main__":
    main()
