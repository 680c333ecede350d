"""Manifests read back with the C2PA library, and certificates that do not fit.

The packages are optional: without them, all but the last tests are skipped.
"""

import io
import json
import os
import stat
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from PIL import Image

from arrag_engine.attribution import CHUNK, Credit, Credits
from arrag_engine.attribution.certificates import (
    CHAIN,
    KEY,
    ROOT,
    check_packages,
    own_identity,
    read_identity,
)
from arrag_engine.attribution.content_credentials import (
    COMPOSED,
    DRAWN,
    GENERATOR,
    LABEL,
    MAX_INGREDIENTS,
    SETTINGS,
    check_identity,
    sign_png,
)
from arrag_engine.attribution.png import png_bytes
from arrag_engine.errors import InputError
from tests.attribution.strangers import NAMES

CREDITS = Credits(
    (
        Credit("flamingo.png", "https://example.org/1", "CC0", "ab" * 32, 0.4),
        Credit("car.png", "", "MIT", "", 0.1),
    ),
    model=0.5,
)


@pytest.fixture(scope="module")
def c2pa():
    return pytest.importorskip("c2pa", reason="c2pa-python is not installed")


@pytest.fixture(scope="module")
def own(c2pa, tmp_path_factory):
    """The chain that the package makes."""
    return own_identity(tmp_path_factory.mktemp("user") / "certificates" / "own")


def signed(credits, identity, texts=None):
    png = png_bytes(Image.new("RGB", (40, 30), "red"), texts or {CHUNK: credits.as_json()})
    return sign_png(png, credits, "picture.png", identity)


def read(c2pa, png, root=None):
    """(manifest, codes of failed checks, state) as a reader sees them who trusts `root`."""
    trust = {"trust": {"user_anchors": root}} if root else {}
    verify = {"verify": {**SETTINGS["verify"], "verify_trust": True}}
    context = c2pa.Context(settings=c2pa.Settings.from_dict({**SETTINGS, **verify, **trust}))
    with c2pa.Reader("image/png", io.BytesIO(png), context=context) as reader:
        failures = reader.get_validation_results()["activeManifest"]["failure"]
        state = reader.get_validation_state()
        return reader.get_active_manifest(), [one["code"] for one in failures], state


