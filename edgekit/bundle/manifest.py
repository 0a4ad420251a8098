"""edgekit.json: reading, writing and checking it. ``open_bundle`` trusts nothing."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any

from edgekit.bundle.admission import GENAI, admit, admit_runtime_config
from edgekit.bundle.disk import inside, undisturbed
from edgekit.errors import BundleError
from edgekit.record import from_json, to_json
from edgekit.strangers import open_plain, parse_json, read_plain
from edgekit.types import Bundle, FileEntry, Manifest, Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

MANIFEST = "edgekit.json"
SIGNATURE = f"{MANIFEST}.sig"
"""The signature of the manifest, which therefore does not list it; see signing.py."""
SCHEMA = 6
"""The version of edgekit.json that this edgekit reads and writes."""

MAX_BYTES = 16 << 20
"""Maximum size of edgekit.json in bytes; that of the largest models has 1 MB."""

MAX_TEXT = 64 << 20
"""Maximum bytes of any other file in _TEXTS; the largest published tokenizer.json has 33 MB."""

_TEXTS = frozenset({".json", ".jinja"})

_CHUNK = 1 << 18
_REBUILD = "copy the bundle again, or rebuild it with `edgekit build`"


@undisturbed
def open_bundle(path: Path | str, *, check: bool = True, progress: Progress = silent) -> Bundle:
    """Open a bundle and check that it is what was built.

    Args:
        path: the bundle's folder.
        check: compare every file's sha256; otherwise only check that each exists with the right size.
        progress: called with the bytes hashed.

    Raises:
        BundleError: not a bundle; another schema; a file is missing, changed, added, or outside the folder; the
            manifest contains something that a bundle may not (see admission).
    """
    path = Path(path)
    manifest = _read_manifest(path)
    files = [(entry, inside(path, entry.path)) for entry in manifest.files]
    manifest = admit(path / MANIFEST, manifest)
    for entry, file in files:
        if not file.is_file():
            raise BundleError(f"{path}: {entry.path} is missing", _REBUILD)
        if file.stat().st_size != entry.bytes:
            found = f"it has {file.stat().st_size:,} bytes, not {entry.bytes:,}"
            raise BundleError(f"{path}: {entry.path} has changed: {found}", _REBUILD)
        if file.suffix in _TEXTS and entry.bytes > MAX_TEXT:
            raise BundleError(
                f"{path}: {entry.path} has {entry.bytes:,} bytes, at most {MAX_TEXT:,} are read", _REBUILD
            )
    _refuse_strangers(path, manifest.files)
    for entry in manifest.files:
        if PurePosixPath(entry.path).name == GENAI:
            admit_runtime_config(path, entry.path, manifest)
    if check:
        _check_hashes(path, files, progress)
    return Bundle(path, manifest)


def read_manifest(folder: Path) -> Manifest:
    """What a folder's edgekit.json says, admitted as in open_bundle; the other files are not looked at.

    Raises:
        BundleError: as open_bundle.
    """
    manifest = _read_manifest(folder)
    return admit(folder / MANIFEST, manifest)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of edgekit.json."""
    return (to_json(manifest, indent=1) + "\n").encode()


def listed_files(folder: Path) -> set[str]:
    """The names of the files that belong to a bundle of any schema, including edgekit.json and its signature.

    Raises:
        BundleError: edgekit.json cannot be read.
    """
    entries = _read(folder)[1].get("files")
    names = {e.get("path") for e in entries if isinstance(e, dict)} if isinstance(entries, list) else set()
    return {n for n in names if isinstance(n, str)} | {MANIFEST, SIGNATURE}


def _read(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a folder's edgekit.json, and the parsed object."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise BundleError(f"{folder}: not a bundle: no {MANIFEST}", "pass a folder made by `edgekit build`")
    data = read_plain(path, MAX_BYTES, error=BundleError, within=(folder,))
    return data, parse_json(data, str(path), error=BundleError)


def _read_manifest(folder: Path) -> Manifest:
    data, found = _read(folder)
    path = folder / MANIFEST
    schema = found.get("schema")
    if type(schema) is not int:
        raise BundleError(f"{path}: 'schema' must be a whole number, not {schema!r}", _REBUILD)
    if schema > SCHEMA:
        raise BundleError(
            f"{path}: written by edgekit {found.get('edgekit')} with schema {schema}; "
            f"this edgekit reads up to {SCHEMA}",
            "upgrade edgekit, or rebuild the bundle with this version",
        )
    if schema < SCHEMA:
        raise BundleError(
            f"{path}: written by edgekit {found.get('edgekit')} with schema {schema}; this edgekit reads only {SCHEMA}",
            "rebuild the bundle, then verify, calibrate and tune it again",
        )
    try:
        return from_json(Manifest, data.decode())
    except ValueError as error:
        raise BundleError(f"{path}: {error}", _REBUILD) from error


def _refuse_strangers(folder: Path, files: Sequence[FileEntry]) -> None:
    """Raise if there is a file that the manifest does not list. Hidden files belong to the system and are ignored."""
    known = {f.path for f in files} | {MANIFEST, SIGNATURE}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if not name.parts[0].startswith(".") and not file.is_dir() and name.as_posix() not in known:
            raise BundleError(f"{folder}: {name.as_posix()} is not part of the bundle", "move the file elsewhere")


def _check_hashes(folder: Path, files: Sequence[tuple[FileEntry, Path]], progress: Progress) -> None:
    total = sum(entry.bytes for entry, _ in files)
    done = 0
    lock = Lock()

    def hash_of(file: Path) -> str:
        nonlocal done
        digest, buffer = sha256(), memoryview(bytearray(_CHUNK))
        with open_plain(file, error=BundleError, within=(folder,)) as stream:
            while size := stream.readinto(buffer):
                digest.update(buffer[:size])
                with lock:
                    done += size
                    progress(f"checking {folder.name}", done, total)
        return digest.hexdigest()

    with ThreadPoolExecutor() as pool:
        for (entry, _), found in zip(files, pool.map(hash_of, [file for _, file in files]), strict=True):
            if found != entry.sha256:
                raise BundleError(f"{folder}: {entry.path} has changed: its sha256 is {found}", _REBUILD)
