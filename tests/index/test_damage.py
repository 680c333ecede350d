"""Index files with bytes changed, cut off or left unwritten."""

import json
import random
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from arrag_engine.errors import InputError
from arrag_engine.index import (
    KeySpec,
    check_index,
    contact_sheet,
    load_index,
    save_index,
)
from tests.tiny import tiny_index


def split(data):
    """(header, tensor bytes) of a .safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def mutated(data, rng):
    """A damaged variant of the bytes of a file."""
    data = bytearray(data)
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        return bytes(data) + rng.randbytes(rng.randrange(1, 50))
    if kind in (2, 3):
        header_end = 8 + int.from_bytes(data[:8], "little")
        for _ in range(rng.randrange(1, 5)):
            end = header_end if kind == 2 else len(data)
            data[rng.randrange(end)] = rng.randrange(256)
        return bytes(data)
    header, body = split(bytes(data))
    if kind == 4:
        start = rng.randrange(len(body))
        count = rng.randrange(1, 200)
        return joined(header, body[:start] + rng.randbytes(count) + body[start + count :])
    return joined(mutated_header(header, rng), body)


def mutated_header(header, rng):
    values = [
        "",
        "1",
        "-1",
        "6x6",
        "1x1",
        "256x256",
        "causal-8",
        "zero",
        "codebook",
        "\0",
        "9" * 400,
    ]
    shapes = [[], [0], [5], [5, 36], [5, 6, 6], [1, 6, 6], [2**31, 2**31], [-1], [180]]
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice(sorted(header))
        if name == "__metadata__":
            header[name][rng.choice(sorted(header[name]))] = rng.choice(values)
        elif rng.random() < 0.3:
            header[name]["dtype"] = rng.choice(
                ["U8", "I8", "U16", "I16", "F16", "BF16", "F32", "I64"]
            )
        elif rng.random() < 0.5:
            header[name]["shape"] = rng.choice(shapes)
        else:
            other = rng.choice(sorted(set(header) - {"__metadata__"}))
            header[name], header[other] = header[other], header[name]
    return header


def check_sound(index):
    """Whatever is asked of it, an index that was loaded stays within its bounds."""
    queries = np.stack([np.zeros(index.spec.dim(index.codebook.shape[1]), np.float32)] * 2)
    for view in (index, index.restricted(np.array([0]))):
        found = view.lookup(queries, 10)
        assert (found.codes < len(index.codebook)).all()
        assert (found.sources < len(index.sources)).all()
        assert (found.positions < index.grid.size).all()
    assert len(list(index.sources)) == len(index.tokens)
    index.sources.matching("a")
    contact_sheet(index.sources)


@pytest.fixture(scope="session", params=["flat", "ivf", "compact"])
def structured_file(request, tmp_path_factory, model):
    """A file of every search structure."""
    space = "codebook" if request.param == "compact" else "encoder"
    index = tiny_index(model, 5, 0, KeySpec(space=space), request.param)
    path = tmp_path_factory.mktemp(request.param) / "a.safetensors"
    save_index(index, path)
    return path


def test_a_damaged_file_is_refused_or_still_a_sound_index(tmp_path, structured_file, pytestconfig):
    data, refused, unseen = structured_file.read_bytes(), 0, []
    count = pytestconfig.getoption("mutations")
    for seed in range(count):
        path = tmp_path / "a.safetensors"
        changed = mutated(data, random.Random(seed))
        path.write_bytes(changed)
        try:
            check_sound(load_index(path))
            findings = list(check_index(path, lambda step: lambda done, total: None))
        except InputError as error:
            assert "\n" not in str(error).strip()  # noqa: PT017
            refused += 1
        except BaseException as error:
            raise AssertionError(f"mutation {seed} ends in {error!r}") from error
        else:
            if split(changed) != split(data) and not any(f.problem for f in findings):
                unseen.append(seed)
    assert count / 2 < refused
    assert unseen == []


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path, index_file):
    header, body = split(index_file.read_bytes())
    last = max(set(header) - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    header[last]["shape"][0] += 10
    header[last]["data_offsets"][1] += 10
    path = tmp_path / "a.safetensors"
    path.write_bytes(joined(header, body))
    with pytest.raises(InputError, match=r"not a readable \.safetensors file"):
        load_index(path)


def test_two_writers_of_one_name_leave_one_whole_file(tmp_path, model):
    indexes = [tiny_index(model, 5, seed) for seed in range(2)]
    path = tmp_path / "a.safetensors"
    alone = []
    for index in indexes:
        save_index(index, path)
        alone.append(path.read_bytes())
    seen = set()
    with ThreadPoolExecutor() as pool:
        for _ in range(20):
            for writing in [pool.submit(save_index, index, path) for index in indexes]:
                writing.result()
            seen.add(path.read_bytes())
    assert seen <= set(alone)
    assert list(tmp_path.iterdir()) == [path]


def test_an_index_in_use_outlives_its_file(tmp_path, model):
    path = tmp_path / "a.safetensors"
    save_index(tiny_index(model, 5, 0), path)
    index = load_index(path)
    tokens, sources = index.tokens.copy(), list(index.sources)
    save_index(tiny_index(model, 3, 1), path)
    assert np.array_equal(index.tokens, tokens)
    assert list(index.sources) == sources
    assert len(load_index(path).tokens) == 3


SAVE_ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from arrag_engine.errors import InputError
from arrag_engine.index import load_index, save_index

index = load_index(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
for out in sys.argv[2:]:
    try:
        save_index(index, Path(out))
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path, index_file):
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    shutil.copy(index_file, old)
    command = [sys.executable, "-c", SAVE_ON_A_FULL_DISK, index_file, new, old]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stderr == ""
    for line, path in zip(run.stdout.splitlines(), (new, old), strict=True):
        assert line.startswith(f"cannot write {path}: ")
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == index_file.read_bytes()


SAVE = """
import sys
from pathlib import Path
from arrag_engine.errors import InputError
from arrag_engine.index import load_index, save_index

try:
    save_index(load_index(Path(sys.argv[1])), Path(sys.argv[2]))
except InputError as error:
    print(error)
"""


def test_a_disk_of_8_kilobytes(tmp_path, index_file):
    """A file system of its own, which only some users may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=8k none {disk} && "
    own = ["unshare", "--mount", "sh", "-c"]
    if sys.platform != "linux" or subprocess.run([*own, mount + "true"]).returncode:
        pytest.skip("may not mount a file system")
    assert index_file.stat().st_size > 8 * 1024
    command = [sys.executable, "-c", SAVE, str(index_file), str(disk / "a.safetensors")]
    script = mount + shlex.join(command) + f" && echo left: $(ls -A {disk})"
    run = subprocess.run([*own, script], capture_output=True, text=True)
    said, left = run.stdout.splitlines()
    assert said.startswith(f"cannot write {disk / 'a.safetensors'}: No space left on device")
    assert (left, run.stderr) == ("left:", "")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "BOOL", "F4", "NONSENSE"])
@pytest.mark.parametrize("name", ["tokens", "sources.names"])
def test_a_dtype_that_numpy_lacks_is_refused(tmp_path, index_file, name, dtype):
    """The same bytes under another dtype, so that the file itself stays well-formed."""
    header, body = split(index_file.read_bytes())
    entry = header[name]
    length = entry["data_offsets"][1] - entry["data_offsets"][0]
    width = {"BF16": 2, "F4": 0.5}.get(dtype, 1)
    entry |= {"dtype": dtype, "shape": [int(length / width)]}
    path = tmp_path / "a.safetensors"
    path.write_bytes(joined(header, body))
    with pytest.raises(InputError):
        load_index(path)
