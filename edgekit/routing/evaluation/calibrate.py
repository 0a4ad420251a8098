"""Calibrate a bundle's signals on questions with known answers, and bind the calibration to this bundle."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from edgekit import words
from edgekit.errors import ConfigError, GateFailed, RouteError
from edgekit.routing.binding import Binding
from edgekit.routing.decision.calibration_fit import FITTING_FOR_GUARANTEE, CalibrationFit, calibrate
from edgekit.routing.decision.fit import SECOND
from edgekit.routing.evaluation.collect import PREFIX_TOKENS, add_second, collect_local
from edgekit.types import Bundle, Progress, silent
from edgekit.types.calibration import Calibration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.routing.decision.threshold import Infeasible
    from edgekit.types.routing import LocalAnswer


@dataclass(frozen=True)
class Calibrated:
    """The fit, and the calibration made from it; None if the guarantee cannot be given."""

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
    """Let the bundle answer questions with known answers, and fit a probability of being wrong to its signals.

    Nothing is written: ``bundle.record(bundle, calibration=...)`` does that.

    Args:
        bundle: the opened bundle.
        data: JSON lines of questions with their answers; see edgekit/routing/evaluation/examples.py.
        guarantee: (alpha, delta): with confidence 1 - delta at most alpha of the answers served are wrong. None: an
            answer is served that is likelier right than wrong.
        prefix_tokens: number of tokens after which an answer may be given up; 0 for never.
        threads: threads of the runtime; by default the bundle's own choice.
        store: a file that keeps the answers; this bundle's own are reused; see collect.py.
        second: another bundle, whose log-probability of each answer is a further signal. If the score uses it, the
            calibration needs that bundle.
        seed: seed of splits and resamples.
        progress: called for every question.

    Raises:
        RouteError: the data is invalid: a line without an answer, too few answers, all right or all wrong.
        RunError: the bundle does not load.
    """
    from edgekit.routing.evaluation.examples import read_examples

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
    """Calibrate with answers to ``data`` that were collected in this process, judged by ``second`` if there is one.

    Raises:
        RouteError: the answers are invalid.
    """
    if second is None and any(a.signals.second_logprob is not None for a in answers):
        raise RouteError("the answers hold the opinion of another bundle", "pass that bundle as `second`")
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


def require_guarantee(calibrated: Calibrated) -> None:
    """Check that the guarantee can be given; it is never relaxed.

    Raises:
        GateFailed: no threshold kept it; the hint says how many examples are needed.
    """
    if missed := calibrated.fit.infeasible:
        raise GateFailed(f"{calibrated.bundle}: {refusal_words(missed)}; nothing was written", _what_it_takes(missed))


def parse_guarantee(text: str) -> tuple[float, float]:
    """Parse ``0.05@0.95``, at most 5 % wrong with confidence 95 %, into (alpha, delta): (0.05, 0.05).

    Raises:
        ConfigError: the text is not two numbers between 0 and 1.
    """
    try:
        alpha, confidence = map(float, text.split("@"))
    except ValueError:
        alpha = confidence = 0.0
    if not (0 < alpha < 1 and 0 < confidence < 1):
        raise ConfigError(
            f"`guarantee` must be two numbers between 0 and 1, not '{text}'",
            "0.05@0.95 means: at most 5 % of the answers served are wrong, with confidence 95 %",
        )
    return alpha, round(1 - confidence, 12)


def refusal_words(missed: Infeasible) -> str:
    """Describe why a guarantee cannot be given."""
    seen = f"{missed.failures} of {missed.served} served were wrong, so up to {words.percent(missed.bound)} may be"
    return f"no threshold keeps the guarantee that {words.promise(missed.alpha, missed.delta)}: {seen}"


def _what_it_takes(missed: Infeasible) -> str:
    if missed.needed is None:
        rate = words.percent(missed.failures / missed.served)
        return f"relax `guarantee` or use a better model: {rate} of the surest are wrong, so more examples do not help"
    takes = f"{words.count(missed.needed)} served answers are needed at this share of wrong ones"
    if missed.examples is None:
        return takes
    total = missed.examples / (1 - FITTING_FOR_GUARANTEE)
    return f"{takes}: about {words.count(total)} examples in all"
