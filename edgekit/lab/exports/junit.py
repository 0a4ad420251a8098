"""JUnit XML: a suite per device, a case per run. What a pipeline shows as a failure is a run that is no result."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.lab.results import decode_speed, joules_per_token

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekit.types import LabRun

NAME = "junit.xml"


def export(runs: Iterable[LabRun]) -> bytes:
    """The XML of a night. ``failed`` is an error, ``noisy`` and ``throttled`` are failures, ``refused`` is skipped.

    Raises:
        LabError: junitparser is missing.
    """
    try:
        from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
    except ImportError as error:
        raise LabError("JUnit XML needs junitparser", "pip install 'edgekit[lab]'") from error
    kinds = {"failed": Error, "noisy": Failure, "throttled": Failure, "refused": Skipped}
    suites: dict[str, list[LabRun]] = defaultdict(list)
    for run in runs:
        suites[run.device].append(run)
    xml = JUnitXml("edgekit lab")
    for device, found in suites.items():
        suite = TestSuite(device)
        for run in found:
            case = TestCase(f"{run.workload}[{run.repetition}]", f"{device}.{run.bundle}", _seconds(run))
            if kind := kinds.get(run.status):
                outcome = kind(_plain(run.reason), run.status)
                outcome.text = _plain(f"{run.reason}\nhint: {run.hint}" if run.hint else run.reason)
                case.result = [outcome]
            numbers = (("tok/s", decode_speed(run)), ("joules per token", joules_per_token(run)))
            case.system_out = "\n".join(f"{name}: {value:.6g}" for name, value in numbers if value is not None)
            suite.add_testcase(case)
        xml.add_testsuite(suite)
    xml.update_statistics()
    return bytes(xml.tostring())


def _seconds(run: LabRun) -> float:
    return (datetime.fromisoformat(run.ended) - datetime.fromisoformat(run.started)).total_seconds()


def _plain(text: str) -> str:
    """Text without the characters that XML cannot hold, which a device may have sent."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
