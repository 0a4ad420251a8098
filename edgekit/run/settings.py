"""Choose the settings to run with: the caller's, else those tuned for this class of machine, else the defaults."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import RunError
from edgekit.host.processor import processor_name
from edgekit.run.runtime import onnxruntime
from edgekit.run.threads import physical_cores
from edgekit.types import Settings
from edgekit.types.generation import PREFILL_CHUNK

if TYPE_CHECKING:
    from edgekit.types import Manifest, Tuning

SMALL_CHUNK = 64
"""Tokens per run when saving memory, since activations grow with them."""

DECODE_GRAPH_MAX_TOKENS = 4
"""Up to this many tokens, the decoder's graph, which unpacks 4-bit weights, is as fast as the prompt graph."""


def machine_class(root: Path = Path("/")) -> str:
    """The class of this machine, for tunings: its processor and the physical cores that this process may use.

    Args:
        root: the folder that contains ``proc`` and ``sys``.
    """
    cores = physical_cores(root)
    return f"{processor_name(root) or platform.machine()}, {cores} {'core' if cores == 1 else 'cores'}"


def runtime_class() -> str:
    """The runtime without its patch version, such as ``onnxruntime 1.24``."""
    return f"onnxruntime {'.'.join(onnxruntime.__version__.split('.')[:2])}"


def find_tuning(manifest: Manifest) -> Tuning | None:
    """The tuning for this class of machine and this runtime, or None."""
    if not manifest.tunings:
        return None
    here = (machine_class(), runtime_class())
    return next((t for t in manifest.tunings if (t.machine, t.runtime) == here), None)


def default_settings(manifest: Manifest) -> Settings:
    """The settings of a bundle without a tuning."""
    return Settings(
        threads=physical_cores(),
        spinning=True,
        pinned=False,
        prompt_graph="decoder" if manifest.prefill is None else "own",
        prefill_chunk=PREFILL_CHUNK,
        decode_graph_max_tokens=DECODE_GRAPH_MAX_TOKENS,
    )


def choose_settings(
    manifest: Manifest, *, settings: Settings | None = None, threads: int | None = None, small_memory: bool = False
) -> Settings:
    """Choose the settings to run with.

    Args:
        manifest: the bundle's.
        settings: used instead of a tuning or the defaults.
        threads: overrides the settings' threads.
        small_memory: run prompts on the decoder's graph, in short runs.

    Raises:
        RunError: ``threads`` is not positive.
    """
    if threads is not None and threads < 1:
        raise RunError(f"threads must be 1 or more, not {threads}", hint="pass at least `threads=1`, or omit `threads`")
    if settings is None:
        tuning = find_tuning(manifest)
        settings = default_settings(manifest) if tuning is None else tuning.settings
    if threads is not None:
        settings = replace(settings, threads=threads)
    if small_memory or manifest.prefill is None:
        settings = replace(settings, prompt_graph="decoder")
    if small_memory:
        settings = replace(settings, prefill_chunk=min(settings.prefill_chunk, SMALL_CHUNK))
    return settings
