"""Whose a bundle is: OpenSSH's signatures over what was built, and nothing else passes for one."""

import base64
import json
import os
import shutil
import subprocess
from dataclasses import fields, replace

import pytest

from edgekit import build_bundle, open_bundle
from edgekit.bundle import check_signature, load_keys, load_signer, record, sign_bundle, signed_by, signing, statement
from edgekit.bundle.manifest import SIGNATURE
from edgekit.cli import run
from edgekit.errors import BundleError, ConfigError
from edgekit.testing import tiny_checkpoint
from edgekit.types import Manifest
from edgekit.types.data import DataCard
from tests import made

pytest.importorskip("cryptography")
needs_openssh = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs OpenSSH")


def write_key(path, *, kind="ed25519"):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    private = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(private.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()))
    path.chmod(0o600)
    public = private.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
    path.with_name(path.name + ".pub").write_bytes(public + b" somebody\n")
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    model = tiny_checkpoint(tmp_path_factory.mktemp("signing") / "model")
    return build_bundle(str(model), precision="int4", out=model.parent / "bundle")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def bundle(built, tmp_path):
    return open_bundle(shutil.copytree(built.path, tmp_path / "bundle"))


@pytest.fixture
def key(tmp_path):
    return write_key(tmp_path / "key")


@pytest.fixture
def signed(bundle, key):
    sign_bundle(bundle, load_signer(key))
    return open_bundle(bundle.path)


def public(key):
    return load_keys(key.with_name(key.name + ".pub"))


def rewrite(bundle, change):
    file = bundle.path / "edgekit.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return open_bundle(bundle.path, check=False)


def test_a_signed_bundle_is_whose_it_is(signed, key):
    name = check_signature(signed, public(key))
    assert name == signed_by(signed)
    assert name.startswith("SHA256:")
    assert len(name) == 50
    assert json.loads(statement(signed.manifest))["files"][0]["sha256"]


@needs_openssh
def test_openssh_verifies_what_edgekit_signs(signed, key, tmp_path):
    allowed = tmp_path / "allowed"
    allowed.write_text("builder " + key.with_name("key.pub").read_text())
    command = ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "builder", "-n", "edgekit-bundle"]
    command += ["-s", signed.path / SIGNATURE]
    said = subprocess.run(command, input=statement(signed.manifest), capture_output=True, check=False)
    assert said.returncode == 0, said.stderr
    assert signed_by(signed).encode() in said.stdout
    assert check_signature(signed, load_keys(allowed))


@needs_openssh
@pytest.mark.parametrize("algorithm", ["sha512", "sha256"])
def test_edgekit_verifies_what_openssh_signs(bundle, key, tmp_path, algorithm, capfdbinary):
    assert run(["sign", str(bundle.path)]) == 0
    told = capfdbinary.readouterr().out
    assert told == statement(bundle.manifest)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", "edgekit-bundle", "-O", f"hashalg={algorithm}"]
    made = subprocess.run(command, input=told, capture_output=True, check=True)
    (bundle.path / SIGNATURE).write_bytes(made.stdout)
    assert check_signature(open_bundle(bundle.path), public(key))
    # Another purpose, a commit's, is not this one.
    command[7] = "git"
    (bundle.path / SIGNATURE).write_bytes(subprocess.run(command, input=told, capture_output=True, check=True).stdout)
    with pytest.raises(BundleError, match="is for 'git'"):
        check_signature(bundle, public(key))


def test_what_is_measured_later_leaves_the_signature(signed, key):
    record(signed, quality=made.quality(0.2, 0.8), latency=made.measurement(50.0, "int4"))
    again = open_bundle(signed.path)
    assert again.manifest.quality
    assert check_signature(again, public(key))


MEASURED = {"quality", "latency", "tunings", "arm", "calibration"}
LEARNED = {"calibrated", "learned"}
"""Left out where there are none, so that signatures of earlier bundles hold."""


def test_everything_else_of_the_manifest_is_signed(bundle):
    told = json.loads(statement(bundle.manifest))
    assert set(told) == {f.name for f in fields(Manifest)} - LEARNED
    plain = json.loads((bundle.path / "edgekit.json").read_text())
    assert told["recipe"] == {k: v for k, v in plain["recipe"].items() if k != "low"}
    for name in told.keys() - MEASURED - {"recipe"}:
        assert told[name] == plain[name], name
    for name in MEASURED:
        assert not told[name]


