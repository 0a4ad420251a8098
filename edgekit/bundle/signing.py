"""Sign bundles and check signatures, in OpenSSH's format, in a file next to edgekit.json.

The signed statement is the manifest without later measurements (quality, latency, tunings, ARM scores, calibration, NPU
emulation) and without provider packages. It covers the name, size and sha256 of every file and of the checkpoint, the
recipe, the target and the graphs. Recording measurements later does not invalidate the signature.

The format is OpenSSH's SSHSIG (PROTOCOL.sshsig) with an ssh-ed25519 key and the namespace NAMESPACE: ``ssh-keygen -Y
sign`` and ``-Y verify`` write and read the same file. Only one type of key is supported, so nothing is negotiated.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import stat
from dataclasses import dataclass, replace
from hashlib import new as new_hash
from hashlib import sha256
from typing import TYPE_CHECKING

from edgekit.bundle.disk import writing
from edgekit.bundle.manifest import SIGNATURE
from edgekit.errors import BundleError, ConfigError
from edgekit.host.disk import write_whole
from edgekit.record import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edgekit.types import Bundle, Manifest, Target

NAMESPACE = "edgekit-bundle"
"""The purpose of a signature: one made for a commit or a file is not valid for a bundle."""

_MAGIC = b"SSHSIG"
_KIND = b"ssh-ed25519"
_HASHES = ("sha512", "sha256")
_ARMOR = re.compile(r"-----BEGIN SSH SIGNATURE-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END SSH SIGNATURE-----\s*")
_LARGEST = 1 << 16
"""Maximum size of a key or signature file in bytes."""
_MAKE = "make a key: ssh-keygen -t ed25519 -f KEY"
_SIGN = "sign it: edgekit sign BUNDLE --key KEY"
_INSTALL = "pip install 'edgekit[sign]'"


@dataclass(frozen=True)
class Signer:
    """An open private key."""

    key: Ed25519PrivateKey

    @property
    def public(self) -> bytes:
        """The public key as OpenSSH writes it, before base64."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return _string(_KIND) + _string(self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


@dataclass(frozen=True)
class _Signature:
    public: bytes
    namespace: str
    algorithm: str
    value: bytes


