"""Content Credentials (C2PA): a signed manifest in a PNG that says what made the picture, of what.

`c2pa-python` is an optional package, imported when it is used. Nothing here opens a connection: no
time stamp is asked for, no revocation list, no remote manifest.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import io
import json
import uuid
from dataclasses import astuple, replace
from typing import Any

from PIL import Image

from ..errors import InputError, printable
from .certificates import PURPOSES, Identity
from .credits import LONGEST_TEXT, Credit, Credits, one_line
from .png import png_bytes

GENERATOR = {"name": "ComfyUI-ARRAG", "version": "0.2.0"}
VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype"
DRAWN = f"{VOCABULARY}/trainedAlgorithmicMedia"
COMPOSED = f"{VOCABULARY}/compositeWithTrainedAlgorithmicMedia"
"""IPTC's terms for a picture of a trained model, and for one that holds parts of others too."""
LABEL = "io.github.arrag.credits"
"""Of our own assertion."""
MAX_INGREDIENTS = 500
"""Sources that become ingredients of their own, the largest shares first. The time to sign grows
with the square of their number; the text chunk, which the signature covers, lists all."""
ALL_TEXTS = 120_000
"""Characters of all names, origins and licences together; the library takes a manifest of 1 MB."""
MIME = "image/png"
SETTINGS = {
    "version": 1,
    "verify": {"verify_trust": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
    "trust": {"trust_config": "".join(f"{purpose}\n" for purpose in PURPOSES)},
    "builder": {"thumbnail": {"enabled": False}},
    "core": {"allowed_network_hosts": []},
}


def check_identity(identity: Identity) -> None:
    """Sign one pixel, which finds out before any work what the library refuses.

    Raises:
        InputError: It does.
    """
    sign_png(png_bytes(Image.new("RGB", (1, 1)), {}), Credits(), "test.png", identity)


def sign_png(png: bytes, credits: Credits, title: str, identity: Identity) -> bytes:
    """The PNG with a manifest of its credits inside. The signature covers all other bytes.

    Raises:
        InputError: The library refuses the certificate.
    """
    import c2pa

    context = c2pa.Context(settings=c2pa.Settings.from_dict(SETTINGS))
    info = c2pa.C2paSignerInfo(identity.algorithm, identity.chain, identity.key, None)
    signed = io.BytesIO()
    try:
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(manifest(credits, title), context) as builder,
        ):
            builder.sign(signer, MIME, io.BytesIO(png), signed)
    except c2pa.C2paError as error:
        reason = printable(" ".join(str(error).split()), longest=300)
        raise InputError(
            f"the C2PA library refuses the certificate in {identity.place} ({reason}); use another"
        ) from error
    return signed.getvalue()


def manifest(credits: Credits, title: str) -> str:
    """The manifest as JSON: who made the picture, how, and an ingredient for each source."""
    listed = credits.sources[:MAX_INGREDIENTS]
    longest = min(LONGEST_TEXT, ALL_TEXTS // (3 * max(len(listed), 1)))
    ingredients = [_ingredient(credit, longest) for credit in listed]
    composed = bool(credits.sources or credits.unlisted or credits.kept)
    created: dict[str, Any] = {
        "action": "c2pa.created",
        "digitalSourceType": COMPOSED if composed else DRAWN,
        "softwareAgent": GENERATOR,
    }
    if ingredients:
        created["parameters"] = {"ingredientIds": [one["label"] for one in ingredients]}
    shares = {
        "model": credits.model,
        "kept": credits.kept,
        "unlisted": credits.unlisted,
        "sources": len(credits.sources),
        "sources_below_the_listed": sum(c.share for c in credits.sources[MAX_INGREDIENTS:]),
    }
    made = {
        "claim_generator_info": [GENERATOR],
        "title": one_line(title),
        "format": MIME,
        "ingredients": ingredients,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": LABEL, "data": shares},
        ],
    }
    return json.dumps(made, ensure_ascii=False)


def _ingredient(credit: Credit, longest: int) -> dict[str, Any]:
    """A source whose patches went into the drawing; its file is not here, only its hash."""
    identifier = uuid.uuid5(uuid.NAMESPACE_URL, ascii(astuple(replace(credit, share=0)))).urn
    known = {
        "sha256": credit.sha256,
        "licence": one_line(credit.licence, longest),
        "origin": one_line(credit.origin, longest),
    }
    facts = {name: text for name, text in known.items() if text}
    return {
        "label": identifier,
        "title": one_line(credit.name, longest) or "a source without a name",
        "instance_id": identifier,
        "relationship": "inputTo",
        "metadata": {"share": credit.share, **facts},
    }
