"""Build Patch Index."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..arrag_engine.bounds import POSITION_WEIGHT, RECALL_TARGET
from ..arrag_engine.build import (
    BuildOptions,
    Built,
    ReadSettings,
    build_from_images,
    build_index,
)
from ..arrag_engine.build.reading import BATCH
from ..arrag_engine.build.walking import FolderTimes
from ..arrag_engine.errors import InputError
from ..arrag_engine.grid import BORDERS, NEIGHBORHOODS
from ..arrag_engine.images import from_floats
from ..arrag_engine.index import KEY_SPACES, KeySpec
from ..arrag_engine.index.search import STRUCTURES
from ..arrag_engine.layers import AS_BUILT_KEYS, KeyChoice
from ..arrag_engine.recommended import recommended
from ..arrag_engine.settings import CROPS, RECOMMENDED
from . import folders, lists
from .inputs import checked, chosen, fingerprint
from .loaders import describe
from .memory import ManagedModel
from .newer import ADVANCED, found_by
from .progress import Progress
from .types import CATEGORY, RECOMMENDED_NUMBER, Index, IndexChoice, Model

NO_FOLDER = "(the images input)"
DEFAULTS = BuildOptions()
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that mean devices on Windows."""
BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters that turn the writing direction: what is shown is not the name."""
FORBIDDEN = re.compile(f'[\x00-\x1f\x7f-\x9f<>:"/\\\\|?*\u2028\u2029\ud800-\udfff{BIDI}]')
MAX_NAME = 100
SUFFIX = ".safetensors"


class BuildPatchIndex(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_BuildIndex",
            display_name="Build Patch Index",
            category=CATEGORY,
            description="Builds one patch index from images (a batch or a list) or from a "
            "subfolder of ComfyUI's input folder, and saves it in models/arrag/indexes.",
            **found_by("patch database", "reference pictures", "own pictures"),
            inputs=[
                Model.Input(
                    "model", tooltip="The model that will draw; its VQ encodes the pictures."
                ),
                io.String.Input(
                    "name",
                    default="my_index",
                    tooltip="The index is saved as models/arrag/indexes/NAME.safetensors.",
                ),
                io.Combo.Input(
                    "folder",
                    options=[NO_FOLDER, *input_folders()],
                    default=NO_FOLDER,
                    tooltip="A subfolder of ComfyUI's input folder, with everything below it. "
                    "Captions come from text files beside the pictures, a metadata.jsonl or a "
                    "metadata.csv.",
                ),
                io.String.Input(
                    "captions",
                    multiline=True,
                    default="",
                    tooltip="For the images input: one line for each picture, or a list with one "
                    "text for each, or empty.",
                ),
                io.String.Input(
                    "licence",
                    default="",
                    tooltip="Licence of the pictures whose metadata has none.",
                    **ADVANCED,
                ),
                io.String.Input(
                    "source",
                    default="",
                    tooltip="Source of the pictures whose metadata has none.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "crops",
                    options=list(CROPS),
                    default=DEFAULTS.read.crops,
                    tooltip="center: the middle of every picture. cover: several crops of wide or "
                    "tall pictures, which together show all of it.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "neighborhood",
                    options=[*NEIGHBORHOODS, RECOMMENDED],
                    default=RECOMMENDED,
                    tooltip="Which patches around a position form its key. causal-4 is the "
                    "paper's.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "borders",
                    options=[*BORDERS, RECOMMENDED],
                    default=RECOMMENDED,
                    tooltip="skip: no retrieval where a neighbour lies outside the picture. zero: "
                    "such a neighbour counts as zeros.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "key_space",
                    options=[*KEY_SPACES, RECOMMENDED],
                    default=RECOMMENDED,
                    tooltip="Vectors that keys consist of. encoder: the VQ's continuous vectors. "
                    "codebook: the vectors of the codes, for a smaller file.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "position_weight",
                    default=RECOMMENDED_NUMBER,
                    min=RECOMMENDED_NUMBER,
                    max=POSITION_WEIGHT.high,
                    step=0.05,
                    tooltip="Weight of the position in the picture when keys are compared. "
                    "0 = the position is ignored, -1 = recommended.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "structure",
                    options=list(STRUCTURES),
                    default=DEFAULTS.structure,
                    tooltip="Search structure. auto: chosen by the number of patches. flat: exact.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "recall_target",
                    default=DEFAULTS.recall_target,
                    min=0.01,
                    max=RECALL_TARGET.high,
                    step=0.01,
                    tooltip="Share of the true nearest patches that an approximate search must "
                    "find.",
                    **ADVANCED,
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="On: replaces an index of this name. Off: an existing name is an "
                    "error.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The pictures: a batch, or a list of pictures of any sizes. Leave it "
                    "unconnected to use a folder.",
                ),
                io.String.Input(
                    "only",
                    default="",
                    optional=True,
                    tooltip="Which pictures to retrieve from. {prompt}: those whose captions share "
                    "the prompt's rare words. Other text: those whose caption, file name or source "
                    "contains it. Empty: all.",
                ),
            ],
            outputs=[
                Index.Output("INDEX", display_name="index"),
                io.String.Output(
                    "INFO",
                    display_name="info",
                    tooltip="Contents of the index, and the pictures that were left out.",
                ),
            ],
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, name: Any, folder: Any) -> bool | str:
        try:  # None: another node supplies it later
            name, folder = lists.single("name", name), lists.single("folder", folder)
            index_path("later" if name is None else name)
            picture_folder(NO_FOLDER if folder is None else folder)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name: Any = None, folder: Any = None, **_: Any) -> str | float:
        return fingerprint(build_state, lists.unpacked(name), lists.unpacked(folder))

    @classmethod
    @checked
    def execute(cls, captions: Any, images: Any = None, **settings: Any) -> io.NodeOutput:
        return build(lists.pictures(images), lists.captions(captions), **lists.singles(settings))


def build(
    images: list[Tensor] | None,
    captions: list[str],
    model: ManagedModel,
    name: str,
    folder: str,
    licence: str,
    source: str,
    crops: str,
    neighborhood: str,
    borders: Any,
    key_space: Any,
    position_weight: float,
    structure: str,
    recall_target: float,
    overwrite: bool,
    only: str = "",
) -> io.NodeOutput:
    """One index of all pictures [H, W, channels], or of a folder's."""
    out, place = index_path(name), picture_folder(folder)
    check_inputs(out, overwrite, place, images, captions)
    keys = KeyChoice(neighborhood, borders, key_space, chosen(POSITION_WEIGHT, position_weight))
    spec = keys.spec(KeySpec(), recommended(model.checkpoint).keys)
    options = BuildOptions(spec, ReadSettings(licence, source, crops), structure, recall_target)
    device = model.to_decode(BATCH)
    os.makedirs(out.parent, exist_ok=True)
    if place is not None:
        built = build_index(
            model.model, place, out, options, device, progress=Progress(), say=logging.info
        )
    else:
        pictures = [from_floats(image) for image in images or ()]
        built = build_from_images(model.model, pictures, captions, out, options, device, Progress())
    BUILT.note(out)
    return io.NodeOutput(IndexChoice(built.index, AS_BUILT_KEYS, only), describe_built(out, built))


