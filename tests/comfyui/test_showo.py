"""A model that draws in any order: the nodes refuse it in one sentence."""

import shutil

from arrag_engine.checkpoints import convert_checkpoint
from tests.comfyui.test_runs import assert_one_sentence
from tests.tiny_showo import showo_folder, tiny_showo


def test_show_o_is_refused_by_the_loader(server, client, workflow, tmp_path):
    folder = showo_folder(tmp_path / "show-o", tiny_showo())
    one = tmp_path / "tiny-show-o.safetensors"
    convert_checkpoint(folder, one)
    shutil.copy(one, server.base / "models" / "arrag" / "models" / one.name)
    result = client.run(workflow("baseline", ARRAG_LoadModel={"model": one.name}))
    assert_one_sentence(result)
    assert "draws in any order, which the nodes do not support yet" in result.error