def action_of(manifest):
    [actions] = [a for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2"]
    [action] = actions["data"]["actions"]
    return action


def test_a_manifest_is_read_back(c2pa, own):
    manifest, failures, state = read(c2pa, signed(CREDITS, own))
    assert (failures, state) == (["signingCredential.untrusted"], "Valid")
    [generator] = manifest["claim_generator_info"]
    assert generator.items() >= GENERATOR.items()
    action = action_of(manifest)
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", COMPOSED)
    assert len(action["parameters"]["ingredients"]) == 2
    first, second = manifest["ingredients"]
    assert (first["title"], first["relationship"]) == ("flamingo.png", "inputTo")
    assert first["metadata"] == {
        "share": 0.4,
        "sha256": "ab" * 32,
        "licence": "CC0",
        "origin": "https://example.org/1",
    }
    assert second["metadata"] == {"share": 0.1, "licence": "MIT"}
    [own_assertion] = [a["data"] for a in manifest["assertions"] if a["label"] == LABEL]
    assert own_assertion["model"] == 0.5
    assert "time" not in manifest["signature_info"]  # no time stamp was asked for


def test_who_trusts_the_own_root_trusts_the_picture(c2pa, own):
    root = (own.place / ROOT).read_text()
    assert read(c2pa, signed(CREDITS, own), root)[1:] == ([], "Trusted")


def test_a_picture_of_the_model_alone_has_no_ingredients(c2pa, own):
    manifest, _, _ = read(c2pa, signed(Credits(), own))
    assert action_of(manifest)["digitalSourceType"] == DRAWN
    assert not manifest.get("ingredients")


def test_the_text_chunks_stay_and_are_covered_by_the_signature(c2pa, own):
    png = signed(CREDITS, own, {"workflow": '{"nodes": []}', CHUNK: CREDITS.as_json()})
    text = Image.open(io.BytesIO(png)).text
    assert text["workflow"] == '{"nodes": []}'
    assert json.loads(text[CHUNK])["model"] == 0.5
    changed = png.replace(b'"share": 0.4', b'"share": 0.3')
    assert changed != png
    assert "assertion.dataHash.mismatch" in read(c2pa, changed)[1]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_hostile_names_are_ingredients_like_others(c2pa, own, name):
    credits = Credits((Credit(name, name, name, "", 0.5), CREDITS.sources[1]), model=0.4)
    manifest, failures, _ = read(c2pa, signed(credits, own))
    assert failures == ["signingCredential.untrusted"]
    assert len(manifest["ingredients"]) == 2
    title = manifest["ingredients"][0]["title"]
    assert title.strip()
    assert title.isprintable()


def test_more_sources_than_ingredients(c2pa, own):
    """With the longest texts, the manifest is still small enough for the library."""
    texts = ("🦩" * 5000, '"' * 5000, "\x00" * 5000)
    many = [Credit(*texts, f"{i:064x}", 1 / 600) for i in range(MAX_INGREDIENTS + 100)]
    manifest, failures, _ = read(c2pa, signed(Credits(tuple(many), model=0.0), own))
    assert failures == ["signingCredential.untrusted"]
    assert len(manifest["ingredients"]) == MAX_INGREDIENTS
    [shares] = [a["data"] for a in manifest["assertions"] if a["label"] == LABEL]
    assert shares["sources"] == 600
    assert shares["sources_below_the_listed"] == pytest.approx(100 / 600)


def test_the_own_chain_is_made_once_and_its_key_is_private(c2pa, tmp_path):
    folder = tmp_path / "a" / "own"
    first, again = own_identity(folder), own_identity(folder)
    assert first == again
    assert sorted(path.name for path in folder.iterdir()) == sorted([CHAIN, KEY, ROOT])
    assert [path.name for path in folder.parent.iterdir()] == ["own"]
    if os.name == "posix":
        assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_written_is_one_sentence(c2pa, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*own"):
        own_identity(tmp_path / "file" / "own")


class Issuer:
    """A root that issues whatever a test asks for."""

    def __init__(self):
        from cryptography.hazmat.primitives.asymmetric import ec

        self.ec, self.key = ec, ec.generate_private_key(ec.SECP256R1())
        self.root = self.issue(self.key, self.key, "root", ca=True)

    def name(self, text):
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        names = {NameOID.COMMON_NAME: text, NameOID.ORGANIZATION_NAME: "Test"}
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in names.items()])

    def issue(self, key, signer, name, issuer="root", ca=False, start=-1, end=9, purpose=None):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        now = datetime.now(timezone.utc)
        unused = "content_commitment key_encipherment data_encipherment key_agreement crl_sign"
        uses = dict.fromkeys([*unused.split(), "encipher_only", "decipher_only"], False)
        build = x509.CertificateBuilder(self.name(issuer), self.name(name), key.public_key())
        build = build.serial_number(x509.random_serial_number())
        build = build.not_valid_before(now + timedelta(days=start))
        build = build.not_valid_after(now + timedelta(days=end))
        identifiers = (
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
        )
        for extension in identifiers:
            build = build.add_extension(extension, critical=False)
        usage = x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, **uses)
        build = build.add_extension(usage, critical=True)
        build = build.add_extension(x509.BasicConstraints(ca, None), critical=True)
        if purpose:
            purposes = x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose)])
            build = build.add_extension(purposes, critical=False)
        return build.sign(signer, hashes.SHA256())

    def write(self, folder, key, chain, mode=0o600, password=None):
        from cryptography.hazmat.primitives import serialization as s

        locked = s.BestAvailableEncryption(password) if password else s.NoEncryption()
        folder.mkdir(exist_ok=True)
        pem = b"".join(one.public_bytes(s.Encoding.PEM) for one in chain)
        (folder / CHAIN).write_bytes(pem)
        kind = s.PrivateFormat.TraditionalOpenSSL if not password else s.PrivateFormat.PKCS8
        (folder / KEY).write_bytes(key.private_bytes(s.Encoding.PEM, kind, locked))
        (folder / KEY).chmod(mode)


