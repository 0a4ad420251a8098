"""Hub ids, against a server on loopback that speaks the hub's protocol, and against the cache it filled.

huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported, so each case is a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from edgekit.testing import tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN = """
import json, sys
from edgekit.errors import EdgekitError
from edgekit.source import fingerprint, open_model
heard = []
try:
    checkpoint = open_model(
        sys.argv[1], revision=sys.argv[2] or None, offline=sys.argv[3] == "offline",
        progress=lambda task, done, total, unit="B": heard.append([task, done, total, unit]),
    )
    rows = checkpoint.weights.read("model.norm.weight").tolist()
    provenance = fingerprint(checkpoint)
    out = {"rows": rows, "id": provenance.id, "kind": provenance.kind, "revision": provenance.revision,
           "sha256": provenance.sha256, "files": [f.name for f in checkpoint.files], "heard": heard}
except EdgekitError as error:
    out = {"error": error.message, "hint": error.hint}
print(json.dumps(out))
"""

OUTLINE = """
import json, sys
from edgekit.errors import EdgekitError
from edgekit.source import open_config_only
try:
    checkpoint = open_config_only(sys.argv[1], revision=sys.argv[2] or None, offline=sys.argv[3] == "offline")
    provenance = checkpoint.provenance
    out = {"layers": checkpoint.spec.layers, "id": provenance.id, "kind": provenance.kind,
           "revision": provenance.revision, "files": [f.name for f in checkpoint.files]}
except EdgekitError as error:
    out = {"error": error.message, "hint": error.hint}
print(json.dumps(out))
"""


@dataclass
class Hub:
    """A hub with one public model, one that is gated and one that is private."""

    folder: Path
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        self.asked.append(path)
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name == "org/gated":
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b"{}"
        if name == "org/private":
            return 401, {"X-Error-Message": "Invalid username or password."}, b"{}"
        if name == "org/broken":
            return 500, {}, b"{}"
        if name != "org/tiny":
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        if parts[0] == "api":
            return self._describe(parts[4], parts[5])
        file = self.folder / "/".join(parts[4:])
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}, data

    def _describe(self, what: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        if revision not in ("main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}, b"{}"
        names = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())
        if what == "tree":
            found: Any = [
                {"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "0" * 40} for n in names
            ]
        else:
            found = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Hub, str]]:
    folder = tiny_checkpoint(tmp_path / "served")
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    state = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = state.answer(urlparse(self.path).path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(
    tmp_path: Path, endpoint: str, model: str, revision: str = "", offline: str = "", program: str = OPEN, **env: str
) -> dict[str, Any]:
    """Open a model in a fresh process; its outcome. Nothing may be drawn or printed besides."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    clean |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **env}
    command = [sys.executable, "-c", program, model, revision, offline]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "%|" not in done.stderr, "a progress bar was drawn"
    return dict(json.loads(done.stdout))


def test_fetches_what_is_needed_once_and_then_works_offline(hub: tuple[Hub, str], tmp_path: Path) -> None:
    state, endpoint = hub
    first = ask(tmp_path, endpoint, "org/tiny")
    assert (first["id"], first["kind"], first["revision"]) == ("org/tiny", "hub", COMMIT)
    assert first["sha256"] == hashlib.sha256((state.folder / "model.safetensors").read_bytes()).hexdigest()
    assert "tokenizer.json" in first["files"]
    assert any(task.startswith("fetch org/tiny") and done == total > 0 for task, done, total, _ in first["heard"])
    assert not any("pytorch_model.bin" in path or "original" in path for path in state.asked)

    again = ask(tmp_path, endpoint, "org/tiny", "v1")
    assert again["rows"] == first["rows"]
    state.asked.clear()
    for offline, env in (("offline", {}), ("", {"HF_HUB_OFFLINE": "1"})):
        cached = ask(tmp_path, endpoint, "org/tiny", "", offline, **env)
        assert (cached["rows"], cached["revision"]) == (first["rows"], COMMIT)
    assert state.asked == []
    unreachable = ask(tmp_path, "http://127.0.0.1:9", "org/tiny")
    assert unreachable["rows"] == first["rows"]


