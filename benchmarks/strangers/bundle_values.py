"""Code that a bundle's values run, and files that they write: every value of edgekit.json and genai_config.json.

Each value is replaced by hostile ones of its type, and each list gets hostile pairs: entries of sessions that write
files, options that name libraries, modules that lie beside the bundle. What still opens goes through every loader. An
effect is a file that appeared or changed where the values point, a module imported from there, a library mapped from
there, or a process or a connection begun.

``python -m benchmarks.strangers.bundle_values``
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, suppress
from copy import deepcopy
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgekit import inspect_model, load_runner, open_bundle
from edgekit.bundle import record
from edgekit.errors import EdgekitError
from edgekit.run.npu.plugin import session_options
from edgekit.types import ArmQuality, Bundle, Interval, Kernels, KernelScore
from edgekit.verify.npu import OnEmulator, verify_npus
from tests.made import quality
from tests.npus import build_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE = "canary_of_a_bundle"
PAIRS = (
    ("session.collect_node_memory_stats_to_file", "{canary}/written"),
    ("session.optimized_model_external_initializers_file_name", "{canary}/written"),
    ("session.use_memory_mapped_ort_model", "1"),
    ("ep.context_enable", "1"),
    ("ep.context_file_path", "{canary}/written.onnx"),
    ("session.debug_layout_transformation", "1"),
    ("backend_path", "{canary}/canary.so"),
    ("qnn_saver_path", "{canary}/canary.so"),
    ("profiling_file_path", "{canary}/written"),
    ("dump_json_qnn_graph", "1"),
    ("json_qnn_graph_dir", "{canary}"),
    ("op_packages", "a:{canary}/canary.so:b"),
    ("custom_ops_library", "{canary}/canary.so"),
)
TEXTS = ("{canary}/written", "../canary/written", MODULE, f"{MODULE}.written", "(a+)+$", "{canary}/canary.so", "")
NUMBERS = (-1, 2**40, 2**62)


def cases(data: Any, canary: Path) -> Iterator[tuple[str, Any]]:
    """Where, and the whole document with that one value made hostile."""
    for path in _places(data, ()):
        value = _at(data, path)
        for hostile in _hostile(value, canary):
            changed = deepcopy(data)
            _set(changed, path, hostile)
            yield ".".join(map(str, path)), changed


def _places(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list):
        # Lists of one kind of thing are walked through their first, second and last.
        for i in sorted({0, 1, len(value) - 1} & set(range(len(value)))):
            yield from _places(value[i], (*path, i))


def _hostile(value: Any, canary: Path) -> Iterator[Any]:
    pairs = [[key, text.format(canary=canary)] for key, text in PAIRS]
    if isinstance(value, list):
        if not value or (isinstance(value[0], list) and len(value[0]) == 2):
            yield from ([*value, pair] for pair in pairs)
        yield from ([*value, text.format(canary=canary)] for text in TEXTS)
    elif isinstance(value, dict):
        yield from ({**value, key: text} for key, text in pairs)
    elif isinstance(value, str):
        yield from (text.format(canary=canary) for text in TEXTS)
    elif not isinstance(value, bool) and value is not None:
        yield from NUMBERS


def _at(data: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def _set(data: Any, path: tuple[str | int, ...], value: Any) -> None:
    _at(data, path[:-1])[path[-1]] = value


class Watch:
    """Counts what happens while it is told to look."""

    def __init__(self, canary: Path) -> None:
        """Args: the folder that hostile values point to."""
        self._canary, self._events, self._looking = canary, [], False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._looking:
            return
        named = event == "import" and arguments and str(arguments[0]).startswith(MODULE)
        if event in ("subprocess.Popen", "socket.connect", "os.system", "os.exec", "os.posix_spawn") or named:
            self._events.append(f"{event} {str(arguments)[:200]}")

    @contextmanager
    def looking(self) -> Iterator[list[str]]:
        """What happened in the block."""
        self._events, self._looking = [], True
        before = self._files()
        try:
            yield self._events
        finally:
            self._looking = False
            if (after := self._files()) != before:
                self._events.append(f"files {sorted(set(after.items()) ^ set(before.items()))}")
            if str(self._canary) in Path("/proc/self/maps").read_text(encoding="utf-8"):
                self._events.append("a library was mapped")

    def _files(self) -> dict[str, tuple[int, int]]:
        """Size and time of each file; what Python keeps of an imported module is not looked at."""
        found = {}
        for file in self._canary.rglob("*"):
            if "__pycache__" not in file.parts:
                found[str(file)] = (file.stat().st_size, file.stat().st_mtime_ns)
        return found


def load(path: Path) -> None:
    """Put a bundle through everything that opens sessions, packages and files by what it says."""
    bundle = open_bundle(path, check=False)
    with suppress(EdgekitError):
        inspect_model(path)
    with suppress(EdgekitError):
        runner = load_runner(bundle, threads=1)
        runner.prefill([1, 2, 3])
        runner.close()
    verify_npus(bundle, None, OnEmulator(2, 1))
    for build in bundle.manifest.npus:
        plugin = build.target.npu.plugin if build.target.npu else None
        if plugin is not None:
            with suppress(EdgekitError):
                session_options(plugin, build.target.provider, build.options, 1)


def full_bundle(folder: Path) -> Bundle:
    """A bundle with a part for an NPU and scores on ARM: as many kinds of values as a manifest has."""
    bundle = build_tiny(folder)
    kernels = Kernels("without KleidiAI", 0, (("mlas.disable_kleidiai", "1"),))
    one = Interval(0.1, 0.0, 0.2)
    score = KernelScore(kernels, quality(0.1, 0.9), one, one, one)
    arm = ArmQuality("Cortex-A76, emulated", quality(0.1, 0.9), (score,), kernels, None)
    return record(bundle, quality=quality(0.1, 0.9), arm=arm)


def make_canary(folder: Path) -> None:
    """A module and a library that leave a mark where they are loaded."""
    folder.mkdir()
    mark = folder / "written by code"
    (folder / f"{MODULE}.py").write_text(f"open({str(mark)!r}, 'a').write('x')\nwritten = 'x'\n")
    source = folder / "canary.c"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void mark(void) "
        f'{{ FILE *f = fopen("{mark}", "a"); if (f) {{ fputs("x", f); fclose(f); }} }}\n'
    )
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler:
        subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(folder / "canary.so")], check=True)


def count(limit: int | None = None) -> tuple[int, int, list[str]]:
    """Effects, cases, and what the effects were; ``limit`` takes cases evenly spread."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        canary = folder / "canary"
        make_canary(canary)
        bundle = full_bundle(folder)
        shutil.copy(canary / f"{MODULE}.py", bundle.path.parent)
        sys.path.insert(0, str(canary))
        watch = Watch(canary)
        here, found, tried = Path.cwd(), [], 0
        os.chdir(bundle.path)
        with suppress(EdgekitError):
            load(bundle.path)  # once unchanged: what is imported and cached by then is edgekit's own doing
        try:
            for name in ("edgekit.json", "genai_config.json"):
                file = bundle.path / name
                good = file.read_bytes()
                chosen = list(cases(json.loads(good), canary))
                for where, document in chosen[:: max(1, len(chosen) // limit) if limit else 1]:
                    tried += 1
                    _write(bundle, name, json.dumps(document).encode())
                    with redirect_stderr(StringIO()), watch.looking() as events, suppress(EdgekitError):
                        load(bundle.path)
                    found += [f"{name}: {where}: {event}" for event in events]
                _write(bundle, name, good)
        finally:
            os.chdir(here)
            sys.path.remove(str(canary))
    return len(found), tried, found


def _write(bundle: Bundle, name: str, data: bytes) -> None:
    """Put a file in its place as its maker would: with its size in the manifest."""
    (bundle.path / name).write_bytes(data)
    if name != "edgekit.json":
        manifest = json.loads((bundle.path / "edgekit.json").read_bytes())
        next(f for f in manifest["files"] if f["path"] == name)["bytes"] = len(data)
        (bundle.path / "edgekit.json").write_text(json.dumps(manifest))


def main() -> bool:
    """Print the count; True when nothing happened."""
    effects, tried, found = count()
    print("\n".join(found[:20]))
    print(f"code or file writes that a bundle's values cause: {effects} in {tried:,} values")
    return effects == 0


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
