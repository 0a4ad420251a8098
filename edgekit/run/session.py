"""Open a bundle's graph as an ONNX Runtime session. The provider is data: its name is passed on, never compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.config.providers import find_provider, wrong_entry, wrong_option
from edgekit.errors import RunError
from edgekit.host.arithmetic import NOTHING, Arithmetic
from edgekit.run.exactness import folding_entry
from edgekit.run.first_logit import open_first_logit
from edgekit.run.prefill_weights import expand
from edgekit.run.runtime import onnxruntime
from edgekit.run.threads import core_cpus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.types import Bundle, Manifest, Settings


@dataclass(frozen=True)
class SessionInfo:
    """The facts about a session.

    ``placement`` counts the nodes on each provider, in the session's order of preference; None if this ONNX Runtime
    does not report it. ``runtime``: (package, version) pairs. ``arithmetic``: how exact its matmuls are.
    """

    runtime: tuple[tuple[str, str], ...]
    provider: str
    provider_options: tuple[tuple[str, str], ...]
    threads: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    placement: tuple[tuple[str, int], ...] | None
    arithmetic: Arithmetic

    @property
    def nodes_on_cpu(self) -> int | None:
        """The number of nodes on the CPU, which ONNX Runtime always lists last, as the fallback."""
        return self.placement[-1][1] if self.placement else None


@dataclass(frozen=True)
class Session:
    """An open ONNX Runtime session and what is known about it."""

    handle: Any
    info: SessionInfo


def open_session(
    bundle: Bundle,
    settings: Settings,
    *,
    small_memory: bool = False,
    arithmetic: Arithmetic = NOTHING,
    graph: bytes | None = None,
) -> Session:
    """Load a bundle's graph with its target's provider.

    Args:
        bundle: the opened bundle.
        settings: threads, and how they wait.
        small_memory: disable the memory arena, so that memory is freed after each run.
        arithmetic: the session entries that make the graph's matmuls exact.
        graph: another ONNX file with the same weights, instead of the bundle's.

    Raises:
        RunError: this ONNX Runtime does not have the provider, or the graph does not load.
    """
    return _open(bundle, graph or bundle.graph, settings, {}, arithmetic, small_memory=small_memory)


def open_prompt_session(bundle: Bundle, settings: Settings, arithmetic: Arithmetic = NOTHING) -> Session:
    """Load the bundle's prompt graph, with its weights expanded from the decoder's.

    Args:
        bundle: the opened bundle; its manifest has a ``prefill``.
        settings: as in ``open_session``.
        arithmetic: as in ``open_session``.

    Raises:
        RunError: as in ``open_session``.
    """
    prefill = bundle.manifest.prefill
    assert prefill is not None
    data = bundle.graph.with_name(f"{bundle.graph.name}_data")
    weights = expand(data, prefill.expansions, settings.threads)
    return _open(bundle, bundle.path / prefill.graph, settings, dict(weights), arithmetic)


def _open(
    bundle: Bundle,
    graph: Path | bytes,
    settings: Settings,
    weights: Mapping[str, NDArray[np.generic]],
    arithmetic: Arithmetic,
    *,
    small_memory: bool = False,
) -> Session:
    target = bundle.manifest.cpu_target
    available = onnxruntime.get_available_providers()
    if target.provider not in available:
        raise RunError(
            f"target '{target.name}' needs {target.provider}, which onnxruntime {onnxruntime.__version__} does not "
            f"have; available: {', '.join(available)}",
            hint="install the onnxruntime package that contains it, or build for `target=cpu`",
        )
    _refuse_settings(bundle)
    options = _options(settings)
    for key, value in (*session_entries(bundle.manifest, settings), *arithmetic.entries):
        options.add_session_config_entry(key, value)
    options.enable_cpu_mem_arena = not small_memory
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.graph.parent))
    if weights:
        # ONNX Runtime packs them while creating the session and does not read these bytes again.
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        # Threads that keep spinning after a prompt would slow the decoder down by a tenth.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = [(target.provider, dict(target.provider_options))]
    try:
        # Without enable_fallback=0, ONNX Runtime replaces a failing provider by the CPU and prints to stdout.
        model = open_first_logit(graph if isinstance(graph, bytes) else graph.read_bytes())
        handle = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors have no common base class
        raise _load_error(bundle, error) from error
    info = SessionInfo(
        runtime=(("onnxruntime", onnxruntime.__version__),),
        provider=target.provider,
        provider_options=target.provider_options,
        threads=settings.threads,
        inputs=tuple(i.name for i in handle.get_inputs()),
        outputs=tuple(o.name for o in handle.get_outputs()),
        placement=_placement(handle),
        arithmetic=arithmetic,
    )
    return Session(handle, info)


def _refuse_settings(bundle: Bundle) -> None:
    """Raise if a bundle sets something it may not. Opening it checks that too; here is where it takes effect."""
    target = bundle.manifest.cpu_target
    known = find_provider(target.provider) is not None
    wrong = wrong_option(target.provider, target.provider_options) or wrong_entry(bundle.manifest.kernels)
    if wrong or not known:
        raise RunError(
            f"{bundle.path}: {wrong or f'{target.provider} is not a provider that this edgekit knows'}",
            "rebuild it for one of `edgekit targets list`; targets/providers lists the allowed options",
        )


def session_entries(manifest: Manifest, settings: Settings) -> tuple[tuple[str, str], ...]:
    """The session entries of a bundle's CPU graph, on any machine."""
    spinning = ("session.intra_op.allow_spinning", str(int(settings.spinning)))
    return spinning, folding_entry(manifest.accuracy_level), *manifest.kernels


def _options(settings: Settings) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised anyway
    cores = core_cpus() if settings.pinned else ()
    if 1 < settings.threads <= len(cores):
        # The first core is left to the calling thread, which ONNX Runtime does not place. CPUs are numbered from 1.
        places = ";".join(str(cpu + 1) for cpu in cores[1 : settings.threads])
        options.add_session_config_entry("session.intra_op_thread_affinities", places)
    # ONNX Runtime would plan and keep a pattern for every new input shape, that is, for every token.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _placement(handle: Any) -> tuple[tuple[str, int], ...] | None:
    if not hasattr(handle, "get_provider_graph_assignment_info"):
        return None
    nodes: Counter[str] = Counter()
    for part in handle.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    return tuple((provider, nodes[provider]) for provider in handle.get_providers())


def _load_error(bundle: Bundle, error: Exception) -> RunError:
    reason = " ".join(str(error).split())
    version = onnxruntime.__version__
    # onnxruntime's messages for an IR version, opset or operator that is newer than the runtime.
    too_new = (
        "Unsupported model IR version",
        "is under development",
        "No Op registered",
        "is not a registered function/op",
    )
    if any(phrase in reason for phrase in too_new):
        return RunError(
            f"onnxruntime {version} is too old for {bundle.graph}: {reason}",
            hint='pip install --upgrade "onnxruntime>=1.24"',
        )
    if "alloc" in reason:
        return RunError(
            f"not enough memory to load {bundle.graph}: {reason}", hint="build with fewer bits (`precision=int4`)"
        )
    return RunError(
        f"onnxruntime {version} cannot load {bundle.graph}: {reason}",
        hint="run `edgekit verify` to check that the bundle is intact, or rebuild it with `edgekit build`",
    )
