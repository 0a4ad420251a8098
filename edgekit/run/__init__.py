"""Run a bundle on ONNX Runtime: sessions, sampling, text and conversations."""

from edgekit.run.arm64 import NO_KLEIDIAI, find_arm64, install_arm64
from edgekit.run.batch import decode_batch
from edgekit.run.chat import Chat
from edgekit.run.exactness import (
    PROMPT_MATMULS,
    check_survey,
    decoder_matmuls,
    describe_arithmetic,
    find_arithmetic,
    folding_entry,
)
from edgekit.run.generation import Finish, Generation, generate
from edgekit.run.prefill_weights import save_expanded
from edgekit.run.prefix_cache import HeldPrompt
from edgekit.run.runner import OnnxRunner, load_runner
from edgekit.run.session import SessionInfo
from edgekit.run.settings import choose_settings, default_settings, find_tuning, machine_class, runtime_class
from edgekit.run.subprocess_predictor import DrivenGraph, Interpreter, this_interpreter
from edgekit.run.text import Tokenizer, chat_template
from edgekit.run.threads import core_cpus, physical_cores

__all__ = [
    "NO_KLEIDIAI",
    "PROMPT_MATMULS",
    "Chat",
    "DrivenGraph",
    "Finish",
    "Generation",
    "HeldPrompt",
    "Interpreter",
    "OnnxRunner",
    "SessionInfo",
    "Tokenizer",
    "chat_template",
    "check_survey",
    "choose_settings",
    "core_cpus",
    "decode_batch",
    "decoder_matmuls",
    "default_settings",
    "describe_arithmetic",
    "find_arithmetic",
    "find_arm64",
    "find_tuning",
    "folding_entry",
    "generate",
    "install_arm64",
    "load_runner",
    "machine_class",
    "physical_cores",
    "runtime_class",
    "save_expanded",
    "this_interpreter",
]
