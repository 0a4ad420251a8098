"""Calibrate a bundle's signals on questions whose answers are known, and bind what was found to this very artefact."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from edgekit import words
from edgekit.calibration import Calibration
from edgekit.collect import PREFIX_TOKENS, Binding, add_second, collect_local
from edgekit.errors import ConfigError, GateFailed, RouteError
from edgekit.route.calibration_fit import FITTING_FOR_GUARANTEE, CalibrationFit, calibrate
from edgekit.route.fit import SECOND
from edgekit.types import Bundle, Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.route.threshold import Infeasible
    from edgekit.routing import LocalAnswer


@dataclass(frozen=True)
class Calibrated:
    """The outcome of ``calibrate``: what was found, and the calibration, None where the guarantee cannot be given."""

    bundle: str
    fit: CalibrationFit
    calibration: Calibration | None


def calibrate_bundle(
    bundle: Bundle,
    data: Path,
    *,
    guarantee: tuple[float, float] | None = None,
    prefix_tokens: int = PREFIX_TOKENS,
    threads: int | None = None,
    store: Path | None = None,
    second: Bundle | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Calibrated:
    """Let the bundle answer questions whose answers are known, and fit what its signals are worth.

    Nothing is written: ``bundle.record(bundle, calibration=...)`` does that.

    Args:
        bundle: the opened bundle.
        data: JSON lines of questions with their answers; see edgekit/examples_file.py.
        guarantee: (alpha, delta): with confidence 1 - delta at most alpha of the answers served are wrong. None: an
            answer is served that is likelier right than wrong.
        prefix_tokens: after how many tokens an answer may be given up; 0: never.
        threads: of the runtime; by default the bundle's own choice.
        store: where answers are kept, and taken from if they are this bundle's; see edgekit/collect.py.
        second: another bundle that says how likely it finds each answer. Where that helps, it is needed from then on.
        seed: of splits and resamples.
        progress: hears of every question.

    Raises:
        RouteError: the data cannot be used: a line without an answer, too few, all right or all wrong.
        RunError: the bundle does not load.
    """
    from edgekit.examples_file import read_examples

    examples = read_examples(data)
    answers = collect_local(
        bundle, examples, prefix_tokens=prefix_tokens or PREFIX_TOKENS, threads=threads, store=store, progress=progress
    )
    if second:
        answers = add_second(second, examples, answers, threads=threads, store=store, progress=progress)
    return fit_calibration(
        bundle, data, answers, guarantee=guarantee, prefix_tokens=prefix_tokens, second=second, seed=seed
    )


def fit_calibration(
    bundle: Bundle,
    data: Path,
    answers: Sequence[LocalAnswer],
    *,
    guarantee: tuple[float, float] | None = None,
    prefix_tokens: int = PREFIX_TOKENS,
    second: Bundle | None = None,
    seed: int = 0,
) -> Calibrated:
    """The same with answers that the bundle has given to ``data`` in this process, and ``second`` has judged.

    Raises:
        RouteError: the answers cannot be used.
    """
    if second is None and any(a.signals.second_logprob is not None for a in answers):
        raise RouteError("the answers hold the opinion of another bundle, and it is not there", "give it as second")
    fit = calibrate(answers, guarantee=guarantee, prefix_tokens=prefix_tokens, seed=seed)
    if fit.infeasible:
        return Calibrated(str(bundle.path), fit, None)
    binding = Binding.of(bundle)
    calibration = Calibration(
        bundle_sha256=binding.bundle_sha256,
        provider=binding.provider,
        runtime=binding.runtime,
        template_sha256=binding.template_sha256,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        data=data.name,
        data_sha256=sha256(data.read_bytes()).hexdigest(),
        n_fit=fit.n_fit,
        n_threshold=fit.n_threshold,
        right=fit.right,
        score=fit.score,
        threshold=fit.threshold,
        guarantee=fit.guarantee,
        prefix=fit.prefix,
        scores=fit.scores,
        auroc=fit.auroc,
        ece=fit.ece,
        brier=fit.brier,
        second_sha256=second.sha256 if second and SECOND in fit.score.features else "",
    )
    return Calibrated(str(bundle.path), fit, calibration)


def check_binding(bundle: Bundle, calibration: Calibration) -> None:
    """Refuse a calibration of something else: another artefact, provider, runtime, processor or chat template.

    Of edgekit, which computes the signals, and of ONNX Runtime the minor version counts; patches do not.

    Raises:
        RouteError: which part differs, and how.
    """
    here = Binding.of(bundle)
    was, now = dict(calibration.runtime), dict(here.runtime)
    pairs = (
        ("bundle", calibration.bundle_sha256[:16], here.bundle_sha256[:16]),
        ("execution provider", calibration.provider, here.provider),
        ("onnxruntime", _minor(was.get("onnxruntime", "")), _minor(now["onnxruntime"])),
        ("processor", was.get("processor", ""), now["processor"]),
        ("chat template", calibration.template_sha256[:16], here.template_sha256[:16]),
        ("edgekit", _minor(was.get("edgekit", "")), _minor(now["edgekit"])),
    )
    for what, then, today in pairs:
        if then != today:
            raise RouteError(
                f"{bundle.path}: the calibration is of another {what}: {then or 'none'}, and here it is "
                f"{today or 'none'}",
                f"calibrate this one: edgekit route calibrate {bundle.path} --data FILE",
            )


def check_second(calibration: Calibration | None, second: Bundle | None) -> None:
    """Refuse to judge without the second opinion that a score is made of, or to ask for one that nothing uses.

    Raises:
        ConfigError: it is missing, another one, or of no use.
    """
    needed = calibration.second_sha256 if calibration else ""
    if needed and second is None:
        raise ConfigError(
            "the calibration rests on the opinion of a second bundle, and none is given",
            f"give `second`, the bundle whose hash begins with {needed[:16]}; or calibrate again without",
        )
    if second and not needed:
        raise ConfigError(
            f"{second.path}: a second opinion is of no use: "
            + ("the calibration's score does without" if calibration else "there is no calibration that weighs it"),
            "leave `second` out, or give it to `edgekit route calibrate`",
        )
    if second and second.sha256 != needed:
        raise ConfigError(
            f"{second.path}: the calibration rests on the opinion of another bundle: {needed[:16]}, and this is "
            f"{second.sha256[:16]}",
            "give that one, or calibrate again with this one",
        )


def require_calibration(bundle: Bundle, calibration: Calibration | None = None) -> Calibration:
    """The calibration given, or else the bundle's own, after check_binding.

    Raises:
        RouteError: there is none, or it is of something else.
    """
    found = calibration or bundle.manifest.calibration
    if found is None:
        raise RouteError(
            f"{bundle.path}: no calibration says what its signals are worth",
            f"edgekit route calibrate {bundle.path} --data FILE",
        )
    check_binding(bundle, found)
    return found


def require_guarantee(calibrated: Calibrated) -> None:
    """Refuse a guarantee that cannot be given, with what it would take; it is never relaxed.

    Raises:
        GateFailed: no threshold kept it.
    """
    if missed := calibrated.fit.infeasible:
        raise GateFailed(f"{calibrated.bundle}: {refusal_words(missed)}; nothing was written", _what_it_takes(missed))


def parse_guarantee(text: str) -> tuple[float, float]:
    """``0.05@0.95``, at most 5 % wrong with confidence 95 %, as (alpha, delta): (0.05, 0.05).

    Raises:
        ConfigError: not two numbers between 0 and 1.
    """
    try:
        alpha, confidence = map(float, text.split("@"))
    except ValueError:
        alpha = confidence = 0.0
    if not (0 < alpha < 1 and 0 < confidence < 1):
        raise ConfigError(
            f"`guarantee` is '{text}'", "0.05@0.95: at most 5 % of the answers served are wrong, with confidence 95 %"
        )
    return alpha, round(1 - confidence, 12)


def refusal_words(missed: Infeasible) -> str:
    """Why a guarantee cannot be given."""
    seen = f"of {missed.served} served {missed.failures} were wrong, and that may be {words.percent(missed.bound)}"
    return f"no threshold keeps the guarantee that {words.promise(missed.alpha, missed.delta)}: {seen}"


def _what_it_takes(missed: Infeasible) -> str:
    if missed.needed is None:
        rate = words.percent(missed.failures / missed.served)
        return f"no number of examples is enough while {rate} of the surest are wrong: ask for less, or a better model"
    takes = f"it takes {words.count(missed.needed)} served answers if as many of them are wrong"
    if missed.examples is None:
        return takes
    total = missed.examples / (1 - FITTING_FOR_GUARANTEE)
    return f"{takes}: about {words.count(total)} examples in all"


def _minor(text: str) -> str:
    return ".".join(text.split(".")[:2])
