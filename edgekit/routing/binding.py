"""Check that a calibration matches the bundle it is used with, and its second opinion."""

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
    """The bundle and environment that collected answers and a calibration of them are valid for.

    ``runtime`` holds the versions that can change a signal, and the processor's class.
    """

    bundle_sha256: str
    provider: str
    runtime: tuple[tuple[str, str], ...]
    template_sha256: str

    @classmethod
    def of(cls, bundle: Bundle) -> Binding:
        """The binding of a bundle in this process; ``template_sha256`` is "" for a model without a chat template."""
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
    """Refuse a calibration of another bundle, provider, runtime, processor or chat template.

    Versions of edgekit, which computes the signals, and of ONNX Runtime are compared up to the minor version.

    Raises:
        RouteError: any of them differs.
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
                f"{bundle.path}: the calibration is for another {what}: {then or 'none'}, not {today or 'none'}",
                f"calibrate this bundle: edgekit route calibrate {bundle.path} --data FILE",
            )


def check_second(calibration: Calibration | None, second: Bundle | None) -> None:
    """Check that the second bundle is the one whose opinion the calibration's score uses.

    Raises:
        ConfigError: the second bundle is missing, another one, or not used by the score.
    """
    needed = calibration.second_sha256 if calibration else ""
    if needed and second is None:
        raise ConfigError(
            "the calibration needs the opinion of a second bundle, which is missing",
            f"pass `second`, the bundle whose hash begins with {needed[:16]}, or calibrate again without one",
        )
    if second and not needed:
        raise ConfigError(
            f"{second.path}: the second opinion is unused: "
            + ("the calibration's score has no such signal" if calibration else "the bundle has no calibration"),
            "remove `second`, or pass it to `edgekit route calibrate`",
        )
    if second and second.sha256 != needed:
        raise ConfigError(
            f"{second.path}: the calibration needs the opinion of bundle {needed[:16]}, and this is "
            f"{second.sha256[:16]}",
            "pass that bundle as `second`, or calibrate again with this one",
        )


def require_calibration(bundle: Bundle, calibration: Calibration | None = None) -> Calibration:
    """Return the given calibration, or else the bundle's own, after check_binding.

    Raises:
        RouteError: there is no calibration, or it is for something else.
    """
    found = calibration or bundle.manifest.calibration
    if found is None:
        raise RouteError(
            f"{bundle.path}: the bundle has no calibration",
            f"run `edgekit route calibrate {bundle.path} --data FILE`",
        )
    check_binding(bundle, found)
    return found
