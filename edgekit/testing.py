"""Public test doubles and tiny models, for edgekit's tests and yours. Needs no torch and no network."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekit.run.npu import Compilation
    from edgekit.types.device import Plugin
    from edgekit.types.power import Trace

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_config(architecture: str = "llama", **overrides: Any) -> dict[str, Any]:
    """config.json of a two-layer model in transformers format."""
    config: dict[str, Any] = {
        "architectures": [f"{architecture.capitalize()}ForCausalLM"],
        "model_type": architecture,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 384,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    config.update(overrides)
    return config


def tiny_weights(config: dict[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights of a LLaMA-shaped model, scaled so that its logits are neither flat nor saturated."""
    random = np.random.default_rng(seed)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q_rows = config["num_attention_heads"] * config["head_dim"]
    kv_rows = config["num_key_value_heads"] * config["head_dim"]

    def normal(*shape: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return values

    weights = {"model.embed_tokens.weight": (random.standard_normal((vocab, hidden)) * 0.3).astype(np.float32)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        weights[layer + "input_layernorm.weight"] = (1 + 0.1 * random.standard_normal(hidden)).astype(np.float32)
        weights[layer + "self_attn.q_proj.weight"] = normal(q_rows, hidden)
        weights[layer + "self_attn.k_proj.weight"] = normal(kv_rows, hidden)
        weights[layer + "self_attn.v_proj.weight"] = normal(kv_rows, hidden)
        weights[layer + "self_attn.o_proj.weight"] = normal(hidden, q_rows)
        weights[layer + "post_attention_layernorm.weight"] = (1 + 0.1 * random.standard_normal(hidden)).astype(
            np.float32
        )
        weights[layer + "mlp.gate_proj.weight"] = normal(inner, hidden)
        weights[layer + "mlp.up_proj.weight"] = normal(inner, hidden)
        weights[layer + "mlp.down_proj.weight"] = normal(hidden, inner)
    weights["model.norm.weight"] = (1 + 0.1 * random.standard_normal(hidden)).astype(np.float32)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = normal(vocab, hidden)
    return weights


def tiny_tokenizer(vocab_size: int = 384) -> str:
    """tokenizer.json of a byte-level BPE tokenizer trained on a few sentences; ids 0..3 are special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=["<unk>", "<|im_start|>", "<|im_end|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    text = "The quick brown fox jumps over the lazy dog. Paris is the capital of France, and Rome of Italy. "
    tokenizer.train_from_iterator([text * 4], trainer)
    return str(tokenizer.to_str())


def tiny_checkpoint(path: Path, architecture: str = "llama", *, seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny Hugging Face folder: config, weights, tokenizer with chat template, generation config.

    Args:
        path: the folder to create.
        architecture: ``model_type``. Weights are LLaMA-shaped (no biases, no fused tensors).
        seed: random seed of the weights.
        overrides: entries of config.json to replace.
    """
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    config = tiny_config(architecture, **overrides)
    save_file(tiny_weights(config, seed), path / "model.safetensors", metadata={"format": "pt"})
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        (path / name).write_text(json.dumps(content, indent=2))
    (path / "tokenizer.json").write_text(tiny_tokenizer(min(config["vocab_size"], 384)))
    return path


class FakeRunner:
    """A Runner whose logits are a fixed random function of the last token. Instant."""

    def __init__(self, vocab_size: int = 384, context_length: int = 512, seed: int = 0) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.length = 0
        self._table: NDArray[np.float32] = (
            np.random.default_rng(seed).standard_normal((vocab_size, vocab_size)).astype(np.float32)
        )

    @property
    def room(self) -> int:
        """Most tokens of one call."""
        return self.context_length - self.length

    def reset(self) -> None:
        """Clear the cache."""
        self.length = 0

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The last position's logits [V]."""
        self.length += len(tokens)
        row: NDArray[np.float32] = self._table[tokens[-1]]
        return row

    def step(self, token: int) -> NDArray[np.float32]:
        """Logits [V] after one token."""
        self.length += 1
        row: NDArray[np.float32] = self._table[token]
        return row

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of a fresh sequence."""
        self.length = len(tokens)
        rows: NDArray[np.float32] = self._table[list(tokens)]
        return rows

    def close(self) -> None:
        """Nothing to release."""


class FakeCompiler:
    """A Compiler that writes EPContext graphs whose binaries nothing can run. Instant.

    ``note`` is what QNN writes about the versions that a binary is compatible with. All nodes land on the NPU but those
    of operators in ``refused``, which maps an operator to the reason given. ``error`` is the runtime's for each graph.
    ``asked`` holds the plugin and the options of each call.
    """

    def __init__(
        self,
        note: str = "v2:6:2.51.0:5.51.0:0:57:0:0",
        refused: Mapping[str, str] = MappingProxyType({}),
        error: str = "",
    ) -> None:
        self._note, self._refused, self._error = note, refused, error
        self.asked: list[tuple[Plugin, tuple[tuple[str, str], ...]]] = []

    def require(self, plugin: Plugin) -> None:
        """Nothing is needed."""

    def versions(self, plugin: Plugin) -> tuple[tuple[str, str], ...]:
        """A version of the plugin's package."""
        return ((plugin.module.replace("_", "-"), "2.7.0"),)

    def compile(
        self, plugin: Plugin, provider: str, options: Any, graphs: Sequence[tuple[Path, Path]], **_: Any
    ) -> tuple[Compilation, ...]:
        """Each graph as one node, with the inputs and outputs of the static one."""
        self.asked.append((plugin, tuple(options)))
        return tuple(self._compile(provider, source, output) for source, output in graphs)

    def _compile(self, provider: str, source: Path, output: Path) -> Compilation:
        import onnx_ir as ir

        from edgekit.run.npu import Compilation
        from edgekit.run.runtime import CPU
        from edgekit.types.npu import Placed

        graph = ir.load(source).graph
        binary = output.with_name(f"{output.stem}_qnn.bin")
        binary.write_bytes(b"a binary")
        inputs, outputs = (
            [ir.Value(name=v.name, type=v.type, shape=v.shape) for v in values]
            for values in (graph.inputs, graph.outputs)
        )
        node = ir.node("EPContext", inputs, domain="com.microsoft", name="context", outputs=outputs)
        numbers = [ir.AttrInt64("embed_mode", 0), ir.AttrInt64("main_context", 1)]
        words = [ir.AttrString("ep_cache_context", binary.name), ir.AttrString("source", "QNN")]
        for attribute in (*numbers, *words):
            node.attributes.add(attribute)
        opsets = {"": 21, "com.microsoft": 1}
        model = ir.Model(ir.Graph(inputs, outputs, nodes=[node], opset_imports=opsets, name="context"), ir_version=10)
        model.metadata_props[f"ep_compatibility_info.{provider}"] = self._note
        ir.save(model, output)
        placed = tuple(
            Placed(str(n.name), n.op_type, CPU, self._refused[n.op_type])
            if n.op_type in self._refused
            else Placed(str(n.name), n.op_type, provider)
            for n in graph
        )
        return Compilation(source, output, placed, None, 1.0, 1, self._error)


class FakeProbe:
    """A PowerProbe that reports ``watts`` times the elapsed seconds."""

    kind = "measured"
    address = "fake"
    covers = "nothing"

    def __init__(self, watts: float = 5.0) -> None:
        self.name = f"fake meter at {watts} W"
        self._watts = watts
        self._started = self._stopped = 0.0

    def start(self) -> None:
        """Start counting."""
        from edgekit.host.clock import boottime

        self._started = boottime()

    def stop(self) -> float:
        """Joules since start()."""
        from edgekit.host.clock import boottime

        self._stopped = boottime()
        return self._watts * (self._stopped - self._started)

    def trace(self) -> Trace:
        """A thousand readings between start() and stop()."""
        from edgekit.types.power import Trace

        step = (self._stopped - self._started) / 1000
        times = tuple(self._started + i * step for i in range(1001))
        return Trace(self.name, "W", times, (self._watts,) * 1001, covers=self.covers)


@dataclass
class FakeEndpoint:
    """The requests that ``serve_fake_openai`` received: JSON bodies and headers (by lower-case name), in order."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serve_fake_openai(answer: str | Callable[[dict[str, Any]], str], *, model: str = "fake") -> Iterator[FakeEndpoint]:
    """Serve as much of the OpenAI protocol on loopback as a tier needs. Words are counted as tokens.

    Args:
        answer: the text of every answer, or a function of the request's body.
        model: the name in /v1/models.
    """
    endpoint = FakeEndpoint("")

    class Handler(_FakeProtocol):
        heard = endpoint
        said = staticmethod(answer if callable(answer) else lambda _body: answer)
        name = model

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


class _FakeProtocol(BaseHTTPRequestHandler):
    """Chat completions and completions, streamed or not, and the list of models."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    heard: FakeEndpoint
    said: Callable[[dict[str, Any]], str]
    name: str

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send the list of models."""
        self._send({"object": "list", "data": [{"id": self.name, "object": "model"}]})

    def do_POST(self) -> None:
        """Record the request and send the answer."""
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        self.heard.bodies.append(body)
        self.heard.headers.append({k.lower(): v for k, v in self.headers.items()})
        text = self.said(body)
        asked = body.get("prompt") or " ".join(str(m.get("content")) for m in body.get("messages", []))
        prompt, new = len(asked.split()), len(text.split())
        usage = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
        if body.get("stream"):
            self._stream(text, "messages" in body, usage)
            return
        choice = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        self._send({"model": self.name, "choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": usage})

    def _send(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, text: str, chat: bool, usage: dict[str, int]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for said in re.findall(r"\S*\s*", text):
            self._event({"choices": [{"index": 0, **({"delta": {"content": said}} if chat else {"text": said})}]})
        end: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        self._event({"choices": [{"index": 0, "finish_reason": "stop", **end}]})
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, value: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps({"model": self.name, **value}).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