@pytest.mark.parametrize(
    ("model", "revision", "offline", "culprit", "hint"),
    [
        ("org/absent", "", "", "'org/absent' was not found on the hub", "spelling"),
        ("org/tiny", "v9", "", "'org/tiny' at revision 'v9' does not exist", "branch, tag or commit"),
        ("org/gated", "", "", "'org/gated' is gated", "hf auth login"),
        ("org/private", "", "", "'org/private' was not found on the hub, or is private (HTTP 401)", "HF_TOKEN"),
        ("org/broken", "", "", "'org/broken' is not in the hub's cache, and the hub answered HTTP 500", "HF_ENDPOINT"),
        ("org/tiny", "", "offline", "'org/tiny' is not in the hub's cache, and `offline`", "without `offline`"),
    ],
)
def test_errors_say_what_to_do(
    hub: tuple[Hub, str], tmp_path: Path, model: str, revision: str, offline: str, culprit: str, hint: str
) -> None:
    out = ask(tmp_path, hub[1], model, revision, offline)
    assert culprit in out["error"]
    assert hint in out["hint"]


@pytest.mark.parametrize(
    ("there", "culprits", "hint"),
    [
        (["pytorch_model.bin"], ["'org/tiny' has 'pytorch_model.bin' but no safetensors files", "pickle"], "sandbox"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], ["pickle"], "sandbox"),
        (["tiny-q4.gguf", "pytorch_model.bin"], ["GGUF files", "'tiny-q4.gguf'"], "hf download org/tiny tiny-q4.gguf"),
        (["original/model.safetensors"], ["'original/model.safetensors'"], "its root"),
        (["consolidated.safetensors"], ["'consolidated.safetensors'"], "its root"),
        (["training_args.bin"], ["no safetensors files"], "again"),
        (["adapter_config.json", "adapter_model.bin"], ["adapter"], "merge"),
    ],
)
def test_a_repository_without_weights_that_are_read(
    hub: tuple[Hub, str], tmp_path: Path, there: list[str], culprits: list[str], hint: str
) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        (hub[0].folder / name).unlink()
    for name in there:
        (hub[0].folder / name).write_bytes(b"{}")
    out = ask(tmp_path, hub[1], "org/tiny")
    for culprit in culprits:
        assert culprit in out["error"]
    assert hint in out["hint"]


def test_no_network_and_nothing_cached(tmp_path: Path) -> None:
    out = ask(tmp_path, "http://127.0.0.1:9", "org/tiny")
    assert "'org/tiny' is not in the hub's cache, and the hub cannot be reached" in out["error"]
    assert "HF_ENDPOINT" in out["hint"]


def test_an_outline_fetches_the_configuration_and_nothing_else(hub: tuple[Hub, str], tmp_path: Path) -> None:
    state, endpoint = hub
    found = ask(tmp_path, endpoint, "org/tiny", program=OUTLINE)
    assert found == {"layers": 2, "id": "org/tiny", "kind": "hub", "revision": COMMIT, "files": []}
    assert {path.rpartition("/")[2] for path in state.asked} == {"config.json"}
    cached = [p.name for p in (tmp_path / "hf").rglob("snapshots/*/*")]
    assert cached == ["config.json"]
    state.asked.clear()
    assert ask(tmp_path, endpoint, "org/tiny", "", "offline", program=OUTLINE) == found
    assert state.asked == []


@pytest.mark.parametrize(
    ("model", "culprit", "hint"),
    [
        ("org/absent", "'org/absent' was not found on the hub", "spelling"),
        ("org/gated", "'org/gated' is gated", "hf auth login"),
        ("org/tiny", "'org/tiny' has no config.json", "transformers format"),
    ],
)
def test_an_outline_says_what_to_do(hub: tuple[Hub, str], tmp_path: Path, model: str, culprit: str, hint: str) -> None:
    (hub[0].folder / "config.json").unlink()
    out = ask(tmp_path, hub[1], model, program=OUTLINE)
    assert culprit in out["error"]
    assert hint in out["hint"]
