"""A bundle in the making: a hidden folder beside its place, renamed into it when everything is written."""

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
"""In the hidden folder of a build: what will be renamed to its place."""

_ASIDE, _LOCK = "replaced", "lock"


class BundleWriter:
    """The files written so far. Made by ``write_bundle``; nothing of it is seen at ``out`` before ``finish``.

    ``folder`` is where they lie until then. ``leftovers`` are of killed builds of the same place; ``others`` counts
    those that other users could have put there, which are left alone.
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
            resume: what makes the build one that can be gone on with when it is killed. A killed build of the same
                place and key is gone on with here.
            progress: told the bytes written.
        """
        from edgekit.bundle.external import write_model  # onnx_ir: only those who write a graph wait for it

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
        """Write one file as it is."""
        path = self._place(name)
        with writing(path, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._files[name] = FileEntry(name, len(data), sha256(data).hexdigest())

    def adopt_file(self, name: str, path: Path) -> None:
        """Move a file that lies in ``folder`` already, but not yet in the bundle, to its place."""
        place = self._place(name)
        size = path.stat().st_size
        with writing(place, size):
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
        self._files[name] = FileEntry(name, size, hash_file(place))

    def write_side_files(
        self, files: Sequence[SideFile], spec: ModelSpec, target: Target, graph: str, precision: Precision
    ) -> None:
        """Write the checkpoint's files and what the other runtimes need to open the graph, already written."""
        for file in runtime_files(files, spec, target, self._graphs[graph], precision):
            self.write_file(file.name, file.data)

    def finish(self, manifest: Manifest) -> Bundle:
        """Write edgekit.json, wait for the disk, and rename the folder into place.

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
        # Where upper and lower case are one, the second of two such files would take the place of the first.
        if name.casefold() in {known.casefold() for known in (*self._files, MANIFEST, SIGNATURE)}:
            raise BundleError(f"{name}: written twice", "two files of the checkpoint have this name")
        return path


@contextmanager
def write_bundle(out: Path | str, *, force: bool = False) -> Iterator[BundleWriter]:
    """Begin a bundle at ``out``. Leaving the block without ``finish``, for whatever reason, leaves nothing behind.

    What is in the making lies in a hidden folder beside ``out`` that only this user can look into, and whose lock the
    process holds until it ends. A process that is killed leaves it; the next one of the same place goes on with it or
    removes it.

    Args:
        out: the bundle's folder. It may be absent or empty; a bundle there is replaced when ``force``.
        force: replace a bundle.

    Raises:
        BundleError: ``out`` is a file, a link, a bundle (without ``force``), or a folder that holds anything else.
    """
    out = resolve_place(out)
    with writing(out):
        _require_free(out, force)
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
            # The hidden folder is gone when this is read.
            raise BundleError(error.message.replace(str(folder), str(out)), error.hint) from error


@dataclass(frozen=True)
class Workshop:
    """The hidden folder of one build, and the open handle that holds its lock.

    In it: the bundle in the making, its journal, the lock, and a bundle that was set aside.
    """

    path: Path
    lock: int

    def remove(self) -> None:
        """Delete it with all that is in it; no link is followed."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def _workshop_prefix(out: Path) -> str:
    return f".{out.name}.edgekit-"


def _open_workshop(out: Path) -> Workshop:
    """A new one. Who looks for leftovers may be faster than we with the lock: then another."""
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
    """What killed builds of ``out`` left, ours now; and how many there are that others could have put there.

    A bundle that one of them had set aside goes back to its place.
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
            continue  # its build has ended and removed it
        if lock is None:
            continue  # its build is alive
        aside = path / _ASIDE
        if is_private(aside, strict=False) and not out.exists():
            aside.rename(out)
        found.append(Workshop(path, lock))
    return tuple(found), others


def is_private(path: Path, *, strict: bool = True) -> bool:
    """Whether a folder is this user's and no link; with ``strict``, nobody else may even look into it."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    closed = not strict or not stat.S_IMODE(facts.st_mode) & 0o077
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and closed


def _require_free(out: Path, force: bool) -> None:
    """Raise BundleError unless ``out`` may be written or replaced."""
    if not os.path.lexists(out):
        return
    if out.is_symlink():
        raise BundleError(f"{out}: is a link", "name what it points to")
    if not out.is_dir():
        raise BundleError(f"{out}: is not a folder", "choose another place")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise BundleError(f"{out}: the folder exists and is not a bundle", "choose another folder, or empty this one")
    if not force:
        raise BundleError(f"{out}: there is a bundle already", "`force` replaces it")
    hint = "move it elsewhere, or choose another folder"
    try:
        foreign = sorted(_present(out) - listed_files(out))
    except BundleError as error:
        raise BundleError(f"{out}: not replaced: {error.message}", hint) from error
    if foreign:
        raise BundleError(f"{out}: not replaced: {foreign[0]} is not part of the bundle", hint)


def _present(folder: Path) -> set[str]:
    """The files of a folder, but what killed processes were making there."""
    found = (p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())
    return {p.relative_to(folder).as_posix() for p in found if not is_scrap(p.name)}


def _put(folder: Path, out: Path, force: bool) -> None:
    """Let ``folder`` take the place of ``out``, in one stroke where the system can.

    Where it cannot, what was there is set aside first, and comes back if the rename fails.
    """
    _require_free(out, force)
    if not (out.is_dir() and any(out.iterdir())):
        folder.rename(out)
        return
    with locked(out):  # nobody is writing a record there
        _require_free(out, force)
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
