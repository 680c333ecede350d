"""A build that is stopped goes on; the result is the same file, byte for byte."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arrag_engine.build import BuildOptions, ReadSettings, build_index, building, staging
from arrag_engine.build.reading import BATCH
from arrag_engine.errors import InputError
from arrag_engine.index import KeySpec
from tests.pictures import picture
from tests.tiny import tiny_model

COUNT = 4 * BATCH + 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some batches of pictures; a duplicate, a broken and a wide one among them."""
    place = tmp_path_factory.mktemp("pictures")
    for i in range(COUNT - 2):
        picture(place / f"{i:02}.png", i, (20 + i, 15))
    shutil.copyfile(place / "03.png", place / "03b.png")
    (place / "10b.png").write_bytes(b"broken")
    (place / "05.txt").write_text("five")
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, folder):
    """Bytes of the index that an undisturbed build makes."""
    out = tmp_path_factory.mktemp("whole") / "a.safetensors"
    build_index(model, folder, out)
    return out.read_bytes()


class Stopped(Exception):
    pass


def stop_at(model, folder, out, count, options=None, **more):
    """Build until `count` pictures are done."""

    def stop(unit, done, _):
        if unit == "picture" and done >= count:
            raise Stopped

    with pytest.raises(Stopped):
        build_index(model, folder, out, options, progress=stop, **more)


def finish(model, folder, out, options=None, **more):
    """(pictures done before, sentences) of a build that goes on."""
    first, said = [], []
    build_index(
        model, folder, out, options, progress=lambda *p: first.append(p[1]), say=said.append, **more
    )
    assert os.listdir(out.parent) == [out.name]
    return first[0], said


@pytest.mark.parametrize("count", [1, BATCH, BATCH + 1, 3 * BATCH - 1, COUNT])
def test_a_stopped_build_loses_no_batch_that_was_done(model, folder, tmp_path, whole, count):
    out = tmp_path / "a.safetensors"
    stop_at(model, folder, out, count)
    assert not out.exists()
    done = COUNT if count == COUNT else count // BATCH * BATCH
    kept, said = finish(model, folder, out)
    assert kept == done
    sentence = f"going on after {done} pictures that an earlier build has done"
    assert said == ([sentence] if done else [])
    assert out.read_bytes() == whole


def test_a_build_can_be_stopped_again_and_again(model, folder, tmp_path, whole):
    out = tmp_path / "a.safetensors"
    for count in (BATCH + 2, 2 * BATCH + 5, 3 * BATCH + 1):
        stop_at(model, folder, out, count)
    assert finish(model, folder, out)[0] == 3 * BATCH
    assert out.read_bytes() == whole


def test_what_became_of_pictures_before_the_stop_is_reported_after_it(model, folder, tmp_path):
    out = tmp_path / "a.safetensors"
    stop_at(model, folder, out, 3 * BATCH)
    report = build_index(model, folder, out).report
    assert (report.pictures, report.listed) == (COUNT - 2, COUNT)
    assert report.duplicates == [("03b.png", "03.png")]
    [broken] = report.unreadable
    assert broken == ("10b.png", "not a readable picture (unknown format)")


@given(data=st.data())
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_crash_leaves_of_the_files_is_gone_on_with(
    data, model, folder, tmp_path_factory, whole
):
    """Cut anywhere, or with zeros where a machine lost its power before the disk was written."""
    out = tmp_path_factory.mktemp("crash") / "a.safetensors"
    stop_at(model, folder, out, 3 * BATCH)
    place = out.parent / ".a.safetensors.building"
    for name in ("journal.jsonl", "tokens.bin", "vectors.bin", "manifest.json"):
        content = (place / name).read_bytes()
        kept = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))), name)
        zeros = data.draw(st.sampled_from([0, 0, 1, 5000]))
        (place / name).write_bytes(content[:kept] + bytes(zeros))
    (place / ".index.abc.part").write_bytes(b"half of an index")
    finish(model, folder, out)
    assert out.read_bytes() == whole


