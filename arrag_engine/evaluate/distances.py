"""Distances of two sets of pictures: FID, CMMD and FWD.

The features of FID and CMMD come from networks that the caller has as files; packages read them
that `pip install 'arrag[eval]'` installs. Nothing is downloaded. From features on, and for FWD,
which has no network, the formulas stand here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..images import fit, open_picture, picture_suffixes, to_tensor
from ..paths import check_file, is_folder, shown_path
from .measures import frechet_distance, moments

Moments = tuple[np.ndarray, np.ndarray]
"""Mean [dim] and covariance [dim, dim]."""
Tick = Callable[[int, int], None]
"""Called with (pictures done, in all)."""
FEATURES = (".npy", ".npz", ".safetensors")
SIGMA, SCALE = 10.0, 1000.0
"""Of CMMD's kernel and its result (Jayasumana et al., arXiv 2401.09603)."""
CLIP_MODEL = "ViT-L-14-336-quickgelu"
"""CMMD's network by its name in open_clip: OpenAI's CLIP for 336 pixels."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WAVELET_SIDE, LEVEL = 256, 4
"""Pixels and depth of FWD's packets (Veeramacheneni et al., arXiv 2312.15289)."""
CHUNK = 1024
"""Rows of a block of the kernel."""
BATCH = 16


def fid(a: Moments, b: Moments) -> float:
    """Fréchet Inception distance of two sets, from the moments of their features."""
    if a[0].shape != b[0].shape:
        raise InputError(
            f"features have {len(a[0])} and {len(b[0])} numbers a picture; use one network for both"
        )
    return frechet_distance(a, b)


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
    """CMMD of features [pictures, dim], which are made unit vectors: 1000 times the squared maximum
    mean discrepancy under the kernel exp(-|x - y|² / 2σ²), σ = 10, all pairs counted."""
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"features have {a.shape[1]} and {b.shape[1]} numbers a picture; use one network for "
            "both"
        )
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return SCALE * (_mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b))


def _mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of exp(-|x - y|² / 2σ²) over all pairs of unit vectors; exp - 1 is summed, which keeps
    the digits that the differences of CMMD need."""
    total = 0.0
    for first in range(0, len(a), CHUNK):
        squared = 2 - 2 * (a[first : first + CHUNK].astype(np.float64) @ b.T.astype(np.float64))
        total += np.expm1(-squared.clip(0) / (2 * SIGMA**2)).sum()
    return total / (len(a) * len(b))


def haar_packets(images: np.ndarray, level: int = LEVEL) -> np.ndarray:
    """Haar wavelet packets [B, 4^level, channels * h * w] of images [B, channels, H, W].

    Each level turns every 2x2 pixels into their sums and differences, halved. All levels together
    are a Walsh-Hadamard transform of blocks of 2^level x 2^level pixels.
    """
    signs = np.ones((1, 1))
    for _ in range(level):
        signs = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), signs) / np.sqrt(2)
    side, (count, channels, height, width) = 2**level, images.shape
    blocks = images.reshape(count, channels, height // side, side, width // side, side)
    packets = np.einsum("pa,ncyaxb,qb->npqcyx", signs, blocks, signs, optimize=True)
    return packets.reshape(count, side * side, -1)


def fwd(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Fréchet wavelet distance: the mean over packets of the Fréchet distance of their
    coefficients.

    Args:
        a: Means [packets, dim] and covariances [packets, dim, dim].
        b: The same of the other set.
    """
    pairs = zip(*a, *b, strict=True)
    return float(np.mean([frechet_distance((m, c), (n, d)) for m, c, n, d in pairs]))


