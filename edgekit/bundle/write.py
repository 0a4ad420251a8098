"""Write a bundle atomically: in a hidden folder next to its destination, renamed when everything is written."""

from __future__ import annotations

import os
import re
import shutil
import stat
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from edgekit.bundle.disk import hash_file, inside, resolve_place, writing
from edgekit.bundle.interop import GraphFile, runtime_files
from edgekit.bundle.journal import Journal
from edgekit.bundle.manifest import MANIFEST, SIGNATURE, listed_files, manifest_bytes
from edgekit.errors import BundleError
from edgekit.host.disk import exchange, is_scrap, locked, sync, try_lock
from edgekit.types import (
    LEFT_ALONE,
    Bundle,
    FileEntry,
    Manifest,
    ModelSpec,
    Precision,
    Progress,
    Resume,
    SideFile,
    Target,
    silent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir


BUNDLE = "bundle"
"""The subfolder of a build's hidden folder that is renamed to the destination."""

_ASIDE, _LOCK = "replaced", "lock"


class BundleWriter:
    """Writes a bundle's files to ``folder``; nothing appears at ``out`` before ``finish``. Made by ``write_bundle``.

    ``leftovers`` are folders of killed builds with the same destination; ``others`` counts those that other users could
    have made, which are not touched.
    """

    def __init__(
        self, out: Path, folder: Path, force: bool, leftovers: Sequence[Workshop] = (), others: int = 0
    ) -> None:
        self.out = out
        self.folder = folder
        self._force = force
        self._leftovers = leftovers
        self._others = others
        self._files: dict[str, FileEntry] = {}
        self._graphs: dict[str, GraphFile] = {}

    def write_graph(
        self, model: ir.Model, name: str, *, resume: Resume | None = None, progress: Progress = silent
    ) -> None:
        """Write a graph and its ``<name>_data``; see ``external.write_model``.

        Args:
            model: its large initializers become external tensors.
            name: path in the bundle, ``onnx/model_q4.onnx``.
            resume: makes the build resumable, and resumes a killed build with the same destination and key.
            progress: called with the bytes written.
        """
        from edgekit.bundle.external import write_model  # loads onnx_ir

        path = self._place(name)
        with writing(path, 0):
            path.parent.mkdir(parents=True, exist_ok=True)
        journal = None
        if resume:
            journal = Journal(self.folder.parent, resume)
            for leftover in self._leftovers:
                journal.adopt(leftover.path, Path(BUNDLE) / f"{name}_data")
                shutil.rmtree(leftover.path, ignore_errors=True)
            if self._others:
                progress(LEFT_ALONE, self._others, self._others, "folders")
        beside = [Path(file).name for file in self._files]
        for written in write_model(model, path, beside=beside, journal=journal, progress=progress):
            at = written.path.relative_to(self.folder).as_posix()
            self._files[at] = FileEntry(at, written.bytes, written.sha256)
        self._graphs[name] = GraphFile.of(model, name, f"{name}_data" in self._files)

    def write_file(self, name: str, data: bytes) -> None:
        """Write one file."""
        path = self._place(name)
        with writing(path, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._files[name] = FileEntry(name, len(data), sha256(data).hexdigest())

    def adopt_file(self, name: str, path: Path) -> None:
        """Move a file that is already in ``folder`` to its place in the bundle."""
        place = self._place(name)
        size = path.stat().st_size
        with writing(place, size):
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
        self._files[name] = FileEntry(name, size, hash_file(place))

    def write_side_files(
        self, files: Sequence[SideFile], spec: ModelSpec, target: Target, graph: str, precision: Precision
    ) -> None:
        """Write the checkpoint's files and those that other runtimes need for ``graph``, which is already written."""
        for file in runtime_files(files, spec, target, self._graphs[graph], precision):
            self.write_file(file.name, file.data)

    def finish(self, manifest: Manifest) -> Bundle:
        """Write edgekit.json, sync to disk, and rename the folder to its destination.

        Args:
            manifest: its ``files`` are replaced by those written.
        """
        manifest = replace(manifest, files=tuple(self._files[name] for name in sorted(self._files)))
        data = manifest_bytes(manifest)
        with writing(self.out, len(data)):
            (self.folder / MANIFEST).write_bytes(data)
            folders = {self.folder / Path(name).parent for name in self._files}
            for path in (*(self.folder / name for name in self._files), self.folder / MANIFEST, *sorted(folders)):
                sync(path)
            _put(self.folder, self.out, self._force)
            sync(self.out.parent)
        return Bundle(self.out, manifest)

    def _place(self, name: str) -> Path:
        path = inside(self.folder, name)
        # On a case-insensitive file system, the second of two such files would replace the first.
        if name.casefold() in {known.casefold() for known in (*self._files, MANIFEST, SIGNATURE)}:
            raise BundleError(f"{name}: two files of the bundle have this name", "rename one in the checkpoint")
        return path


@contextmanager
def write_bundle(out: Path | str, *, force: bool = False) -> Iterator[BundleWriter]:
    """Start a bundle at ``out``. Leaving the block without ``finish``, for whatever reason, leaves nothing behind.

    The files are written to a hidden folder next to ``out`` that only this user can access, and whose lock the process
    holds. A killed process leaves it behind; the next build with the same destination resumes or removes it.

    Args:
        out: the bundle's folder. It may be missing or empty; an existing bundle is replaced with ``force``.
        force: replace an existing bundle.

    Raises:
        BundleError: ``out`` is a file, a link, a bundle (without ``force``), or a folder that holds anything else.
    """
    out = resolve_place(out)
    with writing(out):
        require_free(out, force)
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with writing(out):
            leftovers, others = _leftovers(out)
            for left in leftovers:
                stack.callback(left.remove)
            workshop = _open_workshop(out)
            stack.callback(workshop.remove)
            folder = workshop.path / BUNDLE
            folder.mkdir()  # with the mode that a new folder gets
        try:
            yield BundleWriter(out, folder, force, leftovers, others)
        except BundleError as error:
            # The user knows nothing of the hidden folder.
            raise BundleError(error.message.replace(str(folder), str(out)), error.hint) from error


@dataclass(frozen=True)
class Workshop:
    """The hidden folder of one build, and the open handle that holds its lock.

    It contains the unfinished bundle, its journal, the lock, and the replaced bundle.
    """

    path: Path
    lock: int

    def remove(self) -> None:
        """Delete the folder and its contents without following links."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def _workshop_prefix(out: Path) -> str:
    return f".{out.name}.edgekit-"


def _open_workshop(out: Path) -> Workshop:
    """Make a new workshop. If another process takes its lock while looking for leftovers, try again."""
    while True:
        path = out.with_name(_workshop_prefix(out) + token_hex(8))
        path.mkdir(mode=0o700)
        try:
            lock = try_lock(path / _LOCK)
        except FileNotFoundError:
            continue
        except BaseException:
            path.rmdir()
            raise
        if lock is not None:
            return Workshop(path, lock)


def _leftovers(out: Path) -> tuple[tuple[Workshop, ...], int]:
    """Take over the folders of killed builds of ``out``, and count those that other users could have made.

    If a build was killed while replacing a bundle, the old bundle is put back.
    """
    prefix, found, others = _workshop_prefix(out), [], 0
    for path in sorted(p for p in out.parent.iterdir() if p.name.startswith(prefix)):
        if not re.fullmatch("[0-9a-f]{16}", path.name.removeprefix(prefix)):
            continue
        if not is_private(path):
            others += 1
            continue
        try:
            lock = try_lock(path / _LOCK)
        except OSError:
            continue  # its build has just ended and removed it
        if lock is None:
            continue  # its build is still running
        aside = path / _ASIDE
        if is_private(aside, strict=False) and not out.exists():
            aside.rename(out)
        found.append(Workshop(path, lock))
    return tuple(found), others


def is_private(path: Path, *, strict: bool = True) -> bool:
    """Whether a path is this user's own folder and not a link; with ``strict``, others must have no access at all."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    closed = not strict or not stat.S_IMODE(facts.st_mode) & 0o077
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and closed


def require_free(out: Path, force: bool) -> None:
    """Raise BundleError unless ``out`` may be written or replaced."""
    if not os.path.lexists(out):
        return
    if out.is_symlink():
        raise BundleError(f"{out}: is a link", "pass the path it points to")
    if not out.is_dir():
        raise BundleError(f"{out}: is not a folder", "choose another folder")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise BundleError(f"{out}: the folder exists and is not a bundle", "choose another folder, or empty this one")
    if not force:
        raise BundleError(f"{out}: a bundle already exists", "pass `force` to replace it")
    hint = "move it elsewhere, or choose another folder"
    try:
        foreign = sorted(_present(out) - listed_files(out))
    except BundleError as error:
        raise BundleError(f"{out}: not replaced: {error.message}", hint) from error
    if foreign:
        raise BundleError(f"{out}: not replaced: {foreign[0]} is not part of the bundle", hint)


def _present(folder: Path) -> set[str]:
    """The files of a folder, except temporary files of killed processes."""
    found = (p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())
    return {p.relative_to(folder).as_posix() for p in found if not is_scrap(p.name)}


def _put(folder: Path, out: Path, force: bool) -> None:
    """Move ``folder`` to ``out``, atomically if the system supports it.

    Otherwise an existing bundle is set aside first, and put back if the rename fails.
    """
    require_free(out, force)
    if not (out.is_dir() and any(out.iterdir())):
        folder.rename(out)
        return
    with locked(out):  # no process is recording measurements there
        require_free(out, force)
        mode = stat.S_IMODE(out.stat().st_mode)
        if not exchange(folder, out):
            aside = folder.with_name(_ASIDE)
            out.rename(aside)
            try:
                folder.rename(out)
            except BaseException:
                aside.rename(out)
                raise
        out.chmod(mode)
