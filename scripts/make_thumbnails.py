"""Make the templates' thumbnails by running them: `python -m scripts.make_thumbnails`.

Needs an environment and a ComfyUI, as `python run.py test` leaves them. Pictures of one workflow
stand side by side.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

from PIL import Image

from scripts.comfyui import ROOT, Server, find_comfyui, mount
from scripts.comfyui_client import Client, ComfyError

HEIGHT = 384  # pixels


def main() -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI was found; set COMFYUI_DIR or run `python run.py test` first")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        mount(base)
        with (
            Server(comfyui, base, options=["--cpu"]) as server,
            Client(server.url) as client,
        ):
            for path in sorted((ROOT / "workflows" / "api").glob("*.json")):
                target = ROOT / "workflows" / f"{path.stem}.jpg"
                side_by_side(run(client, path)).save(target, quality=90)
                print(target)


def run(client: Client, path: Path) -> list[Image.Image]:
    """The pictures that a workflow saves, in the order of its nodes."""
    result = client.run(json.loads(path.read_text(encoding="utf-8")))
    if result.error:
        raise ComfyError(f"{path.name}: {result.error}")
    references = [
        image for node in sorted(result.outputs, key=int) for image in result.images(node)
    ]
    return [Image.open(io.BytesIO(client.image(reference))) for reference in references]


def side_by_side(pictures: list[Image.Image], gap: int = 8) -> Image.Image:
    """One picture of the thumbnail's height; a white gap between neighbours."""
    scaled = [
        picture.convert("RGB").resize((picture.width * HEIGHT // picture.height, HEIGHT))
        for picture in pictures
    ]
    width = sum(picture.width for picture in scaled) + gap * (len(scaled) - 1)
    canvas = Image.new("RGB", (width, HEIGHT), "white")
    x = 0
    for picture in scaled:
        canvas.paste(picture, (x, 0))
        x += picture.width + gap
    return canvas


if __name__ == "__main__":
    main()
