"""Files of a bundle whose hashes agree with its manifest: a whole bundle of a stranger's, as he sealed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.fuzz.case import Case, Step
from tests.fuzz.manifest import COMMANDS
from tests.fuzz.values import damaged_bytes, damaged_text, json_steps, odd_files, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FILES = ("genai_config.json", "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Side files, the template, the graph and the weights, changed and sealed again."""
    folder = seed("bundle")
    changes = [json_steps(f"bundle/{name}", read(folder, name), typed=False) for name in _FILES]
    files = (*_FILES, "chat_template.jinja")
    changes += [damaged_text(f"bundle/{name}", (folder / name).read_text(encoding="utf-8")) for name in files]
    changes += [odd_files(f"bundle/{name}") for name in (*files, "onnx/model_q4.onnx")]
    changes += [
        damaged_bytes(f"bundle/{name}", (folder / name).stat().st_size)
        for name in ("onnx/model_q4.onnx", "onnx/model_q4.onnx_data")
    ]

    def case(command: tuple[str, ...], change: tuple, sealed: bool) -> Case:
        what, steps, _ = change
        seal = (Step("reseal", "bundle"),) if sealed else ()
        return Case(f"sealed: {command[0]}: {steps[0].path}: {what}", command, ("bundle", "model", "policy"),
                    (*steps, *seal), refused=not sealed and "build" not in command[0] and steps[0].do != "mode",
                    writes=("bundle",) if command[0] == "build" else ())  # fmt: skip

    return st.builds(case, st.sampled_from(COMMANDS[:-1]), st.one_of(changes), st.just(value=True))
