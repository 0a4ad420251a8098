"""Parquet files, and data sets of the hub from a server on loopback and from the cache it filled.

``datasets`` reads HF_ENDPOINT and HF_HOME when it is imported, so each case of the hub is a process of its own.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pytest
from pyarrow import parquet

from edgekit.corpus import read_corpus
from edgekit.corpus.tables import ParquetFile
from edgekit.errors import ConfigError
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types import silent

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: cc-by-4.0\n---\nA data set.\n"
READ = """
import json, sys
from edgekit.corpus import read_corpus
from edgekit.errors import EdgekitError
from edgekit.record import to_json
from edgekit.source import open_model
try:
    corpus = read_corpus([sys.argv[1]], open_model(sys.argv[2]), tokens=64, window=32, offline=sys.argv[3] == "offline")
    out = {"card": json.loads(to_json(corpus.card)), "ids": corpus.train.tolist()}
except EdgekitError as error:
    out = {"error": error.message, "hint": error.hint}
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


def write_table(path, column, values, **options):
    parquet.write_table(pa.table({"id": list(range(len(values))), column: values}), path, **options)
    return path


# --- Parquet --------------------------------------------------------------------------------------


def test_rows_are_read_in_any_order_and_few_at_a_time(tmp_path):
    texts = [f"Row {i} of the table." for i in range(2000)]
    table = ParquetFile(write_table(tmp_path / "a.parquet", "text", texts, row_group_size=700), silent, skip_bad=False)
    assert list(table.sizes) == [len(text) for text in texts]
    for row in (0, 1, 300, 699, 700, 1999, 5, 1400, 1399, 0):
        assert table.part(row, 0, 1) == texts[row]
    assert len(table._held[1]) <= 256


def test_text_and_conversations_of_a_parquet_file(model, tmp_path):
    texts = [f"Row {i} of the table is a sentence." for i in range(300)]
    talks = [[{"role": "user", "content": text}] for text in texts]
    for column, values in (("text", texts), ("messages", talks)):
        path = write_table(tmp_path / f"{column}.parquet", column, values)
        corpus = read_corpus([str(path)], open_model(str(model)), tokens=320, window=32)
        assert corpus.train.shape == (10, 32)
        assert corpus.card.sources[0].name == path.name


def test_rows_without_a_document_are_named_or_counted(model, tmp_path):
    path = write_table(tmp_path / "a.parquet", "text", ["A fox jumps over a dog. "] * 100 + [None])
    with pytest.raises(ConfigError, match=r"a\.parquet, row 101: no 'text'"):
        read_corpus([str(path)], open_model(str(model)), tokens=64, window=32)
    corpus = read_corpus([str(path)], open_model(str(model)), tokens=64, window=32, skip_bad=True)
    assert corpus.card.sources[0].bad_lines == 1


def test_a_table_without_the_columns(model, tmp_path):
    path = write_table(tmp_path / "a.parquet", "question", ["Why?"])
    with pytest.raises(ConfigError, match="no column 'text' or 'messages', but 'id', 'question'"):
        read_corpus([str(path)], open_model(str(model)), tokens=64, window=32)


@pytest.mark.parametrize(("named", "missing"), [("a.parquet", "pyarrow"), ("hub:org/tiny", "datasets")])
def test_without_the_extra_it_says_what_to_install(named, missing, model, tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.partition(".")[0] == missing:
            raise ImportError(name, name=name)
        return real(name, *rest)

    (tmp_path / "a.parquet").write_bytes(b"")
    checkpoint = open_model(str(model))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=missing) as caught:
        read_corpus([named], checkpoint, tokens=64, window=32)
    assert caught.value.hint == "pip install 'edgekit[learn]'"


# --- the hub --------------------------------------------------------------------------------------


def answer(folder, path):
    """Status, headers and body for a path, as the hub answers for the data set org/tiny."""
    parts = path.strip("/").split("/")
    api = parts[0] == "api"
    parts = parts[1:] if api else parts
    if parts[:3] != ["datasets", "org", "tiny"]:
        return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
    names = sorted(p.name for p in folder.iterdir())
    files = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": "0" * 40} for n in names]
    if api and "tree" in parts:
        return 200, {"Content-Type": "application/json"}, json.dumps(files).encode()
    if api and "paths-info" in parts:
        return 200, {"Content-Type": "application/json"}, json.dumps(files).encode()
    if api:
        found = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names], "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
    file = folder / parts[-1]
    if not file.is_file():
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
    data = file.read_bytes()
    etag = hashlib.sha256(data).hexdigest()
    return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}, data


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    write_table(folder / "train.parquet", "text", [f"Row {i} of the table is a sentence." for i in range(50)])
    (folder / "README.md").write_text(CARD)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, body = answer(folder, unquote(urlparse(self.path).path))
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(tmp_path, endpoint, named, model, mode="", **more):
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(Path(__file__).parents[2]),
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **more,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", READ, named, str(model), mode],
        capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_data_set_comes_from_the_hub_and_then_from_the_cache(hub, model, tmp_path):
    (tmp_path / "org/tiny").mkdir(parents=True)  # not taken for it
    found = ask(tmp_path, hub, "hub:org/tiny:train", model)
    (source,) = found["card"]["sources"]
    assert (source["name"], source["licence"], source["tokens"]) == ("hub:org/tiny:train", "cc-by-4.0", 64)
    nowhere = "http://127.0.0.1:9"
    assert ask(tmp_path, nowhere, "hub:org/tiny:train", model, "offline") == found


@pytest.mark.parametrize(
    ("named", "message", "hint"),
    [
        ("hub:org/absent", "org/absent", "check the name"),
        ("hub:org/tiny:validation", "validation", "split"),
    ],
)
def test_what_the_hub_lacks(named, message, hint, hub, model, tmp_path):
    out = ask(tmp_path, hub, named, model)
    assert message in out["error"]
    assert hint in out["hint"]


def test_offline_and_not_in_the_cache(hub, model, tmp_path):
    out = ask(tmp_path, hub, "hub:org/tiny", model, "offline")
    assert out["error"] == "hub:org/tiny: it is not in the cache of data sets, and `offline` forbids downloading it"
    assert "HF_HOME" in out["hint"]


def test_without_a_network(model, tmp_path):
    out = ask(tmp_path, "http://127.0.0.1:9", "hub:org/tiny", model, HF_HUB_OFFLINE="1")
    assert "the hub cannot be reached" in out["error"]
    assert "HF_ENDPOINT" in out["hint"]
