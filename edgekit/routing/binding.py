"""That a calibration is used with the artefact it was made of, and with its second opinion."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING

from edgekit import __version__, words
from edgekit.errors import ConfigError, RouteError
from edgekit.host.processor import processor_class
from edgekit.run import chat_template

if TYPE_CHECKING:
    from edgekit.types import Bundle
    from edgekit.types.calibration import Calibration


@dataclass(frozen=True)
class Binding:
    """What answers, and a calibration of them, are valid for.

    ``runtime``: versions that can change a signal, and the processor's class.
    """

    bundle_sha256: str
    provider: str
    runtime: tuple[tuple[str, str], ...]
    template_sha256: str

    @classmethod
    def of(cls, bundle: Bundle) -> Binding:
        """Of a bundle in this process; ``template_sha256`` is "" for a model without a chat template."""
        template = chat_template(bundle)
        return cls(
            bundle_sha256=bundle.sha256,
            provider=bundle.manifest.cpu_target.provider,
            runtime=(
                ("edgekit", __version__),
                ("onnxruntime", version("onnxruntime")),
                ("processor", " ".join((platform.machine(), processor_class())).strip()),
            ),
            template_sha256="" if template is None else sha256(template.encode()).hexdigest(),
        )


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
        ("onnxruntime", words.minor_version(was.get("onnxruntime", "")), words.minor_version(now["onnxruntime"])),
        ("processor", was.get("processor", ""), now["processor"]),
        ("chat template", calibration.template_sha256[:16], here.template_sha256[:16]),
        ("edgekit", words.minor_version(was.get("edgekit", "")), words.minor_version(now["edgekit"])),
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