def test_the_text_that_weights_were_fitted_to_is_signed(bundle):
    card = DataCard((), tokens=512, held_out=0, window=512, seed=0)
    told = json.loads(statement(replace(bundle.manifest, calibrated=card)))
    assert told["calibrated"]["tokens"] == 512


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"][0].update(sha256="00" * 32),
        lambda m: m["files"].pop(0),
        lambda m: m["provenance"].update(sha256="00" * 32),
        lambda m: m["provenance"].update(location="/elsewhere"),
        lambda m: m["recipe"].update(accuracy_level=0),
        lambda m: m["target"].update(notes="another"),
        lambda m: m.update(exporter="optimum"),
        lambda m: m["tensors"][0].update(bytes=1),
    ],
)
def test_a_changed_manifest_is_refused(signed, key, change):
    with pytest.raises(BundleError, match="was changed after signing") as caught:
        changed = rewrite(signed, lambda m: None)
        data = json.loads((signed.path / "edgekit.json").read_text())
        change(data)
        from edgekit.record import from_json

        check_signature(replace(changed, manifest=from_json(Manifest, json.dumps(data))), public(key))
    assert caught.value.hint


def test_a_field_that_is_added_later_changes_no_statement(bundle):
    # Environment.arithmetic and Quality.processor_class were added so; what is absent means the default.
    assert json.loads(statement(bundle.manifest)) == json.loads(statement(open_bundle(bundle.path).manifest))
    from edgekit.record import to_json

    environment = made.measurement(1.0, "int4").environment
    assert "arithmetic" in to_json(environment)
    assert "arithmetic" not in to_json(environment, brief=True)
    assert "arithmetic" in to_json(replace(environment, arithmetic="exact"), brief=True)


def test_unsigned_or_by_another(bundle, signed, key, tmp_path):
    other = write_key(tmp_path / "other")
    with pytest.raises(BundleError, match="not a trusted key"):
        check_signature(signed, public(other))
    several = tmp_path / "several"
    several.write_text("# ours\n\n" + "".join(k.with_name(k.name + ".pub").read_text() for k in (other, key)))
    assert check_signature(signed, load_keys(several))
    (signed.path / SIGNATURE).unlink()
    with pytest.raises(BundleError, match="is not signed"):
        check_signature(signed, public(key))


def test_a_signature_of_another_bundle_is_refused(signed, key):
    manifest = replace(signed.manifest, edgekit="9.9.9")
    with pytest.raises(BundleError, match="was changed after signing"):
        check_signature(replace(signed, manifest=manifest), public(key))


def armored(blob):
    return f"-----BEGIN SSH SIGNATURE-----\n{base64.b64encode(blob).decode()}\n-----END SSH SIGNATURE-----\n".encode()


def blob_of(signed):
    lines = (signed.path / SIGNATURE).read_text().splitlines()
    return base64.b64decode("".join(lines[1:-1]))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b"",
        lambda b: b"\xff\x00",
        lambda b: b"-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----\n",
        lambda b: armored(b[:-1]),
        lambda b: armored(b + b"\0"),
        lambda b: armored(b"SSHSIX" + b[6:]),
        lambda b: armored(b[:9] + b"\x02" + b[10:]),
        lambda b: armored(b.replace(b"sha512", b"sha999")),
        lambda b: armored(b.replace(b"ssh-ed25519", b"ssh-ed25510")),
        lambda b: armored(b[:10] + b"\xff\xff\xff\xff" + b[14:]),
        lambda b: armored(b.replace(b"edgekit-bundle", b"\xff" * 14)),
        lambda b: b"x" * (1 << 17),
    ],
)
def test_damaged_signatures(signed, key, spoil):
    (signed.path / SIGNATURE).write_bytes(spoil(blob_of(signed)))
    for look in (lambda: signed_by(signed), lambda: check_signature(signed, public(key))):
        with pytest.raises(BundleError) as caught:
            look()
        assert caught.value.hint


def test_every_byte_of_a_signature_counts(signed, key):
    blob = blob_of(signed)
    for at in range(0, len(blob), 3):
        (signed.path / SIGNATURE).write_bytes(armored(blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]))
        with pytest.raises(BundleError):
            check_signature(signed, public(key))


def test_links_and_pipes_are_no_signatures(signed, key, tmp_path):
    kept = shutil.copy(signed.path / SIGNATURE, tmp_path / "kept")
    (signed.path / SIGNATURE).unlink()
    (signed.path / SIGNATURE).symlink_to(kept)
    with pytest.raises(BundleError, match="not an OpenSSH signature"):
        check_signature(signed, public(key))
    (signed.path / SIGNATURE).unlink()
    os.mkfifo(signed.path / SIGNATURE)
    with pytest.raises(BundleError, match="not an OpenSSH signature"):
        signed_by(signed)