def statement(manifest: Manifest) -> bytes:
    """The signed bytes: one line of ASCII JSON with sorted keys; deterministic for a given bundle."""
    npus = tuple(
        replace(
            npu,
            target=_without_plugin(npu.target),
            emulations=(),
            on_cpu=(),
            graphs=tuple(replace(g, executed=False) for g in npu.graphs),
        )
        for npu in manifest.npus
    )
    made = replace(
        manifest,
        target=_without_plugin(manifest.target),
        quality=None,
        latency=None,
        tunings=(),
        arm=None,
        calibration=None,
        npus=npus,
    )
    text = to_json(made, brief=True)
    return (json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n").encode()


def _without_plugin(target: Target) -> Target:
    """The target without its provider's package, which each installation decides for itself (see admission)."""
    return target if target.npu is None else replace(target, npu=replace(target.npu, plugin=None))


def load_signer(path: Path) -> Signer:
    """Open a private key.

    Raises:
        ConfigError: the file is missing, readable by others, has a passphrase or is not an ssh-ed25519 key; or
            cryptography is not installed.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    except ModuleNotFoundError as error:
        raise ConfigError("signing needs cryptography, which is not installed", _INSTALL) from error
    data, mode = _read(path, "key")
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path}: the key is readable by other users", f"chmod 600 {path}")
    if data.startswith((b"ssh-", b"ecdsa-")):
        raise ConfigError(f"{path}: is a public key", "pass the private key, the file without .pub")
    try:
        key = load_ssh_private_key(data, password=None)
    except TypeError as error:
        hint = "sign with ssh-keygen: edgekit sign BUNDLE | ssh-keygen -Y sign -n edgekit-bundle -f KEY"
        raise ConfigError(f"{path}: has a passphrase", f"{hint} > BUNDLE/{SIGNATURE}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: not an OpenSSH private key: {error}", _MAKE) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an ssh-ed25519 key", _MAKE)
    return Signer(key)


def sign_bundle(bundle: Bundle, signer: Signer) -> str:
    """Write the signature into the bundle, replacing an older one; return the key's fingerprint.

    Raises:
        BundleError: it cannot be written.
    """
    value = signer.key.sign(_signed(statement(bundle.manifest), NAMESPACE, _HASHES[0]))
    blob = b"".join(
        (
            _MAGIC,
            (1).to_bytes(4, "big"),
            *map(_string, (signer.public, NAMESPACE.encode(), b"", _HASHES[0].encode())),
            _string(_string(_KIND) + _string(value)),
        )
    )
    coded = base64.b64encode(blob).decode()
    lines = [coded[at : at + 70] for at in range(0, len(coded), 70)]
    text = "\n".join(("-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""))
    with writing(bundle.path / SIGNATURE, len(text)):
        write_whole(bundle.path / SIGNATURE, text.encode())
    return _fingerprint(signer.public)


def load_keys(path: Path) -> tuple[bytes, ...]:
    """The public keys in a file: lines of a ``.pub`` file, or of OpenSSH's allowed_signers without options.

    Raises:
        ConfigError: the file is missing, has an invalid line, or has no key.
    """
    data, _ = _read(path, "key")
    if b"PRIVATE KEY" in data:
        raise ConfigError(f"{path}: is a private key", "pass the public key, KEY.pub; never share the private one")
    keys = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        at = next((i for i, word in enumerate(words) if word == _KIND.decode()), None)
        if at is None or at > 1 or len(words) < at + 2 or (key := _decode_key(words[at + 1])) is None:
            hint = "write `ssh-ed25519 AAAA... comment`, optionally after a name; options are not supported"
            raise ConfigError(f"{path}:{number}: not an ssh-ed25519 public key", hint)
        keys.append(key)
    if not keys:
        raise ConfigError(f"{path}: has no key", _MAKE)
    return tuple(keys)


def signed_by(bundle: Bundle) -> str:
    """The fingerprint of the key named in the bundle's signature, "" if it is unsigned. Nothing is verified.

    Raises:
        BundleError: the signature cannot be read.
    """
    found = _read_signature(bundle)
    return _fingerprint(found.public) if found else ""


def check_signature(bundle: Bundle, keys: Sequence[bytes]) -> str:
    """Verify that one of ``keys`` signed the bundle, and return its fingerprint.

    The bundle must have been opened with ``check``, since the signature covers only the manifest.

    Raises:
        BundleError: the bundle is unsigned, signed by another key or for another purpose, or was changed since.
        ConfigError: cryptography is not installed.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError as error:
        raise ConfigError("checking a signature needs cryptography, which is not installed", _INSTALL) from error
    found = _read_signature(bundle)
    if found is None:
        raise BundleError(f"{bundle.path}: is not signed", f"ask its builder for a signature, or {_SIGN}")
    name = _fingerprint(found.public)
    if found.public not in keys:
        raise BundleError(f"{bundle.path}: signed by {name}, which is not a trusted key", "do not use this bundle")
    if found.namespace != NAMESPACE:
        raise BundleError(
            f"{bundle.path}: the signature is for {found.namespace!r}, not for {NAMESPACE!r}", "do not use this bundle"
        )
    try:
        Ed25519PublicKey.from_public_bytes(found.public[-32:]).verify(
            found.value, _signed(statement(bundle.manifest), found.namespace, found.algorithm)
        )
    except (InvalidSignature, ValueError) as error:
        raise BundleError(
            f"{bundle.path}: the signature of {name} does not match: the bundle was changed after signing",
            "do not use it; get it again from the signer",
        ) from error
    return name


def _read(path: Path, what: str) -> tuple[bytes, int]:
    """The content of a small regular file, and its mode."""
    try:
        # O_NONBLOCK: do not wait on a pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_LARGEST + 1) if stat.S_ISREG(mode) else b""
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read the {what}: {error}", "check the path") from error
    if not data or len(data) > _LARGEST:
        raise ConfigError(f"{path}: not a {what}", _MAKE)
    return data, mode


def _read_signature(bundle: Bundle) -> _Signature | None:
    path = bundle.path / SIGNATURE
    if not path.is_symlink() and not path.exists():
        return None
    damaged = BundleError(f"{path}: not an OpenSSH signature by an ssh-ed25519 key", f"get it again, or {_SIGN}")
    if path.is_symlink():
        raise damaged
    try:
        armor = _ARMOR.fullmatch(_read(path, "signature")[0].decode("ascii"))
        fields = _Fields(base64.b64decode("".join(armor[1].split()), validate=True)) if armor else None
        if fields is None or fields.take(6) != _MAGIC or fields.take(4) != (1).to_bytes(4, "big"):
            raise damaged
        public, namespace, reserved, algorithm = (fields.string() for _ in range(4))
        inner = _Fields(fields.string())
        kind, value = inner.string(), inner.string()
        found = _Signature(public, namespace.decode(), algorithm.decode("ascii"), value)
    except (ConfigError, ValueError) as error:
        raise damaged from error
    whole = not (fields.rest or inner.rest or reserved) and len(value) == 64
    if not whole or kind != _KIND or not _is_key(public) or found.algorithm not in _HASHES:
        raise damaged
    return found


class _Fields:
    """A reader of SSH's wire format."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, count: int) -> bytes:
        if count > len(self.rest):
            raise ValueError("the data is truncated")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def string(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "big"))


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _signed(message: bytes, namespace: str, algorithm: str) -> bytes:
    """The bytes that the key signs: SSHSIG's preamble and the message's hash."""
    digest = new_hash(algorithm, message).digest()
    return _MAGIC + b"".join(map(_string, (namespace.encode(), b"", algorithm.encode(), digest)))


def _is_key(blob: bytes) -> bool:
    return len(blob) == 51 and blob[:19] == _string(_KIND) + (32).to_bytes(4, "big")


def _decode_key(text: str) -> bytes | None:
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return blob if _is_key(blob) else None


def _fingerprint(public: bytes) -> str:
    """The fingerprint of a key as ``ssh-keygen -l`` shows it."""
    return "SHA256:" + base64.b64encode(sha256(public).digest()).decode().rstrip("=")