def build_state(name: str, folder: str) -> str:
    """A text that changes when the index has to be built again."""
    place = picture_folder(folder)
    state = "" if place is None else TIMES.state(str(place))
    return f"{BUILT.generation(index_path(name))} {state}"


def check_inputs(
    out: Path,
    overwrite: bool,
    place: Path | None,
    images: list[Tensor] | None,
    captions: list[str],
) -> None:
    """Refuse contradicting inputs before anything is loaded.

    Raises:
        InputError: No pictures or two kinds, captions without images, a name that is taken.
    """
    if (images is None) == (place is None):
        raise InputError(
            "connect images or choose a folder: exactly one of them supplies the pictures"
        )
    if images is None and captions:
        raise InputError(
            "captions belong to the images input; those of a folder come from text files "
            "beside the pictures"
        )
    if out.exists() and not overwrite:
        raise InputError(
            f"there is an index {out.name} already; choose another name, turn overwrite on, or "
            "use it with Load Patch Index"
        )


def index_path(name: str) -> Path:
    """Where an index of this name is saved.

    Raises:
        InputError: The name is no plain file name on every system.
    """
    stem = name.removesuffix(SUFFIX)
    if (
        not stem
        or FORBIDDEN.search(stem)
        or len(stem.encode()) > MAX_NAME
        or RESERVED.fullmatch(stem)
        or stem.startswith((".", " "))
        or stem.endswith((".", " "))
    ):
        raise InputError(
            f"{name[:100]!r} cannot be a file's name; choose one of up to {MAX_NAME} letters, "
            "digits, - and _, without folders"
        )
    return Path(folders.save_folder(folders.INDEXES), stem + SUFFIX)


def input_folders() -> dict[str, Path]:
    """Subfolders of ComfyUI's input folder by their paths below it, with forward slashes."""
    found, waiting = {}, [(folder_paths.get_input_directory(), "", 0)]
    while waiting:
        path, below, depth = waiting.pop()
        for name in TIMES.subfolders(path)[1]:
            found[below + name] = Path(path, name)
            if depth + 1 < folders.MAX_DEPTH:
                waiting.append((os.path.join(path, name), f"{below}{name}/", depth + 1))
    return dict(sorted(found.items()))


def picture_folder(name: str) -> Path | None:
    """The folder behind a name on offer; None where the images input is meant.

    Raises:
        InputError: The name is not on offer.
    """
    if name == NO_FOLDER:
        return None
    on_offer = input_folders()
    if not isinstance(name, str) or name not in on_offer:
        raise InputError(
            f"{str(name)[:100]!r} is not among the subfolders of ComfyUI's input folder; choose "
            "one of the list"
        )
    return on_offer[name]


def describe_built(out: Path, built: Built) -> str:
    """What the index holds, and every picture that it does not."""
    report = built.report
    lines = [f"{name}: the same picture as {first}, left out" for name, first in report.duplicates]
    lines += [f"{name}: {reason}, left out" for name, reason in report.unreadable]
    lines += report.notes
    for line in lines:
        logging.warning(line)
    captions = f"{report.captioned} of {report.pictures} pictures have captions"
    head = describe(out.name, built.index, out.stat().st_size)
    return "\n".join((head, captions, *lines))


class Builds:
    """Which files were built here, for ComfyUI's cache: what it has built it need not build again,
    unless the file was changed or deleted."""

    def __init__(self) -> None:
        self._stamps: dict[Path, str] = {}
        self._generations: dict[Path, int] = {}

    def note(self, path: Path) -> None:
        """The file has just been built."""
        self._stamps[path] = folders.fingerprint(path)

    def generation(self, path: Path) -> int:
        """How often a file built here has been changed or taken away."""
        stamp = self._stamps.get(path)
        if stamp is not None and not (path.is_file() and folders.fingerprint(path) == stamp):
            del self._stamps[path]
            self._generations[path] = self._generations.get(path, 0) + 1
        return self._generations.get(path, 0)


BUILT = Builds()
TIMES = FolderTimes()
