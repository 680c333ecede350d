"""Distances against their direct formulas, on random features and pictures."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from arrag_engine.errors import InputError
from arrag_engine.evaluate import distances
from arrag_engine.evaluate.distances import (
    cmmd,
    fid,
    fwd,
    haar_packets,
    packet_moments,
    read_features,
    read_moments,
)
from arrag_engine.evaluate.measures import moments


def clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 6)), rng.normal(0.3, 1.5, size=(30, 6))


def fail(folder):
    raise AssertionError(folder)


def test_fid_is_the_formula_with_a_general_matrix_root():
    a, b = map(moments, clouds())
    values, vectors = np.linalg.eig(a[1] @ b[1])
    root = (vectors * np.sqrt(values)) @ np.linalg.inv(vectors)
    expected = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1] + b[1] - 2 * root.real)
    assert fid(a, b) == pytest.approx(expected)


def test_cmmd_is_the_sum_over_all_pairs(monkeypatch):
    a, b = clouds()

    def kernel(x, y):
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
        return np.exp(-((x - y) ** 2).sum() / 200)

    def mean(x, y):
        return np.mean([kernel(i, j) for i, j in itertools.product(x, y)])

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert cmmd(a, b) == pytest.approx(expected)
    monkeypatch.setattr(distances, "CHUNK", 7)
    assert cmmd(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(expected, rel=1e-3)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)


def slow_packets(image, level):
    """One channel, level by level: sums and differences of the rows' pairs, then the columns'."""
    if level == 0:
        return [image]
    top, bottom = image[0::2], image[1::2]
    found = []
    for rows in (top + bottom, top - bottom):
        left, right = rows[:, 0::2], rows[:, 1::2]
        found += [(left + right) / 2, (left - right) / 2]
    return [packet for part in found for packet in slow_packets(part, level - 1)]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_packets_are_sums_and_differences_level_by_level(level):
    images = np.random.default_rng(1).random((2, 3, 16, 24))
    packets = haar_packets(images, level)
    assert packets.shape == (2, 4**level, 3 * 16 * 24 // 4**level)
    assert (packets**2).sum() == pytest.approx((images**2).sum())
    slow = np.array([[slow_packets(channel, level) for channel in image] for image in images])
    slow = slow.transpose(0, 2, 1, 3, 4).reshape(packets.shape)

    def sorted_rows(x):
        return x[0][np.lexsort(x[0].T.round(9))]

    assert np.allclose(sorted_rows(packets), sorted_rows(slow))


def test_packets_are_those_of_the_library():
    pywt = pytest.importorskip("pywt", reason="PyWavelets is not installed")
    image = np.random.default_rng(2).random((16, 16))
    tree = pywt.WaveletPacket2D(image, "haar", maxlevel=2)
    library = sorted(np.abs(node.data).ravel().round(9).tolist() for node in tree.get_level(2))
    ours = haar_packets(image[None, None], 2)[0]
    assert np.allclose(sorted(np.abs(row).round(9).tolist() for row in ours), library)


def pictures(folder, count, seed, low=0):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        noise = rng.integers(low, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def test_fwd_is_the_mean_over_packets(tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "WAVELET_SIDE", 8)
    monkeypatch.setattr(distances, "LEVEL", 2)
    monkeypatch.setattr(distances, "BATCH", 3)
    monkeypatch.setattr(haar_packets, "__defaults__", (2,))
    a, b = pictures(tmp_path / "a", 7, 0), pictures(tmp_path / "b", 5, 1, 90)
    ticks = []
    found = packet_moments(a, lambda *call: ticks.append(call)), packet_moments(b)
    assert ticks[-1] == (7, 7)
    packets = []
    for folder in (a, b):
        files = sorted(folder.iterdir())
        cropped = [np.asarray(Image.open(file).crop((2, 0, 10, 8))) for file in files]
        packets.append(haar_packets(np.stack(cropped).transpose(0, 3, 1, 2) / 255, 2))
    each = [
        fid(moments(packets[0][:, packet]), moments(packets[1][:, packet])) for packet in range(16)
    ]
    assert fwd(*found) == pytest.approx(np.mean(each))
    assert fwd(found[0], found[0]) == pytest.approx(0, abs=1e-6)


def test_features_are_read_from_files(tmp_path):
    features = clouds()[0].astype(np.float32)
    np.save(tmp_path / "a.npy", features)
    np.savez(tmp_path / "b.npz", features=features)
    save_file({"features": features}, tmp_path / "c.safetensors")
    for name in ("a.npy", "b.npz", "c.safetensors"):
        assert (read_features(tmp_path / name, fail) == features).all()
        mean, covariance = read_moments(tmp_path / name, fail)
        assert np.allclose(mean, features.mean(axis=0), atol=1e-6)
        assert covariance.dtype == np.float64
    mean, covariance = moments(features)
    np.savez(tmp_path / "d.npz", mu=mean, sigma=covariance)
    assert (read_moments(tmp_path / "d.npz", fail)[1] == covariance).all()
    assert read_features(pictures(tmp_path / "p", 2, 0), lambda folder: folder.name) == "p"


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("a.npz", {"x": np.zeros((1, 4))}, "of two pictures or more"),
        ("a.npz", {"x": np.full((3, 4), np.nan)}, "finite numbers"),
        ("a.npz", {"x": np.zeros((3, 4)), "y": np.zeros((3, 4))}, "must hold one array"),
        ("a.npz", {"x": np.zeros((3, 4), int)}, "must hold one array"),
        ("a.npz", {"x": np.array([[None, 3]])}, "is damaged"),
        ("a.txt", {"x": np.zeros((3, 4))}, "is no folder of pictures"),
    ],
)
def test_other_files_are_refused(tmp_path, name, arrays, message):
    with (tmp_path / name).open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(InputError, match=message):
        read_features(tmp_path / name, fail)


def test_what_does_not_belong_together_is_refused(tmp_path):
    a, b = clouds()
    with pytest.raises(InputError, match="features have 6 and 5 numbers a picture"):
        cmmd(a, b[:, :5])
    with pytest.raises(InputError, match="features have 6 and 5 numbers a picture"):
        fid(moments(a), moments(b[:, :5]))
    np.savez(tmp_path / "d.npz", mu=np.zeros(3), sigma=np.zeros((4, 4)))
    with pytest.raises(InputError, match="do not belong together"):
        read_moments(tmp_path / "d.npz", fail)
    with pytest.raises(InputError, match="has 1 pictures; a distance needs two"):
        packet_moments(pictures(tmp_path / "one", 1, 0))


def test_a_package_that_is_missing_is_one_sentence(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(distances, "import_module", missing)
    for make, what in ((distances.inception, "FID"), (distances.clip, "CMMD")):
        with pytest.raises(InputError, match=rf"{what} .* pip install 'arrag\[eval\]'"):
            make(tmp_path / "n.safetensors", torch.device("cpu"))


def test_inception_features_come_from_the_package(tmp_path):
    """A random network: its features of a folder are those of one picture after the other."""
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    module = distances.import_module("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    torch.save(fresh_state(module), tmp_path / "inception.pth")
    folder = pictures(tmp_path / "p", 3, 0)
    found = distances.inception(tmp_path / "inception.pth", torch.device("cpu"))(folder)
    assert found.shape == (3, 2048)
    assert np.isfinite(found).all()
    (tmp_path / "other.pth").write_bytes(b"no network")
    with pytest.raises(InputError, match="is not the network that is needed"):
        distances.inception(tmp_path / "other.pth", torch.device("cpu"))


def fresh_state(module):
    """Weights of a network that nobody trained, which the package makes only from a file."""
    made = {}

    class Caught(Exception):
        pass

    def load(*_, **__):
        raise Caught

    original = module.load_state_dict_from_url
    module.load_state_dict_from_url = load
    base = module.FeatureExtractorBase.__init__

    def remember(self, *args, **more):
        base(self, *args, **more)
        made["network"] = self

    module.FeatureExtractorBase.__init__ = remember
    try:
        with pytest.raises(Caught):
            module.FeatureExtractorInceptionV3("x", ["2048"])
    finally:
        module.load_state_dict_from_url = original
        module.FeatureExtractorBase.__init__ = base
    return made["network"].state_dict()


def test_clip_features_come_from_the_package(tmp_path):
    package = pytest.importorskip("open_clip", reason="open-clip-torch is not installed")
    torch.manual_seed(0)
    state = package.create_model("RN50-quickgelu").state_dict()
    save_file({name: tensor.numpy() for name, tensor in state.items()}, tmp_path / "c.safetensors")
    folder = pictures(tmp_path / "p", 2, 0)
    make = distances.clip(tmp_path / "c.safetensors", torch.device("cpu"), None, "RN50-quickgelu")
    found = make(folder)
    assert found.shape == (2, 1024)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    with pytest.raises(InputError, match=r"is no \.safetensors file"):
        distances.clip(folder / "0.png", torch.device("cpu"))
