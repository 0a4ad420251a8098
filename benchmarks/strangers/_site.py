"""A tiny model behind a real `edgekit serve`, and a client that speaks to it byte by byte.

Not through a comfortable client: strangers are none, and its milliseconds are not the server's.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from edgekit import build_bundle
from edgekit.testing import tiny_checkpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

POLICY = 'name = "strangers"\nshow = "at-once"\n[answers]\nrepetition = false\n[device]\ncan = ["json-schema"]\n'
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Place:
    """A server that runs: its port, its process and the file with what it said on stderr."""

    port: int
    pid: int
    log: Path

    def tracebacks(self) -> int:
        """In the log so far."""
        return self.log.read_text(errors="replace").count("Traceback")


@contextmanager
def serve_tiny(*more: str, context: int = 512, token: str = "", answer: str = "") -> Iterator[Place]:
    """`edgekit serve` with a model of two layers that is made here, on a free port.

    Args:
        more: options.
        context: tokens that the model takes.
        token: that clients must send, "" for none.
        answer: what the model says to everything, "" for what its random weights say.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-strangers-") as name:
        folder = Path(name)
        model = tiny_checkpoint(folder / "tiny", max_position_embeddings=context, tie_word_embeddings=not answer)
        if answer:
            teach(model, answer)
        bundle = build_bundle(str(model), precision="int8", out=folder / "tiny-int8")
        policy, log = folder / "policy.toml", folder / "log"
        policy.write_text(POLICY)
        command = [sys.executable, "-m", "edgekit", "serve", str(bundle.path), "--policy", str(policy), "--port", "0"]
        command += ["--json", "--history", f"sqlite:///{folder}/history.sqlite", *more]
        environment = {**os.environ, **({"EDGEKIT_TOKEN": token} if token else {})}
        with log.open("wb") as said:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment)
        try:
            lines: list[str] = []
            while not lines or lines[-1] != "}\n":
                line = process.stdout.readline() if process.stdout else ""
                if not line:
                    raise SystemExit(f"the server ended with {process.wait()}: {log.read_text()[-2000:]}")
                lines.append(line)
            port = int(json.loads("".join(lines))["url"].rpartition(":")[2])
            yield Place(port, process.pid, log)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def teach(model: Path, answer: str) -> None:
    """Make a checkpoint with a head of its own say one thing, in one token, and end."""
    codec = Tokenizer.from_file(str(model / "tokenizer.json"))
    codec.add_tokens([answer])
    codec.save(str(model / "tokenizer.json"))
    said, end = codec.token_to_id(answer), codec.token_to_id("<|im_end|>")
    weights = load_file(model / "model.safetensors")
    for name, values in weights.items():
        if "layers" in name and "norm" not in name:
            values[:] = 0
    # What is left: logits are products of the last token's embedding and the head's rows.
    embedding, rows = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embedding[:, 0], embedding[said, 0], rows[:] = 1, -1, 0
    rows[said, 0], rows[end, 0] = 1, -1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def head(path: str, length: int, *, method: str = "POST", token: str = "", more: str = "") -> bytes:
    """A request up to its body."""
    lines = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}"
    return (lines + (f"Authorization: Bearer {token}\r\n" if token else "") + "\r\n").encode()


def question(text: str, tokens: int, **more: Any) -> bytes:
    """A chat's body."""
    asked = {"model": "edgekit", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, **more}
    return json.dumps(asked).encode()


class Line:
    """One connection, kept open from one request to the next."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def drop(self) -> None:
        """Go away without a word."""
        if self._streams:
            self._streams[1].transport.abort()
            self._streams = None

    @asynccontextmanager
    async def ask(self, sent: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Send a whole request; the status and the body's parts as they come. Leaving early drops the connection."""
        if not self._streams:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        whole = False

        async def parts() -> AsyncIterator[bytes]:
            nonlocal whole
            if "transfer-encoding: chunked" in headers:
                while size := int(await reader.readline(), 16):
                    yield (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            else:
                length = next(int(h[16:]) for h in headers if h.startswith("content-length: "))
                yield await reader.readexactly(length)
            whole = True

        try:
            writer.write(sent)
            await writer.drain()
            headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            yield int(headers[0].split()[1]), parts()
        finally:
            if not whole or "connection: close" in headers:
                self.drop()

    async def whole(self, sent: bytes) -> tuple[int, bytes]:
        """Send a request and read the answer to its end."""
        async with self.ask(sent) as (status, parts):
            return status, b"".join([part async for part in parts])
