"""Who says that a bundle is theirs: a signature in OpenSSH's format, beside edgekit.json.

Signed is the statement: the manifest less what is measured later (quality, latency, tunings, ARM's scores, calibration,
and what an NPU's emulator gave) and less the package of a provider, so with every file's name, size and sha256, the
checkpoint's, the recipe, the target and the graphs. What is recorded later is not signed, and leaves the signature as
it is.

The format is OpenSSH's SSHSIG (PROTOCOL.sshsig), the key ssh-ed25519, the namespace NAMESPACE: ``ssh-keygen -Y sign``
and ``-Y verify`` read and write the same file. One kind of key: nothing is negotiated.
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
"""What a signature is for: one made for a commit or a file is none of a bundle."""

_MAGIC = b"SSHSIG"
_KIND = b"ssh-ed25519"
_HASHES = ("sha512", "sha256")
_ARMOR = re.compile(r"-----BEGIN SSH SIGNATURE-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END SSH SIGNATURE-----\s*")
_LARGEST = 1 << 16
"""Bytes of a key or a signature."""
_MAKE = "make one: ssh-keygen -t ed25519 -f KEY"
_SIGN = "sign it: edgekit sign BUNDLE --key KEY"


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
    """What is signed: one line of JSON in ASCII, keys sorted; the same as long as the bundle is the same."""
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
    """Which package a provider comes in is each installation's own to say (see admission), so nobody signs it."""
    return target if target.npu is None else replace(target, npu=replace(target.npu, plugin=None))


def load_signer(path: Path) -> Signer:
    """Open a private key.

    Raises:
        ConfigError: no such file, others may read it, it has a passphrase, or it is no ssh-ed25519 key; or
            cryptography is not installed.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    except ModuleNotFoundError as error:
        raise ConfigError("to sign needs cryptography", "pip install 'edgekit[sign]'") from error
    data, mode = _read(path, "key")
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path}: others may read this key", f"chmod 600 {path}")
    if data.startswith((b"ssh-", b"ecdsa-")):
        raise ConfigError(f"{path}: is a public key", "give the private one, the file without .pub")
    try:
        key = load_ssh_private_key(data, password=None)
    except TypeError as error:
        hint = "let ssh-keygen sign: edgekit sign BUNDLE | ssh-keygen -Y sign -n edgekit-bundle -f KEY"
        raise ConfigError(f"{path}: has a passphrase", f"{hint} > BUNDLE/{SIGNATURE}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: not a private key of OpenSSH's: {error}", _MAKE) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not a key of the kind ssh-ed25519", _MAKE)
    return Signer(key)


def sign_bundle(bundle: Bundle, signer: Signer) -> str:
    """Write the signature into the bundle; return the key's fingerprint. An older one is replaced.

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
    """The public keys of a file: lines of a ``.pub`` file, or of OpenSSH's allowed_signers without options.

    Raises:
        ConfigError: no such file, a line that is none of these, or no key.
    """
    data, _ = _read(path, "key")
    if b"PRIVATE KEY" in data:
        raise ConfigError(f"{path}: is a private key", "give the public one, KEY.pub: the private one stays at home")
    keys = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        at = next((i for i, word in enumerate(words) if word == _KIND.decode()), None)
        if at is None or at > 1 or len(words) < at + 2 or (key := _decode_key(words[at + 1])) is None:
            hint = "a line is `ssh-ed25519 AAAA... comment`, a name may stand before it; options are not understood"
            raise ConfigError(f"{path}:{number}: not a public key of the kind ssh-ed25519", hint)
        keys.append(key)
    if not keys:
        raise ConfigError(f"{path}: holds no key", _MAKE)
    return tuple(keys)


def signed_by(bundle: Bundle) -> str:
    """The fingerprint of the key that the bundle's signature names, "" where there is none. Nothing is checked.

    Raises:
        BundleError: the signature cannot be read.
    """
    found = _read_signature(bundle)
    return _fingerprint(found.public) if found else ""


def check_signature(bundle: Bundle, keys: Sequence[bytes]) -> str:
    """The fingerprint of the key that signed the bundle, which is one of ``keys``.

    The bundle must have been opened with ``check``: the signature is of what the manifest says.

    Raises:
        BundleError: there is no signature, it is of another key, for something else, or the manifest is another.
        ConfigError: cryptography is not installed.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError as error:
        raise ConfigError("to check a signature needs cryptography", "pip install 'edgekit[sign]'") from error
    found = _read_signature(bundle)
    if found is None:
        raise BundleError(f"{bundle.path}: is not signed", f"ask who built it; if that is you, {_SIGN}")
    name = _fingerprint(found.public)
    if found.public not in keys:
        raise BundleError(f"{bundle.path}: signed by {name}, which is none of the keys given", "do not use this bundle")
    if found.namespace != NAMESPACE:
        raise BundleError(
            f"{bundle.path}: its signature is for {found.namespace!r}, not for {NAMESPACE!r}", "do not use this bundle"
        )
    try:
        Ed25519PublicKey.from_public_bytes(found.public[-32:]).verify(
            found.value, _signed(statement(bundle.manifest), found.namespace, found.algorithm)
        )
    except (InvalidSignature, ValueError) as error:
        raise BundleError(
            f"{bundle.path}: the signature of {name} is not of this bundle: it has been changed since",
            "do not use it; get it again from who signed it",
        ) from error
    return name


def _read(path: Path, what: str) -> tuple[bytes, int]:
    """The content of a small regular file, and its mode."""
    try:
        # Not to wait where it is a pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_LARGEST + 1) if stat.S_ISREG(mode) else b""
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no such {what} can be read: {error}", "check the path") from error
    if not data or len(data) > _LARGEST:
        raise ConfigError(f"{path}: not a {what}", _MAKE)
    return data, mode


def _read_signature(bundle: Bundle) -> _Signature | None:
    path = bundle.path / SIGNATURE
    if not path.is_symlink() and not path.exists():
        return None
    damaged = BundleError(f"{path}: not a signature of OpenSSH's by an ssh-ed25519 key", f"{_SIGN}, or get it again")
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
    """SSH's wire format, taken apart from the front."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, count: int) -> bytes:
        if count > len(self.rest):
            raise ValueError("it ends too soon")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def string(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "big"))


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _signed(message: bytes, namespace: str, algorithm: str) -> bytes:
    """What the key signs: SSHSIG's preamble and the message's hash."""
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
    """As ``ssh-keygen -l`` shows a key."""
    return "SHA256:" + base64.b64encode(sha256(public).digest()).decode().rstrip("=")
