"""A place of labgrid's own coordinator and exporter on loopback, whose board is a real sshd."""

import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edgekit.errors import LabError
from edgekit.lab.transport import connect
from tests.lab.loopback import Board, free_port, listening, need_sshd, wait_for

EXPORTED = """boards:
  NetworkService:
    address: 127.0.0.1
    port: {port}
    username: {user}
  NetworkPowerPort:
    model: simplerest
    host: 'http://127.0.0.1:{power}/{{index}}/{{value}}'
    index: 1
"""


def program(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip("needs labgrid (pip install 'edgekit[lab]')")
    return found


def labgrid(*arguments, user="") -> subprocess.CompletedProcess:
    environment = {**os.environ, **({"LG_USERNAME": user} if user else {})}
    command = [program("labgrid-client"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


class Switch:
    """A power switch over HTTP: off stops the board, on starts it."""

    def __init__(self, board: Board) -> None:
        self.asked = asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                if self.path == "/1/0":
                    board.stop()
                elif self.path == "/1/1":
                    board.start()
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The board and its power switch; labgrid knows it as place `shelf-1`, and a place `empty` that has nothing."""
    need_sshd()
    pytest.importorskip("yaml")
    folder = tmp_path_factory.mktemp("labgrid")
    (folder / "board").mkdir()
    board, port = Board(folder / "board"), free_port()
    switch = Switch(board)
    user = re.search("User (.+)", (board.client / ".ssh" / "config").read_text())[1]
    text = EXPORTED.format(port=board.port, user=user, power=switch.server.server_port)
    (folder / "exporter.yaml").write_text(text)
    null = subprocess.DEVNULL
    address = f"127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LG_COORDINATOR", address)
        patch.setenv("HOME", str(board.client))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        coordinator = subprocess.Popen(
            [program("labgrid-coordinator"), "-l", address], cwd=folder, stdout=null, stderr=null
        )
        wait_for(lambda: listening(port), "no coordinator")
        command = [program("labgrid-exporter"), "-c", address, "-n", "host", "--hostname", "127.0.0.1", "exporter.yaml"]
        exporter = subprocess.Popen(command, cwd=folder, stdout=null, stderr=null)
        for place in ("shelf-1", "empty"):
            assert labgrid("-p", place, "create").returncode == 0
        labgrid("-p", "shelf-1", "add-match", "host/boards/*")
        labgrid("-p", "shelf-1", "set-tags", "kind=board")
        wait_for(lambda: "NetworkService" in labgrid("resources").stdout, "nothing exported")
        yield board, switch
    for process in (exporter, coordinator):
        process.kill()
        process.wait()
    switch.server.shutdown()
    switch.server.server_close()
    board.stop()


def holder() -> str:
    return labgrid("-p", "shelf-1", "show").stdout.partition("acquired: ")[2].partition("\n")[0]


def refused(address: str) -> LabError:
    with pytest.raises(LabError) as error:
        connect(address).close()
    return error.value


def test_a_place_is_held_used_and_given_back(lab):
    device = connect("place:shelf-1")
    assert holder() != "None"
    assert device.run("echo here").out == b"here\n"
    assert device.address == "place:shelf-1"
    device.close()
    assert holder() == "None"


def test_a_place_is_found_by_its_tags_and_the_reservation_ends(lab):
    device = connect("place:kind=board")
    assert b"".join(device.stream("echo here")) == b"here\n"
    assert "shelf-1" in labgrid("reservations").stdout
    device.close()
    assert holder() == "None"
    assert labgrid("reservations").stdout == ""


def test_a_place_that_another_holds_is_told(lab):
    labgrid("-p", "shelf-1", "acquire", user="other")
    try:
        assert re.fullmatch(r"place:shelf-1 is used by .+/other", refused("place:shelf-1").message)
    finally:
        labgrid("-p", "shelf-1", "release", user="other")


def test_a_place_that_the_user_held_before_stays_held(lab):
    labgrid("-p", "shelf-1", "acquire")
    try:
        connect("place:shelf-1").close()
        assert holder() != "None"
    finally:
        labgrid("-p", "shelf-1", "release")


def test_what_is_wrong_with_a_place_is_told_and_nothing_stays_held(lab, monkeypatch):
    error = refused("place:shelf1")
    assert error.message == "place:shelf1 is unknown to labgrid"
    assert error.hint == "did you mean 'shelf-1'? labgrid knows empty, shelf-1"
    assert "has not exactly one NetworkService" in refused("place:empty").message
    assert "acquired: None" in labgrid("-p", "empty", "show").stdout
    board, _ = lab
    (board.client / ".ssh" / "known_hosts").write_text("")
    assert "is not known" in refused("place:shelf-1").message
    board.know()
    assert holder() == "None"
    monkeypatch.setenv("LG_COORDINATOR", f"127.0.0.1:{free_port()}")
    assert refused("place:shelf-1").message == "labgrid's coordinator does not answer"


def test_power_is_cycled(lab):
    device = connect("place:shelf-1")
    lab[1].asked.clear()
    device.cycle_power()
    assert lab[1].asked == ["/1/0", "/1/1"]
    device.reconnect()
    assert device.run("echo up").out == b"up\n"
    device.close()
