"""Make the templates' thumbnails by running them.

    python -m scripts.make_thumbnails [NAME …]

Needs an environment and a ComfyUI, as `python run.py test` leaves them. A thumbnail is square; two
pictures of one workflow are side by side in it, more of them in rows of two. The template for one's
own pictures draws from pictures of the benchmark.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

from scripts.comfyui import ROOT, Server, find_comfyui, mount
from scripts.comfyui_client import Client, ComfyError, node_of
from scripts.pocket.bench import DATA
from scripts.pocket.bench.scenes import read_scenes

SIDE = 384  # pixels
SAVES = ("SaveImage", "ARRAG_SaveWithAttribution")
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
            twins = ROOT / "workflows" / "api"
            names = sys.argv[1:] or sorted(path.stem for path in twins.glob("*.json"))
            for path in (twins / f"{name}.json" for name in names):
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
        image
        for node in sorted(result.outputs, key=int)
        if workflow[node]["class_type"] in SAVES
        for image in result.images(node)
    ]
    return [Image.open(io.BytesIO(client.image(reference))) for reference in references]


def write_own_pictures(folder: Path) -> None:
    """Pictures of a subject outside the model's vocabulary, as a user would add them."""
    folder.mkdir(parents=True)
    scenes = [s for s in read_scenes(DATA) if s.truth.text.startswith(OWN)]
    for number, scene in enumerate(scenes):
        Image.fromarray(scene.pixels).save(folder / f"{number}.png")


def squared(pictures: list[Image.Image], gap: int = 8) -> Image.Image:
    """The pictures in rows of two on a white square, whole and as large as they fit."""
    columns, rows = min(len(pictures), 2), -(-len(pictures) // 2)
    side = (SIDE - gap * (columns - 1)) // columns
    top = (SIDE - rows * side - (rows - 1) * gap) // 2
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, 2)
        scaled = ImageOps.pad(trimmed(picture.convert("RGB")), (side, side), color="white")
        canvas.paste(scaled, (column * (side + gap), top + row * (side + gap)))
    return canvas


def trimmed(picture: Image.Image) -> Image.Image:
    """A sheet of sources without its empty margins; drawings, which are square, as they are."""
    if picture.width == picture.height:
        return picture
    return picture.crop(
        ImageOps.invert(picture.convert("L")).point(lambda p: p > 8 and 255).getbbox()
    )


if __name__ == "__main__":
    main()
