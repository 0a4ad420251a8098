"""One bundle, four runtimes: onnxruntime-genai, optimum and transformers.js give the tokens of edgekit's own runner."""

from __future__ import annotations

import pytest

RUNTIMES = [
    pytest.param("genai"),
    pytest.param("optimum", marks=pytest.mark.optimum),
    pytest.param("javascript", marks=pytest.mark.node),
]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tiny_bundles_open_unchanged(runtime: str, request: pytest.FixtureRequest) -> None:
    ask = request.getfixturevalue(runtime)
    cases = list(request.getfixturevalue("tiny_cases").values())
    for case, answer in zip(cases, ask(cases), strict=True):
        case.check(answer)


@pytest.mark.model
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_smollm2_opens_unchanged(runtime: str, request: pytest.FixtureRequest) -> None:
    ask = request.getfixturevalue(runtime)
    case = request.getfixturevalue("real_case")
    case.check(ask([case])[0])
