"""One program at a time writes a file."""

import errno
import os
import subprocess
import sys
import threading

import pytest
from PIL import Image

from arrag_engine import locks
from arrag_engine.build import build_from_images
from arrag_engine.errors import InputError
from arrag_engine.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from arrag_engine.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_one_is_refused_while_the_first_is_at_work(tmp_path):
    target = tmp_path / "a.safetensors"
    with locked(target):
        refusal = pytest.raises(InputError, match=r"another program is writing .*\.safetensors; w")
        with refusal, locked(target):
            raise AssertionError("never here")
        with locked(tmp_path / "b.safetensors"):
            pass
    with locked(target):
        pass
    assert os.listdir(tmp_path) == []


def test_it_ends_with_the_block_however_that_ends(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "a"):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_process_that_is_killed_holds_nothing(tmp_path):
    target = tmp_path / "a"
    command = [sys.executable, "-c", HOLD, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=os.getcwd()) as process:
        assert process.stdout.readline().strip() == b"held"
        with pytest.raises(InputError, match="another program"), locked(target):
            pass
        process.kill()
        process.wait()
    assert os.listdir(tmp_path) == [".a.lock"]
    with locked(target):
        pass
    assert os.listdir(tmp_path) == []


def test_never_two_at_once(tmp_path):
    """The file of a lock comes and goes."""
    inside, most, done = [], [], []

    def work():
        while len(done) < 300:
            try:
                with locked(tmp_path / "a"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    done.append(1)
            except InputError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_missing_folder_is_named(tmp_path):
    refusal = pytest.raises(InputError, match=r"there is no folder .*none; create it")
    with refusal, locked(tmp_path / "none" / "a"):
        pass


def test_a_name_that_is_too_long_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot write"), locked(tmp_path / ("x" * 255)):
        pass


def test_a_disk_without_locks_is_told_and_used(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_take", refuse)
    warning = pytest.warns(UserWarning, match="is on a disk without file locks")
    with warning, locked(tmp_path / "a"):
        pass


WRITERS = {
    "build": "build --model {model} --images {files}/pictures --out {tmp}/x.safetensors",
    "add": "add {tmp}/x.safetensors --images {files}/pictures --model {model}",
    "remove": "remove {tmp}/x.safetensors --licence *",
    "merge": "merge {files}/index.safetensors {files}/index.safetensors --out {tmp}/x.safetensors",
    "calibrate": "calibrate --model {model} --index {files}/index.safetensors "
    "--images {files}/pictures --out {tmp}/x.safetensors",
    "train": "train faid --model {model} --index {files}/index.safetensors "
    "--images {files}/pictures --work {tmp}/run --out {tmp}/x.safetensors",
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_command_that_writes_an_index_or_adapter_is_refused(run, files, tmp_path, name):
    target = tmp_path / "x.safetensors"
    target.write_bytes((files / "index.safetensors").read_bytes())
    before = target.read_bytes()
    with locked(target):
        code, _, err = run(WRITERS[name])
    assert (code, err.count("\n")) == (2, 1)
    assert f"another program is writing {target}; wait" in err
    assert target.read_bytes() == before


def test_two_trainings_in_one_folder_are_refused(run, tmp_path):
    with locked(tmp_path / "run"):
        code, _, err = run(WRITERS["train"])
    assert code == 2
    assert f"another program is writing {tmp_path / 'run'}; wait" in err
    assert os.listdir(tmp_path) == []


def test_a_batch_is_refused_where_a_build_is_at_work(model, tmp_path):
    with locked(tmp_path / "x.safetensors"), pytest.raises(InputError, match="another program"):
        build_from_images(model, [Image.new("RGB", (20, 20))], [], tmp_path / "x.safetensors")
