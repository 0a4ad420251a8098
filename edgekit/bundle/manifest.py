"""edgekit.json and the checks that go with it: ``open_bundle`` trusts nothing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any

from edgekit.bundle.admission import GENAI, admit, admit_runtime_config
from edgekit.bundle.disk import inside, undisturbed
from edgekit.errors import BundleError
from edgekit.record import from_json, to_json
from edgekit.types import Bundle, FileEntry, Manifest, Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

MANIFEST = "edgekit.json"
SCHEMA = 4
"""Version of edgekit.json that this edgekit writes, and the newest it reads."""

_CHUNK = 1 << 18
_REBUILD = "build it again, or copy it again from where it came"


@undisturbed
def open_bundle(path: Path | str, *, check: bool = True, progress: Progress = silent) -> Bundle:
    """Open a bundle and check that it is what was built.

    Args:
        path: the bundle's folder.
        check: compare every file's sha256; otherwise only that each is there and has its size.
        progress: told the bytes hashed.

    Raises:
        BundleError: not a bundle; written by a newer edgekit; a file missing, changed, added, or outside the folder; a
            manifest that says what a bundle may not say (see admission).
    """
    path = Path(path)
    manifest = _read_manifest(path)
    files = [(entry, inside(path, entry.path)) for entry in manifest.files]
    manifest = admit(path / MANIFEST, manifest)
    for entry, file in files:
        if not file.is_file():
            raise BundleError(f"{path}: {entry.path} is missing", _REBUILD)
        if file.stat().st_size != entry.bytes:
            found = f"{file.stat().st_size:,} bytes, the manifest says {entry.bytes:,}"
            raise BundleError(f"{path}: {entry.path} has changed: {found}", _REBUILD)
    _refuse_strangers(path, manifest.files)
    for entry in manifest.files:
        if PurePosixPath(entry.path).name == GENAI:
            admit_runtime_config(path, entry.path, manifest)
    if check:
        _check_hashes(path, files, progress)
    return Bundle(path, manifest)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of edgekit.json."""
    return (to_json(manifest, indent=1) + "\n").encode()


def listed_files(folder: Path) -> set[str]:
    """The names of the files that the bundle in ``folder`` owns, of whatever schema; edgekit.json among them.

    Raises:
        BundleError: edgekit.json cannot be read.
    """
    data = _parse(folder)
    entries = data.get("files")
    names = {e.get("path") for e in entries if isinstance(e, dict)} if isinstance(entries, list) else set()
    return {n for n in names if isinstance(n, str)} | {MANIFEST}


def _parse(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "a bundle is a folder made by `edgekit build`; it holds edgekit.json"
        raise BundleError(f"{folder}: not a bundle: no {MANIFEST}", hint) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read: {error}", _REBUILD) from error
    if not isinstance(data, dict):
        raise BundleError(f"{path}: not a manifest", _REBUILD)
    return data


def _read_manifest(folder: Path) -> Manifest:
    data = _parse(folder)
    path = folder / MANIFEST
    schema = data.get("schema")
    if type(schema) is not int:
        raise BundleError(f"{path}: 'schema' must be a whole number, not {schema!r}", _REBUILD)
    if schema > SCHEMA:
        raise BundleError(
            f"{path}: written by edgekit {data.get('edgekit')} with schema {schema}; this edgekit reads up to {SCHEMA}",
            "upgrade edgekit, or build the bundle again with this one",
        )
    try:
        return from_json(Manifest, path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: {error}", _REBUILD) from error


def _refuse_strangers(folder: Path, files: Sequence[FileEntry]) -> None:
    """Raise when there is a file that the manifest does not list. Hidden files are the system's, not ours."""
    known = {f.path for f in files} | {MANIFEST}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if not name.parts[0].startswith(".") and not file.is_dir() and name.as_posix() not in known:
            hint = "move it elsewhere: a bundle holds only what was built"
            raise BundleError(f"{folder}: {name.as_posix()} is not part of the bundle", hint)


def _check_hashes(folder: Path, files: Sequence[tuple[FileEntry, Path]], progress: Progress) -> None:
    total = sum(entry.bytes for entry, _ in files)
    done = 0
    lock = Lock()

    def hash_of(file: Path) -> str:
        nonlocal done
        digest, buffer = sha256(), memoryview(bytearray(_CHUNK))
        with file.open("rb", buffering=0) as stream:
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
