"""What a process imports: a search needs no PyTorch, and a command line is parsed without it."""

import json
import subprocess
import sys

from arrag_engine.index import save_index
from tests.tiny import tiny_index, tiny_model

SEARCH = """
import sys
from pathlib import Path
import numpy as np
import arrag_engine.index

index = arrag_engine.index.load_index(Path(sys.argv[1]))
hits = index.lookup(index.searcher.reconstruct(np.array([3])), 2)
assert hits.distances[0, 0] == 0
"""


def imported(code, *arguments):
    """Which of the heavy packages a fresh interpreter has imported after running the code."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"torch", "faiss", "PIL", "ray"} & set(json.loads(done.stdout))


def test_a_search_needs_faiss_alone(tmp_path):
    save_index(tiny_index(tiny_model()), tmp_path / "index.safetensors")
    assert imported(SEARCH, tmp_path / "index.safetensors") == {"faiss"}


def test_a_machine_of_a_cluster_searches_without_torch(tmp_path):
    """Each actor would take 200 MB for it."""
    code = SEARCH.replace("import arrag_engine.index\n", "import arrag_engine.index.cluster\n")
    assert code != SEARCH
    save_index(tiny_index(tiny_model()), tmp_path / "index.safetensors")
    assert imported(code, tmp_path / "index.safetensors") == {"faiss"}


def test_the_package_is_imported_without_any_of_them():
    assert imported("import arrag_engine") == set()


def test_the_commands_are_imported_without_torch_and_faiss():
    assert not imported("import arrag_engine.cli") & {"torch", "faiss"}
