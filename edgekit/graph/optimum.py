"""Export any decoder that optimum-onnx supports.

optimum-onnx pins transformers < 4.58, so it runs as a subprocess in its own environment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import GraphError
from edgekit.graph.exported import Export, read_export
from edgekit.host.cache import cache_folder, make_own, require_own
from edgekit.locks import FOLDER, STRICT, WHEELS
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCK = FOLDER / "optimum.txt"
TORCH = "torch==2.13.0"
"""Compatible versions of optimum-onnx, torch, onnxruntime and their dependencies, with hashes (torch by version)."""

ERROR = re.compile(r"(\w+\.)*\w*(Error|ERROR|Exception): ")
"""The line of a traceback or of pip's output with the reason; further advice may follow it."""

VARIABLE = "EDGEKIT_OPTIMUM_PYTHON"
INSTALL = "edgekit doctor --install optimum"


def export_with_optimum(
    model: str,
    *,
    opset: int = 21,
    python: Path | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Export:
    """Export a decoder in FP32 with optimum-onnx, with keys and values as inputs and outputs.

    Args:
        model: a Hugging Face folder or a hub id.
        opset: the least opset that the graph declares.
        python: an interpreter with optimum-onnx, by default the result of ``find_optimum``.
        offline: use a hub id from the cache only.
        progress: called with the elapsed seconds.

    Raises:
        GraphError: there is no such interpreter, optimum cannot export the model, or the result is not a decoder.
    """
    python = python or find_optimum()
    folder = Path(tempfile.mkdtemp(prefix="edgekit-optimum-"))
    try:
        source = _stage(Path(model), folder / "model") if Path(model).is_dir() else model
        out = folder / "export"
        command = [str(python), "-m", "optimum.exporters.onnx", "--model", str(source)]
        command += ["--task", "text-generation-with-past", "--no-post-process", "--dtype", "fp32", str(out)]
        switches = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if offline else {}
        code, reason = _run(command, folder / "log", switches, "export with optimum", progress)
        if code or not (out / "model.onnx").is_file():
            again = f"{python} -m optimum.exporters.onnx --model {model} --task text-generation-with-past OUT"
            raise GraphError(f"optimum cannot export {model}: {reason}", f"run `{again}` to see its full output")
        return read_export(out, Path(source), model, opset)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def find_optimum() -> Path:
    """Find an interpreter with optimum-onnx: this one, EDGEKIT_OPTIMUM_PYTHON, or that of ``install_optimum``.

    Raises:
        GraphError: none has it, or the variable does not name a file.
        ConfigError: another user could have written it to the cache.
    """
    spec = find_spec("optimum")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "exporters" / "onnx").is_dir():
            return Path(sys.executable)
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise GraphError(f"{VARIABLE}={named}: file not found", "set it to an interpreter with optimum-onnx")
        return Path(named)
    if require_own(_own_python()).is_file():
        return _own_python()
    raise GraphError("`exporter=optimum` needs optimum-onnx, which is not installed", f"run `{INSTALL}`")


def install_optimum(progress: Progress = silent) -> Path:
    """Create an environment with optimum-onnx in the user's cache, pinned by hashes; return its interpreter.

    It is created under a temporary name and renamed when complete, which works because only ``python -m`` is used.

    Raises:
        GraphError: pip failed.
        ConfigError: another user could write to the cache.
    """
    place = require_own(_own_python().parent.parent)
    folder = Path(tempfile.mkdtemp(prefix=".optimum-", dir=make_own(place.parent)))
    try:
        python = folder / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        steps: list[tuple[str, Sequence[str]]] = [
            ("make an environment", [sys.executable, "-m", "venv", str(folder)]),
            ("install optimum-onnx", [*pip, *STRICT, "--no-deps", "--requirement", str(LOCK)]),
            ("install torch", [*pip, *WHEELS, TORCH]),
        ]
        for task, command in steps:
            code, reason = _run(command, folder / "log", {}, task, progress)
            if code:
                raise GraphError(f"cannot {task} in {place}: {reason}", f"run `{' '.join(command)}` to see all output")
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _own_python()


def _own_python() -> Path:
    return cache_folder() / "optimum" / "bin" / "python"


def _stage(model: Path, folder: Path) -> Path:
    """Return the model's folder, or a copy of it with a config.json that transformers 4 reads like transformers 5.

    transformers 5 writes ``rope_parameters``, which transformers 4 ignores, silently using its default theta.
    """
    config = _read_config(model)
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" in config:
        return model
    config["rope_theta"] = rope.get("rope_theta", 10000.0)
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    folder.mkdir()
    for path in model.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path.resolve())
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _read_config(model: Path) -> dict[str, Any]:
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GraphError(f"{model / 'config.json'}: {error}", "pass a Hugging Face folder or a hub id") from error
    if not isinstance(config, dict):
        raise GraphError(f"{model / 'config.json'} is not a JSON object", "pass a Hugging Face folder or a hub id")
    return config


def _run(
    command: Sequence[str], log: Path, environment: dict[str, str], task: str, progress: Progress
) -> tuple[int, str]:
    """Run a command; return its exit code and the line of output with the reason. Ctrl-C ends it too."""
    started = time.monotonic()
    with log.open("w+b") as output:
        try:
            # As in run/runtime.py: no telemetry.
            quiet = os.environ | {"ORT_DISABLE_TELEMETRY": "1"} | environment
            process = subprocess.Popen(command, stdout=output, stderr=output, env=quiet)
        except OSError as error:
            return 127, str(error)
        try:
            while True:
                try:
                    code = process.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    progress(task, int(time.monotonic() - started), 0, "s")
        except BaseException:
            process.kill()
            process.wait()
            raise
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if ERROR.match(line)]
    return code, (errors or lines or ["no output"])[-1].strip()