KILLED = """
    import os, random, signal, sys, threading
    import torch
    from pathlib import Path
    from arrag_engine.build import build_index
    from tests.tiny import tiny_model

    torch.set_num_threads(1)
    folder, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    rng = random.Random(seed)
    count, delay = rng.randint(1, 30), rng.uniform(0, 0.02)

    def die(unit, done, total):
        if done >= count:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    build_index(tiny_model(), folder, out, progress=die)
    threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_killed_builds_go_on_to_the_same_file(model, folder, tmp_path, whole):
    out = tmp_path / "a.safetensors"
    for seed in range(2):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), folder, out, str(seed)]
        ended = subprocess.run(command, capture_output=True, check=False)
        assert ended.returncode == -9, ended.stderr.decode()
        assert not out.exists() or out.read_bytes() == whole
        out.unlink(missing_ok=True)
    finish(model, folder, out)
    assert out.read_bytes() == whole


OTHER = BuildOptions(read=ReadSettings(crops="cover"))


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ("the crops", OTHER),
        ("the key space", BuildOptions(KeySpec(space="codebook"))),
        ("the list of pictures", BuildOptions(read=ReadSettings(licence="CC0"))),
    ],
)
def test_other_settings_start_afresh_and_say_so(model, folder, tmp_path, changed, options):
    out, plain = tmp_path / "a" / "a.safetensors", tmp_path / "b.safetensors"
    out.parent.mkdir()
    stop_at(model, folder, out, 2 * BATCH)
    kept, said = finish(model, folder, out, options)
    assert kept == 0
    assert said == [f"starting afresh: {changed} changed since the build that was stopped"]
    build_index(model, folder, plain, options)
    assert out.read_bytes() == plain.read_bytes()


def test_another_model_starts_afresh_and_another_decoder_does_not(model, folder, tmp_path, whole):
    out = tmp_path / "a.safetensors"
    stop_at(model, folder, out, 2 * BATCH)
    retrained = tiny_model()
    retrained.vq.decoder.conv_in.weight += 1
    retrained.llama.embed_tokens.weight += 1
    assert finish(retrained, folder, out)[0] == 2 * BATCH
    assert out.read_bytes() == whole
    stop_at(model, folder, out, 2 * BATCH)
    _, said = finish(tiny_model(9), folder, out)
    assert said == ["starting afresh: the model changed since the build that was stopped"]
    assert out.read_bytes() != whole


def test_another_picture_or_caption_starts_afresh(model, tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    out = tmp_path / "out" / "a.safetensors"
    out.parent.mkdir()
    for i in range(BATCH + 1):
        picture(place / f"{i}.png", i)
    changes = [
        lambda: picture(place / "new.png", 50),
        lambda: picture(place / "0.png", 51),
        lambda: (place / "1.txt").write_text("one"),
        lambda: (place / "2.png").unlink(),
    ]
    for change in changes:
        stop_at(model, place, out, BATCH)
        change()
        kept, said = finish(model, place, out)
        assert kept == 0
        assert "the list of pictures changed" in said[0]


def test_keys_and_structure_may_change_without_encoding_again(model, folder, tmp_path):
    out, plain = tmp_path / "a" / "a.safetensors", tmp_path / "b.safetensors"
    out.parent.mkdir()
    stop_at(model, folder, out, COUNT)
    options = BuildOptions(KeySpec("causal-8", "zero"), structure="flat")
    assert finish(model, folder, out, options)[0] == COUNT
    build_index(model, folder, plain, options)
    assert out.read_bytes() == plain.read_bytes()


def test_fresh_forgets_what_was_done(model, folder, tmp_path, whole):
    out = tmp_path / "a.safetensors"
    stop_at(model, folder, out, 2 * BATCH)
    assert finish(model, folder, out, fresh=True) == (0, [])
    assert out.read_bytes() == whole


def test_two_builds_to_one_name_are_refused(model, folder, tmp_path, whole):
    out = tmp_path / "a.safetensors"
    refusals = []

    def second(unit, done, _):
        if (unit, done) == ("picture", BATCH):
            with pytest.raises(InputError) as refused:
                build_index(model, folder, out)
            refusals.append(str(refused.value))

    build_index(model, folder, out, progress=second)
    assert refusals == [f"another program is writing {out}; wait for it or choose another name"]
    assert out.read_bytes() == whole


def test_builds_that_wait_for_each_other_all_end_well(model, folder, tmp_path, whole):
    """One gets in after another has just taken its folder away."""
    out = tmp_path / "a.safetensors"
    refusals, files = [], []

    def keep_trying():
        while True:
            try:
                build_index(model, folder, out)
            except InputError as error:
                refusals.append(str(error))
            else:
                files.append(out.read_bytes())
                return

    threads = [threading.Thread(target=keep_trying) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another program" in refusal for refusal in refusals)
    assert files == [whole] * 3
    assert os.listdir(tmp_path) == [out.name]


@pytest.mark.parametrize("way", ["deleted", "emptied"])
def test_a_folder_that_disappears_stops_the_build_and_may_come_back(
    model, folder, tmp_path, whole, way
):
    place, aside = tmp_path / "pictures", tmp_path / "aside"
    shutil.copytree(folder, place)
    out = tmp_path / "out" / "a.safetensors"
    out.parent.mkdir()

    def vanish(unit, done, _):
        if done == 2 * BATCH and place.exists():
            place.rename(aside)
            if way == "emptied":
                place.mkdir()

    with pytest.raises(InputError) as refused:
        build_index(model, place, out, progress=vanish)
    assert f"the folder {place} has disappeared after 24 of 35 pictures" in str(refused.value)
    assert not out.exists()
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)
    assert finish(model, place, out)[0] == 3 * BATCH  # one batch had been read ahead
    assert out.read_bytes() == whole


@pytest.mark.parametrize("which", range(6))
def test_a_full_disk_is_a_sentence_and_the_build_goes_on_later(
    model, folder, tmp_path, whole, which, monkeypatch
):
    """At every write of the first two batches, with half of it on the disk."""
    out = tmp_path / "a.safetensors"
    append, writes = staging._append, []

    def full(path, data):
        writes.append(path)
        if len(writes) > which:
            append(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_append", full)
        with pytest.raises(InputError) as refused:
            build_index(model, folder, out)
    done = which // 3 * BATCH
    assert "No space left on device; free some space and build again" in str(refused.value)
    assert str(refused.value).endswith(f"{done} pictures are done already")
    assert not out.exists()
    assert finish(model, folder, out)[0] == done
    assert out.read_bytes() == whole


@pytest.fixture
def small_disk(tmp_path):
    """Function: a folder on a disk of so many KiB, or the same one grown."""
    place = tmp_path / "disk"
    place.mkdir()

    def size(kib):
        options = f"{'remount,' if os.path.ismount(place) else ''}size={kib}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("may not mount a disk here")
        return place

    yield size
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


@pytest.mark.parametrize("kib", [4, 24, 48, 64, 96, 128])
def test_a_disk_that_is_really_full(model, folder, small_disk, whole, kib):
    out = small_disk(kib) / "a.safetensors"
    with pytest.raises(InputError, match="No space left on device") as refused:
        build_index(model, folder, out)
    assert "\n" not in str(refused.value)
    assert [p.name for p in out.parent.iterdir()] in ([], [".a.safetensors.building"])
    small_disk(4096)
    finish(model, folder, out)
    assert out.read_bytes() == whole


def test_a_disk_full_at_the_end_costs_no_encoding(model, folder, tmp_path, whole, monkeypatch):
    out = tmp_path / "a.safetensors"

    def full(*_):
        raise InputError("cannot write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(building, "save_index", full)
        with pytest.raises(InputError, match="No space left"):
            build_index(model, folder, out)
    assert not out.exists()
    assert finish(model, folder, out)[0] == COUNT
    assert out.read_bytes() == whole


def test_an_older_index_stays_until_the_new_one_is_whole(model, folder, tmp_path, whole):
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"older")
    stop_at(model, folder, out, 2 * BATCH)
    assert out.read_bytes() == b"older"
    finish(model, folder, out)
    assert out.read_bytes() == whole


def test_an_output_that_cannot_be_replaced_costs_no_encoding(model, folder, tmp_path):
    out = tmp_path / "a.safetensors"
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(InputError, match=r"cannot write .*a\.safetensors: Is a directory"):
        build_index(model, folder, out)
    shutil.rmtree(out)
    assert finish(model, folder, out)[0] == COUNT


def test_something_else_in_the_place_of_the_staging_folder(model, folder, tmp_path):
    (tmp_path / ".a.safetensors.building").touch()
    with pytest.raises(InputError, match=r"cannot write .*a\.safetensors: File exists"):
        build_index(model, folder, tmp_path / "a.safetensors")
