"""A bundle in the making: a hidden folder beside its place, renamed into it when everything is written."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.bundle.disk import hash_file, inside, sync, writing
from edgekit.bundle.interop import GraphFile, runtime_files
from edgekit.bundle.journal import JOURNAL, Journal
from edgekit.bundle.manifest import MANIFEST, SIGNATURE, listed_files, manifest_bytes
from edgekit.errors import BundleError
from edgekit.types import (
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


class Draft:
    """The files written so far. Made by ``draft``; nothing of it is seen at ``out`` before ``finish``."""

    def __init__(self, out: Path, folder: Path, force: bool, leftovers: Sequence[Path] = ()) -> None:
        self.out = out
        self.folder = folder
        self._force = force
        self._leftovers = leftovers
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
            journal = Journal(self.folder, resume)
            for leftover in self._leftovers:
                journal.adopt(leftover, f"{name}_data")
                shutil.rmtree(leftover, ignore_errors=True)
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
        (self.folder / JOURNAL).unlink(missing_ok=True)
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
        if name in self._files or name in (MANIFEST, SIGNATURE):
            raise BundleError(f"{name}: written twice", "two files of the checkpoint have this name")
        return path


@contextmanager
def draft(out: Path | str, *, force: bool = False) -> Iterator[Draft]:
    """Begin a bundle at ``out``. Leaving the block without ``finish``, for whatever reason, leaves nothing behind.

    A process that is killed leaves its hidden folder; the next one of the same place goes on with it or removes it.

    Args:
        out: the bundle's folder. It may be absent or empty; a bundle there is replaced when ``force``.
        force: replace a bundle.

    Raises:
        BundleError: ``out`` is a file, a bundle (without ``force``), or a folder that holds anything else.
    """
    out = Path(out).resolve()
    _require_free(out, force)
    folder = out.with_name(f".{out.name}.edgekit-{os.getpid()}")
    with writing(out.parent, 0):
        out.parent.mkdir(parents=True, exist_ok=True)
        leftovers = _stale(out)
        folder.mkdir()
    try:
        yield Draft(out, folder, force, leftovers)
    except BundleError as error:
        # The hidden folder is gone when this is read.
        raise BundleError(error.message.replace(str(folder), str(out)), error.hint) from error
    finally:
        for path in (folder, *leftovers):
            shutil.rmtree(path, ignore_errors=True)


def _require_free(out: Path, force: bool) -> None:
    """Raise BundleError unless ``out`` may be written or replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BundleError(f"{out}: is a file", "choose another folder")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise BundleError(f"{out}: the folder exists and is not a bundle", "choose another folder, or empty this one")
    if not force:
        raise BundleError(f"{out}: there is a bundle already", "--force replaces it")
    hint = "move it elsewhere, or choose another folder"
    try:
        foreign = sorted(_present(out) - listed_files(out))
    except BundleError as error:
        raise BundleError(f"{out}: not replaced: {error.message}", hint) from error
    if foreign:
        raise BundleError(f"{out}: not replaced: {foreign[0]} is not part of the bundle", hint)


def _present(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}


def _put(folder: Path, out: Path, force: bool) -> None:
    """Rename ``folder`` to ``out``; what was there is set aside first and comes back if the rename fails."""
    _require_free(out, force)
    aside = folder.with_name(folder.name + ".old")
    replaced = out.is_dir() and any(out.iterdir())
    if replaced:
        out.rename(aside)
    try:
        folder.rename(out)
    except BaseException:
        if replaced:
            aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _stale(out: Path) -> tuple[Path, ...]:
    """The folders that killed builds of ``out`` left; a bundle they had set aside goes back to its place."""
    stale = []
    for path in out.parent.glob(f".{out.name}.edgekit-*"):
        pid = path.name.removeprefix(f".{out.name}.edgekit-").removesuffix(".old")
        if not pid.isdigit() or _alive(int(pid)):
            continue
        if path.suffix == ".old" and not out.exists():
            path.rename(out)
        else:
            stale.append(path)
    return tuple(stale)


def _alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        return True
    return False