def packet_moments(folder: Path, tick: Tick | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Means [packets, dim] and covariances [packets, dim, dim] of the packets of a folder's
    pictures, cropped and resized to 256x256 pixels, in [0, 1].

    Raises:
        InputError: A picture cannot be read, or there are fewer than two.
    """
    count, sums, products = 0, np.zeros(1), np.zeros(1)
    for images in _batches(folder, (WAVELET_SIDE, WAVELET_SIDE), tick):
        pixels = ((to_tensor(images) + 1) / 2).numpy().astype(np.float64)
        packets = haar_packets(pixels).transpose(1, 0, 2)  # [P, B, dim]
        count += len(images)
        sums = sums + packets.sum(axis=1)
        products = products + packets.transpose(0, 2, 1) @ packets
    mean = sums / count
    outer = mean[:, :, None] * mean[:, None, :]
    return mean, (products - count * outer) / (count - 1)


def read_moments(path: Path, extract: Callable[[Path], np.ndarray]) -> Moments:
    """Moments of a folder's pictures, of features in a file, or those that a `.npz` file with `mu`
    and `sigma` holds, as other FID programs write it.

    Args:
        extract: Features [pictures, dim] of a folder.

    Raises:
        InputError: The file holds neither, or a number that is not finite.
    """
    if not is_folder(path) and path.suffix.lower() == ".npz":
        arrays = _arrays(path)
        if "mu" in arrays and "sigma" in arrays:
            mean, covariance = np.asarray(arrays["mu"]), np.asarray(arrays["sigma"])
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
                raise InputError(
                    f"{shown_path(path)} has mu {mean.shape} and sigma "
                    f"{covariance.shape}, which do not belong together"
                )
            return mean.astype(np.float64), covariance.astype(np.float64)
    return moments(read_features(path, extract).astype(np.float64))


def read_features(path: Path, extract: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Features [pictures, dim] of a folder, or in a `.npy`, `.npz` or `.safetensors` file.

    Raises:
        InputError: The file holds none.
    """
    if is_folder(path):
        return extract(path)
    if path.suffix.lower() not in FEATURES:
        raise InputError(
            f"{shown_path(path)} is no folder of pictures and no {', '.join(FEATURES)} file"
        )
    found = [a for a in _arrays(path).values() if a.ndim == 2 and a.dtype.kind == "f"]
    if len(found) != 1 or len(found[0]) < 2 or not np.isfinite(found[0]).all():
        raise InputError(
            f"{shown_path(path)} must hold one array [pictures, numbers] of finite numbers, of two "
            "pictures or more"
        )
    return found[0]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; nothing in it is executed."""
    try:
        if path.suffix.lower() == ".safetensors":
            from ..checkpoints.weights import open_weights

            weights = open_weights([check_file(path)])
            return {name: weights.read(name).float().numpy() for name in weights.shapes}
        loaded = np.load(check_file(path), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"features": loaded}
        return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{shown_path(path)} is damaged ({str(error)[:80]})") from error


def inception(weights: Path, device: torch.device, tick: Tick | None = None) -> Any:
    """What makes Inception features [pictures, 2048] of a folder.

    Args:
        weights: `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity.

    Raises:
        InputError: A package is missing, or the file is another one.
    """
    package = _package("torch_fidelity.feature_extractor_inceptionv3", "FID", "torch-fidelity")
    network = _loaded(
        weights,
        lambda: package.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        ),
    ).to(device)

    def features(images: Sequence[Image.Image]) -> Tensor:
        pixels = ((to_tensor(list(images)) + 1) * 127.5).round().byte()
        return network(pixels.to(device))[0]

    return lambda folder: _extracted(folder, features, None, tick)


def clip(
    weights: Path, device: torch.device, tick: Tick | None = None, name: str = CLIP_MODEL
) -> Any:
    """What makes CLIP features [pictures, dim] of a folder.

    Args:
        weights: `open_clip_model.safetensors` of CMMD's network.
        name: Of the network in open_clip.

    Raises:
        InputError: A package is missing, or the file is another one.
    """
    package = _package("open_clip", "CMMD", "open-clip-torch")
    if weights.suffix != ".safetensors":
        raise InputError(
            f"{shown_path(weights)} is no .safetensors file; use open_clip_model.safetensors of "
            "timm/vit_large_patch14_clip_336.openai"
        )
    network = _loaded(
        weights, lambda: package.create_model(name, pretrained=str(weights), device=device)
    ).eval()
    side = network.visual.image_size
    width, height = (side, side) if isinstance(side, int) else (side[1], side[0])
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))

    def features(images: Sequence[Image.Image]) -> Tensor:
        resized = [one.resize((width, height), Image.Resampling.BICUBIC) for one in images]
        pixels = ((to_tensor(resized) + 1) / 2 - mean) / deviation
        return network.encode_image(pixels.to(device), normalize=True)

    return lambda folder: _extracted(folder, features, None, tick)


def _package(module: str, what: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{what} from pictures needs the package {package}, which is not installed ({error}); "
            "run pip install 'arrag[eval]', or give files of features"
        ) from error


def _loaded(weights: Path, load: Callable[[], Any]) -> Any:
    check_file(weights)
    try:
        return load()
    except Exception as error:  # packages raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"{shown_path(weights)} is not the network that is needed ({reason})"
        ) from error


@torch.inference_mode()
def _extracted(
    folder: Path,
    features: Callable[[Sequence[Image.Image]], Tensor],
    size: tuple[int, int] | None,
    tick: Tick | None,
) -> np.ndarray:
    found = [features(images).float().cpu() for images in _batches(folder, size, tick)]
    return torch.cat(found).numpy()


def _batches(
    folder: Path, size: tuple[int, int] | None, tick: Tick | None
) -> Iterator[list[Image.Image]]:
    """Pictures of a folder, some of one size at a time, in the order of their names.

    Args:
        size: Height and width to crop and resize to; as they are when absent.
    """
    suffixes = picture_suffixes()
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if len(files) < 2:
        raise InputError(
            f"{shown_path(folder)} has {len(files)} pictures; a distance needs two or more"
        )
    batch: list[Image.Image] = []
    for done, file in enumerate(files):
        picture = _picture(file)
        image = picture if size is None else fit(picture, *size)
        if batch and (image.size != batch[0].size or len(batch) == BATCH):
            yield batch
            batch = []
            if tick is not None:
                tick(done, len(files))
        batch.append(image)
    yield batch
    if tick is not None:
        tick(len(files), len(files))


def _picture(file: Path) -> Image.Image:
    try:
        return open_picture(file)
    except InputError as error:
        raise InputError(f"{shown_path(file)}: {error}") from error
