"""What the native runner is asked, as its words: ``key=value``. It knows no bundle; everything is said here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekit.config.providers import find_provider
from edgekit.errors import LabError
from edgekit.measure.latency import plan_workloads
from edgekit.run.first_logit import ADDED
from edgekit.run.session import session_entries
from edgekit.run.settings import choose_settings, default_settings
from edgekit.types import FIRST_LOGIT
from edgekit.types.npu import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgekit.types import Bundle, Settings
    from edgekit.types.lab import Task
    from edgekit.types.npu import NpuBuild

LOADS = 3
"""Times that a bench opens the model, as ``edgekit bench``."""

ON_CPU = ("session.qdq_matmulnbits_accuracy_level", "1")
"""For static graphs and the host's graph on the CPU, as run/npu/static_runner.py."""

NO_FALLBACK = ("session.disable_cpu_ep_fallback", "1")


@dataclass(frozen=True)
class There:
    """Where files that are in no bundle lie on the device.

    ``runtime``: the ONNX Runtime library. ``plugin``: the library of the NPU's provider, "" if it is part of the
    runtime. ``options``: provider options that only the device's owner may set, such as those that name a library.
    ``flags``: of a provider that is added by a function. ``power``: files that give the watts or joules of a meter,
    ``SCALE:FILE*FILE``, whose numbers are multiplied.
    """

    runtime: str
    plugin: str = ""
    options: tuple[tuple[str, str], ...] = ()
    flags: int = 0
    power: str = ""


def settings_of(task: Task, bundle: Bundle) -> Settings:
    """The settings of a run: prompts on the decoder's graph, threads where the system puts them.

    Raises:
        LabError: the task has neither settings nor threads; those of this machine are not the device's.
    """
    if task.settings is None and task.threads is None:
        raise LabError("the native runner does not choose how many threads it uses", "pass `threads`")
    settings = task.settings or replace(default_settings(bundle.manifest), threads=task.threads or 1)
    settings = choose_settings(bundle.manifest, settings=settings, threads=task.threads, small_memory=task.small_memory)
    return replace(settings, pinned=False, prompt_graph="decoder")


def context_of(bundle: Bundle, npu: NpuBuild | None) -> int:
    """Most tokens that the runner holds. It does not cross the rope's border, where keys are made again."""
    if npu:
        return npu.past
    border = bundle.manifest.spec.rope_border
    return min(bundle.manifest.context_length, border or bundle.manifest.context_length)


def task_words(task: Task, bundle: Bundle, there: There, npu: NpuBuild | None = None) -> tuple[str, ...]:
    """The words for a task.

    Args:
        task: ``bundle`` in it is the bundle's folder on the device.
        bundle: the same bundle, here.
        there: where the other files lie on the device.
        npu: one of the bundle's NPU builds to run; None for the graph for the CPU.

    Raises:
        LabError: something that the native runner cannot do.
        MeasureError: no workload fits the context.
    """
    _refuse(task)
    settings = settings_of(task, bundle)
    words = [f"runtime={there.runtime}", f"do={task.do}", f"threads={settings.threads}"]
    words += _npu_words(task, npu, there) if npu else _cpu_words(task, bundle, settings)
    if there.power:
        words.append(f"power={there.power}")
    if task.marks:
        words.append("bursts=1")
    return (*words, *_work(task, context_of(bundle, npu)))


def _refuse(task: Task) -> None:
    sampling = task.sampling
    wrong = {
        "logits": task.do == "logits",
        "sampling, only the likeliest tokens": sampling
        and (bool(sampling.temperature) or sampling.repetition_penalty != 1.0 or bool(sampling.stop)),
        "meters by name, only the files that `power` names": bool(task.meter),
    }
    for what, true in wrong.items():
        if true:
            raise LabError(f"the native runner has no {what}", "run it with the Python driver, or leave it out")


def _cpu_words(task: Task, bundle: Bundle, settings: Settings) -> Iterator[str]:
    manifest = bundle.manifest
    graph = f"{task.bundle}/{manifest.graph}"
    yield f"graph={graph}"
    if FIRST_LOGIT.encode() in bundle.graph.read_bytes():
        yield f"append={ADDED.hex()}"
        yield f"first_logit={FIRST_LOGIT}"
    folder = ("session.model_external_initializers_file_folder_path", graph.rpartition("/")[0])
    yield from _pairs("entry", (*session_entries(manifest, settings), folder))
    yield f"shared={int(manifest.cpu_target.shared_kv)}"
    yield f"tight={int(task.small_memory)}"
    yield f"arena={int(not task.small_memory)}"
    yield f"context={context_of(bundle, None)}"
    yield f"chunk={settings.prefill_chunk}"


def _npu_words(task: Task, npu: NpuBuild, there: There) -> Iterator[str]:
    """Compiled graphs must run on the NPU whole; graphs that the device compiles may leave nodes to the CPU."""
    yield f"host={task.bundle}/{npu.host}"
    for role in ROLES:
        paths = [g.context for g in npu.chain(role)] or [g.path for g in npu.static if g.role == role]
        yield from (f"{role}={task.bundle}/{path}" for path in paths)
    yield from _pairs("entry", [ON_CPU])
    yield from _pairs("device_entry", npu.session or ([NO_FALLBACK] if npu.graphs else []))
    known = find_provider(npu.target.provider)
    runtime = npu.target.npu.runtime if npu.target.npu else None
    options = {**dict(npu.options), **dict(runtime.options if runtime else ()), **dict(there.options)}
    yield f"provider={npu.target.provider}"
    yield from _pairs("option", options.items())
    if there.plugin:
        yield f"plugin={there.plugin}"
    elif known and known.function:
        yield f"function={known.function}"
        yield f"flags={there.flags}"


def _work(task: Task, context: int) -> Iterator[str]:
    if task.do == "bench":
        plan = plan_workloads(context, task.pp, task.tg, task.depth)
        yield f"loads={LOADS}"
        yield f"pp={','.join(map(str, plan.prompts))}"
        yield from (f"tg={count}@{depth}" for depth, count in plan.decodes)
        yield f"repetitions={task.repetitions}"
        yield f"warmup={task.warmup}"
    elif task.do == "sustain":
        yield f"seconds={task.seconds:g}"
        yield from (f"depth={depth}" for depth in task.depth[:1])
    else:
        yield f"tokens={','.join(map(str, task.tokens))}"
        yield f"stop={','.join(map(str, task.stop))}"
        yield f"max_tokens={task.max_tokens}"


def _pairs(key: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (f"{key}={name}={value}" for name, value in pairs)