def test_signing_replaces_a_link_and_does_not_follow_it(bundle, key, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (bundle.path / SIGNATURE).symlink_to(victim)
    sign_bundle(bundle, load_signer(key))
    assert victim.read_text() == "mine"
    assert check_signature(open_bundle(bundle.path), public(key))


def test_keys_that_are_none(tmp_path, key):
    loose = write_key(tmp_path / "loose")
    loose.chmod(0o644)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(bytes(range(256)))
    garbage.chmod(0o600)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path, said in (
        (loose, "readable by other users"),
        (write_key(tmp_path / "ecdsa", kind="ecdsa"), "ssh-ed25519"),
        (garbage, "not an OpenSSH private key"),
        (pipe, "not a key"),
        (tmp_path, "key"),
        (tmp_path / "absent", "cannot read the key"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            load_signer(path)
        assert caught.value.hint
    swapped = key.with_name("key.pub")
    swapped.chmod(0o600)
    with pytest.raises(ConfigError, match="is a public key"):
        load_signer(swapped)
    optioned = tmp_path / "optioned"
    optioned.write_text('builder valid-before="19990101" ' + key.with_name("key.pub").read_text())
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    for path, said in (
        (key, "private key"),
        (garbage, "not an ssh-ed25519 public key"),
        (optioned, "optioned:1"),
        (empty, "has no key"),
        (tmp_path / "ecdsa.pub", "not an ssh-ed25519 public key"),
        (pipe, "not a key"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            load_keys(path)
        assert caught.value.hint


@needs_openssh
def test_a_key_with_a_passphrase_signs_through_openssh(tmp_path):
    path = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", path], check=True)
    with pytest.raises(ConfigError, match="has a passphrase") as caught:
        load_signer(path)
    assert "ssh-keygen -Y sign" in caught.value.hint


def test_without_cryptography_the_hint_says_what_to_install(signed, key, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigError, match="needs cryptography"):
        load_signer(key)
    with pytest.raises(ConfigError) as caught:
        check_signature(signed, public(key))
    assert "edgekit[sign]" in caught.value.hint
    assert signed_by(signed), "to say who is named needs nothing"


# --- as a person calls it -------------------------------------------------------------------------


FAST = ["--tokens", "128", "--window", "64", "--max-kld", "100", "--min-top1", "0"]


def test_build_sign_and_verify_key(tmp_path, key, capsys):
    model = tiny_checkpoint(tmp_path / "model")
    out = tmp_path / "out"
    assert run(["build", str(model), "-o", str(out), "--sign", str(key)]) == 0
    assert "signed by SHA256:" in capsys.readouterr().err
    assert run(["verify", str(out), "--key", f"{key}.pub", "--record", *FAST]) == 0
    assert "pass  signature" in capsys.readouterr().out
    assert run(["inspect", str(out)]) == 0
    assert "not checked" in capsys.readouterr().out
    # What was recorded does not count, another file does; and a bundle that is replaced is not signed any more.
    assert run(["verify", str(out), "--key", f"{key}.pub", *FAST]) == 0
    assert run(["build", str(model), "-o", str(out), "--force", "--precision", "fp32"]) == 0
    capsys.readouterr()
    assert run(["verify", str(out), "--key", f"{key}.pub", *FAST]) == 1
    captured = capsys.readouterr()
    assert "is not signed" in captured.err
    assert "hint: " in captured.err
    assert "graph" not in captured.out, "nothing of a stranger's bundle is run"
    assert run(["sign", str(out), "--key", str(key), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signed_by"].startswith("SHA256:")
    assert run(["verify", str(out), "--key", f"{key}.pub", *FAST]) == 0


def test_a_bad_key_ends_a_build_before_it_begins(tmp_path, key, capsys, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the build began")

    monkeypatch.setattr("edgekit.build.pipeline.build_bundle", never)
    key.chmod(0o640)
    for path in (key, tmp_path / "absent"):
        assert run(["build", "model", "-o", str(tmp_path / "out"), "--sign", str(path)]) == 1
        captured = capsys.readouterr().err
        assert captured.startswith("error: ")
        assert "hint: " in captured
    monkeypatch.setattr("edgekit.verify.bundle.verify_bundle", never)
    assert run(["verify", "bundle", "--key", str(key)]) == 1
    assert "private key" in capsys.readouterr().err


def test_a_changed_file_of_a_signed_bundle(signed, key, capsys):
    data = next(signed.path.rglob("*.onnx_data"))
    data.write_bytes(data.read_bytes()[:-1] + b"\xff")
    assert run(["verify", str(signed.path), "--key", f"{key}.pub", *FAST]) == 1
    assert "has changed" in capsys.readouterr().err


def test_the_signature_ships_with_the_bundle(signed):
    assert open_bundle(signed.path).path == signed.path
    (signed.path / "onnx" / SIGNATURE).write_text("elsewhere it is a stranger")
    with pytest.raises(BundleError, match="not part of the bundle"):
        open_bundle(signed.path)
    assert signing.NAMESPACE == "edgekit-bundle"
