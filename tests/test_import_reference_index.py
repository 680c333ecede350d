"""A database of the reference project's kind, made here, becomes an index."""

import faiss
import numpy as np
import pytest
import torch

from arrag_engine.index import check_index, load_index
from scripts.import_reference_index import main
from tests.tiny import tiny_index, tiny_model, write_tiny


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """(folder, native index, values, exact index)."""
    folder = tmp_path_factory.mktemp("reference")
    write_tiny(folder / "model.safetensors")
    exact = tiny_index(tiny_model(), 60, structure="flat")
    keys = exact.searcher.reconstruct(np.arange(exact.size))
    rotation = faiss.OPQMatrix(32, 8)
    rotation.niter = rotation.niter_pq = 3
    lists = faiss.IndexIVFPQ(faiss.IndexFlatL2(32), 32, 6, 8, 5)
    native = faiss.IndexPreTransform(rotation, lists)
    native.train(keys)
    native.add(keys)
    faiss.write_index(native, str(folder / "faiss_ivf_pq_opq.index"))
    values = exact.tokens[:, exact.active].reshape(-1).astype(np.int64)
    np.save(folder / "next_codes.npy", values)
    return folder, native, values, exact


def run(folder, out, *flags, index="faiss_ivf_pq_opq.index", values="next_codes.npy"):
    places = {"index": folder / index, "values": folder / values, "out": out}
    named = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    return main([*named, "--model", str(folder / "model.safetensors"), *flags])


def test_the_index_finds_what_the_database_holds(database, tmp_path, capsys):
    folder, native, values, exact = database
    out = tmp_path / "i.safetensors"
    assert run(folder, out, "--trust-this-file", "--recall-target", "0.97") == 0
    assert capsys.readouterr().out.startswith(f"{out}: 1200 patches, recall ")
    index = load_index(out)
    faiss.extract_index_ivf(native).make_direct_map()
    keys = native.reconstruct_n(0, native.ntotal)
    assert np.abs(index.searcher.reconstruct(np.arange(1200)) - keys).mean() < 0.01
    queries = exact.codebook[np.random.default_rng(0).integers(0, 64, (40, 4))].reshape(40, 32)
    found = index.lookup(queries, 20)
    numbers = index.numbers(found)
    distances, ids = faiss.knn(queries, keys, 20)
    shared = [len(set(a) & set(b)) for a, b in zip(numbers, ids, strict=True)]
    assert np.mean(shared) > 0.9 * 20
    assert np.array_equal(found.codes, values[numbers])
    assert np.median(np.abs(found.distances - distances)) < 0.02
    assert np.array_equal(exact.tokens[found.sources, found.positions], found.codes)


def test_the_result_is_a_sound_index_of_unknown_pictures(database, tmp_path):
    folder, *_ = database
    out = tmp_path / "i.safetensors"
    assert run(folder, out, "--trust-this-file") == 0
    assert not [f for f in check_index(out, lambda step: lambda done, total: None) if f.problem]
    index = load_index(out)
    assert len(index.sources) == 60
    assert index.sources[7].name == ""
    index.check_fits(index.grid, tiny_model().vq.codebook(torch.device("cpu")))


@pytest.fixture
def spoilt(database, tmp_path):
    """The folder with files beside the good ones that are not."""
    folder, _, values, _ = database
    (folder / "junk.index").write_bytes(b"junk")
    flat = faiss.IndexFlatL2(32)
    faiss.write_index(flat, str(folder / "flat.index"))
    narrow = faiss.index_factory(16, "IVF1,PQ4x4")
    narrow.train(np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32))
    faiss.write_index(narrow, str(folder / "narrow.index"))
    np.save(folder / "short.npy", values[:-1])
    np.save(folder / "high.npy", values + 60)
    np.save(folder / "float.npy", values.astype(float))
    np.save(folder / "objects.npy", np.array([None] * 1200), allow_pickle=True)
    return folder


@pytest.mark.parametrize(
    ("flags", "files", "message"),
    [
        ([], {}, "can make that do anything; if you know who made it, add --trust-this-file"),
        (["--trust-this-file"], {"index": "none"}, "there is no file"),
        (["--trust-this-file"], {"index": "junk.index"}, "is no inverted-list index"),
        (["--trust-this-file"], {"index": "flat.index"}, "is no inverted-list index"),
        (["--trust-this-file"], {"index": "narrow.index"}, "keys of 16 numbers, this model"),
        (["--trust-this-file"], {"values": "none.npy"}, "is no readable .npy file"),
        (["--trust-this-file"], {"values": "objects.npy"}, "is no readable .npy file"),
        (["--trust-this-file"], {"values": "short.npy"}, "expected 1200 whole numbers"),
        (["--trust-this-file"], {"values": "float.npy"}, "expected 1200 whole numbers"),
        (["--trust-this-file"], {"values": "high.npy"}, "the model has 64"),
        (["--trust-this-file", "--borders", "zero"], {}, "no whole number of pictures with 35"),
    ],
)
def test_what_does_not_fit_is_one_sentence(spoilt, tmp_path, capsys, flags, files, message):
    out = tmp_path / "i.safetensors"
    assert run(spoilt, out, *flags, **files) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not out.exists()
