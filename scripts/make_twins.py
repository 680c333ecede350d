"""Write the templates' twins for the API as ComfyUI's frontend makes them.

    python -m scripts.make_twins

Needs an environment and a ComfyUI, as `python run.py test` leaves them, and Chromium.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from scripts.comfyui import ROOT, Server, find_comfyui, mount

WORKFLOWS = ROOT / "workflows"
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    from playwright.sync_api import sync_playwright

    comfyui, chromium = find_comfyui(), find_chromium()
    if comfyui is None or chromium is None:
        raise SystemExit(
            "a ComfyUI and Chromium are needed; run `python run.py test` first, install chromium"
        )
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        mount(base)
        with Server(comfyui, base, options=["--cpu"]) as server, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
            page = browser.new_page()
            page.goto(server.url)
            page.wait_for_function("() => window.app?.graph && window.app.extensionManager")
            for path in sorted(WORKFLOWS.glob("*.json")):
                twin = api_prompt(page, json.loads(path.read_text(encoding="utf-8")))
                target = WORKFLOWS / "api" / path.name
                text = json.dumps(twin, indent=2, ensure_ascii=False)
                target.write_text(text + "\n", encoding="utf-8")
                print(target)
            browser.close()


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def api_prompt(page: Any, workflow: dict) -> dict:
    """What the frontend queues for a workflow."""
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    page.wait_for_function(f"() => app.graph.nodes.length === {len(workflow['nodes'])}")
    return page.evaluate("async () => (await app.graphToPrompt()).output")


if __name__ == "__main__":
    main()
