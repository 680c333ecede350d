"""Save With Attribution."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from comfy.cli_args import args
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..arrag_engine.attribution import CHUNK, Credits, drawing_credits
from ..arrag_engine.attribution.certificates import (
    Identity,
    check_packages,
    own_identity,
    read_identity,
)
from ..arrag_engine.attribution.content_credentials import check_identity, sign_png
from ..arrag_engine.attribution.png import png_bytes, write_together
from ..arrag_engine.bounds import check_choice, shown
from ..arrag_engine.decode import Drawing
from ..arrag_engine.errors import InputError
from .inputs import checked
from .newer import found_by
from .samplers import show_notes
from .types import CATEGORY, Trace

OFF, OWN, USERS = "off", "own certificate", "my certificate"
"""Who signs the Content Credentials."""
SIGNERS = (OFF, OWN, USERS)
UNTRUSTED = (
    "The Content Credentials are signed with a certificate made on this computer, which is not "
    "publicly trusted: viewers show an unknown signer."
)


def certificates() -> Path:
    """The folder of the user's chain and key, which ComfyUI serves to nobody."""
    return Path(folder_paths.get_system_user_directory("arrag"), "certificates")


class SaveWithAttribution(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ARRAG_SaveWithAttribution",
            display_name="Save With Attribution",
            category=CATEGORY,
            description="Saves pictures as Save Image does, with the workflow inside, and also "
            "writes which sources the picture is made of: name, origin, licence, hash and share of "
            "each.",
            **found_by("credits", "licence", "C2PA", "Content Credentials", "save image"),
            inputs=[
                io.Image.Input("image", tooltip="The pictures of a sampler, refined or not."),
                Trace.Input(
                    "trace",
                    tooltip="From the sampler that drew the pictures. It says what they are made "
                    "of.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="AR-RAG",
                    tooltip="Beginning of the file names, as in Save Image; a / makes a subfolder "
                    "of the output folder.",
                ),
                io.Boolean.Input(
                    "credit_file",
                    default=False,
                    tooltip="Also writes the credits as a text file beside each picture.",
                ),
                io.Combo.Input(
                    "content_credentials",
                    options=list(SIGNERS),
                    default=OFF,
                    tooltip="Signs each picture with a C2PA manifest; needs the package "
                    "c2pa-python. own certificate: made on this computer once, not publicly "
                    "trusted. my certificate: chain.pem and key.pem in "
                    "user/__arrag/certificates.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "CREDITS", display_name="credits", tooltip="The credits of all pictures."
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, content_credentials: str | None) -> bool | str:
        if content_credentials is None:  # linked: not known yet
            return True
        try:
            check_signer(content_credentials)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    @checked
    def execute(
        cls,
        image: Tensor,
        trace: Drawing,
        filename_prefix: str,
        credit_file: bool,
        content_credentials: str,
    ) -> io.NodeOutput:
        credits = drawing_credits(trace)
        if len(credits) != len(image):
            raise InputError(
                f"image has {len(image)} pictures and trace has {len(credits)}; connect both to "
                "the sampler that drew the pictures"
            )
        identity = signer(content_credentials)
        places = output_places(filename_prefix, image)
        texts = workflow_texts(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        files: dict[Path, bytes] = {}
        for place, pixels, owed in zip(places, image, credits, strict=True):
            files[place] = picture_file(pixels, texts, owed, place.name, identity)
            if credit_file:
                files[place.with_suffix(".txt")] = f"{place.name}\n{owed.as_text()}\n".encode()
        write_together(files)
        notes = [UNTRUSTED] if content_credentials == OWN else []
        if notes:
            show_notes(cls.hidden.unique_id, notes)
        said = (f"{p.name}\n{owed.as_text()}" for p, owed in zip(places, credits, strict=True))
        text = "\n\n".join([*said, *notes])
        return io.NodeOutput(text, ui=ui.SavedImages(saved_results(places)))


def check_signer(choice: str) -> None:
    """Refuse, before anything is drawn, a certificate that cannot sign. Makes no certificate.

    Raises:
        InputError: A package is missing, or the certificate does not fit.
    """
    if check_choice("content_credentials", choice, SIGNERS) == OFF:
        return
    check_packages()
    if choice == USERS or (certificates() / "own").is_dir():
        signer(choice)


def signer(choice: str) -> Identity | None:
    """What signs, tried out; None if nothing is signed. Errors as of `check_signer`."""
    if check_choice("content_credentials", choice, SIGNERS) == OFF:
        return None
    own = choice == OWN
    identity = own_identity(certificates() / "own") if own else read_identity(certificates())
    check_identity(identity)
    return identity


def output_places(prefix: str, image: Tensor) -> list[Path]:
    """Where the pictures go: the names that Save Image would choose.

    Raises:
        InputError: The prefix leads out of the output folder, or is no name.
    """
    output = folder_paths.get_output_directory()
    inner = os.path.abspath(os.path.join(output, os.path.dirname(os.path.normpath(prefix))))
    try:
        os.fsencode(prefix)
        usable = "\0" not in prefix and os.path.commonpath((output, inner)) == output
    except ValueError:  # another drive, half a character
        usable = False
    if not usable:
        raise InputError(
            f"filename_prefix is {shown(prefix)}, which names no file in the output folder; choose "
            "another one"
        )
    height, width = image.shape[1:3]
    try:
        folder, name, number, _, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    except OSError as error:
        raise InputError(
            f"no picture can be saved under {shown(prefix)} ({error.strerror}); choose another "
            "filename_prefix"
        ) from error
    names = (name.replace("%batch_num%", str(i)) for i in range(len(image)))
    return [Path(folder, f"{one}_{number + i:05}_.png") for i, one in enumerate(names)]


def saved_results(places: list[Path]) -> list[ui.SavedResult]:
    """What the browser shows."""
    output = folder_paths.get_output_directory()
    inner = [os.path.relpath(place.parent, output) for place in places]
    folders = ["" if folder == "." else folder for folder in inner]
    kind = io.FolderType.output
    return [ui.SavedResult(p.name, f, kind) for p, f in zip(places, folders, strict=True)]


def workflow_texts(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """The text chunks that Save Image writes; none under --disable-metadata."""
    if args.disable_metadata:
        return {}
    texts = {} if prompt is None else {"prompt": prompt}
    return {name: json.dumps(value) for name, value in {**texts, **(extra or {})}.items()}


def picture_file(
    pixels: Tensor, texts: dict[str, str], credits: Credits, name: str, identity: Identity | None
) -> bytes:
    """The bytes of the PNG of a picture [H, W, C], signed if there is someone to sign."""
    array = np.clip(255.0 * pixels.cpu().numpy(), 0, 255).astype(np.uint8)  # as Save Image does
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    png = png_bytes(image, {**texts, CHUNK: credits.as_json()})
    return png if identity is None else sign_png(png, credits, name, identity)