EMAIL, DOCUMENTS, CLAIMS, SERVER = (
    "1.3.6.1.5.5.7.3.4",
    "1.3.6.1.5.5.7.3.36",
    "1.3.6.1.4.1.62558.2.1",
    "1.3.6.1.5.5.7.3.1",
)


@pytest.fixture
def issuer(c2pa):
    return Issuer()


@pytest.mark.parametrize("purpose", [EMAIL, DOCUMENTS, CLAIMS])
def test_the_users_certificate_signs(c2pa, issuer, tmp_path, purpose):
    key = issuer.ec.generate_private_key(issuer.ec.SECP384R1())
    leaf = issuer.issue(key, issuer.key, "signer", purpose=purpose)
    issuer.write(tmp_path, key, [leaf, issuer.root])
    identity = read_identity(tmp_path)
    assert identity.algorithm == "es384"
    check_identity(identity)
    manifest, _, _ = read(c2pa, signed(CREDITS, identity))
    assert manifest["signature_info"]["common_name"] == "signer"


def damaged(issuer, folder, how):
    """A folder whose certificate does not fit."""
    key = issuer.ec.generate_private_key(issuer.ec.SECP256R1())
    purpose = SERVER if how == "purpose" else None if how == "no purpose" else EMAIL
    start, end = {"expired": (-9, -1), "early": (1, 9)}.get(how, (-1, 9))
    signer, by = (key, "signer") if how == "self-signed" else (issuer.key, "root")
    leaf = issuer.issue(key, signer, "signer", by, start=start, end=end, purpose=purpose)
    chain = [issuer.root, leaf] if how == "order" else [leaf, issuer.root]
    other = issuer.ec.generate_private_key(issuer.ec.SECP256R1())
    curve = issuer.ec.generate_private_key(issuer.ec.SECP256K1())
    if how == "curve":
        key, chain = curve, [issuer.issue(curve, issuer.key, "signer", purpose=EMAIL)]
    mode = 0o644 if how == "mode" else 0o600
    password = b"secret" if how == "password" else None
    issuer.write(folder, other if how == "other key" else key, chain, mode, password)
    if how in (CHAIN, KEY):
        (folder / how).unlink()
    if how == "garbage":
        (folder / CHAIN).write_bytes(b"\x00garbage")


FAULTS = {
    CHAIN: "there is no .*chain.pem; put",
    KEY: "there is no .*key.pem; put",
    "garbage": "does not hold certificates in PEM",
    "password": "does not hold a key in PEM without a password",
    "mode": "has mode 644, which lets others read it; chmod 600 it",
    "expired": r"is valid from \d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d only; replace it",
    "early": "is valid from",
    "self-signed": "is self-signed, which C2PA does not allow",
    "order": "self-signed|do not follow each other",
    "purpose": "is not meant for e-mail protection, document signing",
    "no purpose": "is not meant for",
    "other key": "does not belong to the first certificate",
    "curve": "holds a key of a kind that C2PA does not sign with",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_certificate_that_does_not_fit_is_one_sentence(issuer, tmp_path, how):
    if how == "mode" and os.name != "posix":
        pytest.skip("no modes here")
    damaged(issuer, tmp_path, how)
    with pytest.raises(InputError, match=FAULTS[how]) as refused:
        read_identity(tmp_path)
    assert "\n" not in str(refused.value)


def test_what_only_the_library_refuses_is_one_sentence_too(issuer, tmp_path):
    key = issuer.ec.generate_private_key(issuer.ec.SECP256R1())
    issuer.write(tmp_path, key, [issuer.issue(key, issuer.key, "s", ca=True, purpose=EMAIL)])
    with pytest.raises(InputError, match=r"the C2PA library refuses the certificate in .*; use"):
        check_identity(read_identity(tmp_path))


def test_without_the_packages_one_sentence_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)  # importing it fails
    with pytest.raises(InputError, match=r"python -m pip install c2pa-python cryptography$"):
        check_packages()


def test_the_version_is_the_package_s():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{GENERATOR["version"]}"' in text
