"""The SSH transport against a real sshd on loopback."""

import os
import subprocess
from pathlib import Path
from shlex import quote

import pytest

from edgekit.errors import EdgekitError, LabError, LinkLost
from edgekit.lab.job import start
from edgekit.lab.transport import connect
from edgekit.run import find_arm64
from tests.lab.loopback import Board, free_port, need_sshd, running, wait_for


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    need_sshd()
    board = Board(tmp_path_factory.mktemp("board"))
    yield board
    board.stop()


@pytest.fixture
def user(board, monkeypatch):
    monkeypatch.setenv("HOME", str(board.client))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def device(board, user):
    transport = connect("ssh:board")
    yield transport
    transport.close()


def test_commands_have_streams_and_a_status(device, board):
    done = device.run("cat; echo two >&2; exit 3", b"one")
    assert (done.code, done.out, done.err) == (3, b"one", b"two\n")
    assert device.run("kill -9 $$").code == 137
    assert device.home == f"{board.cache}/edgekit/device"
    assert device.address == "ssh:board"
    assert b"".join(device.stream("echo a; echo b; exit 1")) == b"a\nb\n"


def test_files_go_and_come_whole(device, tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    seen = []
    device.put(tmp_path / "file", f"{tmp_path}/a 'name", lambda *step: seen.append(step))
    device.get(f"{tmp_path}/a 'name", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert seen[-1] == ("a 'name", 3_000_000, 3_000_000, "B")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a 'name", "back", "file"]


def test_what_the_device_refuses_is_told_in_its_words(device, tmp_path):
    (tmp_path / "file").write_bytes(b"1" * 1_000_000)
    with pytest.raises(LabError, match=r"none/file.part: Directory nonexistent"):
        device.put(tmp_path / "file", f"{tmp_path}/none/file")
    with pytest.raises(LabError, match="none: No such file"):
        device.get(f"{tmp_path}/none", tmp_path / "back")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_told_and_nothing_is_left(device, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "x", small], check=False).returncode:
        pytest.skip("needs root to make a small disk")
    try:
        (tmp_path / "file").write_bytes(b"1" * 5_000_000)
        with pytest.raises(LabError, match="No space left on device") as error:
            device.put(tmp_path / "file", f"{small}/file")
        assert error.value.hint == "free some space there"
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_late_command_is_ended_there(device):
    with pytest.raises(LabError, match=r"`sleep 4171 & sleep 4172` did not end within 0.5 s"):
        device.run("sleep 4171 & sleep 4172", seconds=0.5)
    assert not running("^sleep 417[12]$")


def test_a_stream_that_is_closed_is_ended_there(device):
    stream = device.stream("echo up; sleep 4173 & sleep 4174")
    assert next(stream) == b"up\n"
    stream.close()
    assert not running("^sleep 417[34]$")


def test_closing_the_connection_ends_what_runs(board, user):
    transport = connect("ssh:board")
    stream = transport.stream("echo up; sleep 4175")
    next(stream)
    transport.close()
    assert not running("^sleep 4175$")
    with pytest.raises(LinkLost, match="the connection was closed"):
        transport.run("true")


def test_a_cut_link_is_found_again_and_the_job_goes_on(device, board):
    folder = f"{device.home}/runs/cut"
    command = "i=0; while [ $i -lt 40 ]; do echo line $i; sleep 0.05; i=$((i + 1)); done; sleep 4176 & exit 5"
    job = start(device, command, folder)
    got = []
    for line in job.lines():
        got.append(line)
        if len(got) in (3, 20):
            board.cut()
    assert got == [b"line %d" % i for i in range(40)]
    assert job.code == 5
    wait_for(lambda: not running("^sleep 4176$"), "a child was left")


def test_a_cut_link_is_told(board, user, tmp_path):
    transport = connect("ssh:board")
    stream = transport.stream("echo up; sleep 2")
    next(stream)
    board.cut()
    with pytest.raises(LinkLost, match="ssh:board was lost"):
        next(stream)
    with pytest.raises(LinkLost, match="ssh:board was lost"):
        transport.run("true")
    transport.reconnect()
    assert transport.run("echo here").out == b"here\n"
    transport.close()


def test_a_job_ends_with_its_children(device):
    with start(device, "setsid sleep 4177 & sleep 4178 & echo up; wait", f"{device.home}/runs/end") as job:
        next(job.lines())
        assert running("^sleep 417[78]$")
    assert not running("^sleep 417[78]$")


@pytest.fixture
def python():
    """An emulated Python for ARM from this user's own cache."""
    try:
        return find_arm64()
    except EdgekitError as error:
        pytest.skip(error.message)


@pytest.mark.arm64
def test_a_job_runs_on_an_arm64_board(python, device):
    environment = " ".join(f"{name}={quote(value)}" for name, value in (python.environment or {}).items())
    code = "import platform, sys, numpy; print(platform.machine(), numpy.ones(3).sum()); sys.stdin.read(); sys.exit(6)"
    job = start(
        device, f"{environment} {' '.join(map(quote, python.command))} -c {quote(code)}", f"{device.home}/runs/arm"
    )
    assert list(job.lines()) == [b"aarch64 3.0"]
    assert (job.code, job.errors) == (6, "")


def refused(address: str) -> LabError:
    with pytest.raises(LabError) as error:
        connect(address).close()
    return error.value


def test_an_unknown_host_key_is_refused(board, user):
    known = board.client / ".ssh" / "known_hosts"
    known.write_text("")
    try:
        error = refused("ssh:board")
        assert error.message == "ssh:board: the key of 127.0.0.1 is not known"
        assert error.hint == "log in once with `ssh board` and compare the fingerprint that it shows"
    finally:
        board.know()


def test_a_changed_host_key_is_refused(board, user):
    known = board.client / ".ssh" / "known_hosts"
    known.write_text(f"[127.0.0.1]:{board.port} {(board.client / '.ssh/id_ed25519.pub').read_text()}")
    try:
        error = refused("ssh:board")
        assert "the key of 127.0.0.1 is another than the known one" in error.message
        assert f"`ssh-keygen -R '[127.0.0.1]:{board.port}'`" in error.hint
    finally:
        board.know()


def test_host_keys_cannot_be_switched_off(board, user, tmp_path, monkeypatch):
    (tmp_path / ".ssh").mkdir()
    text = (board.client / ".ssh" / "config").read_text()
    (tmp_path / ".ssh" / "config").write_text(f"{text}  UserKnownHostsFile none\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "has no file of known hosts" in refused("ssh:board").message


def test_no_permission_is_told(board, user):
    key = board.client / ".ssh" / "id_ed25519"
    key.rename(f"{key}.away")
    try:
        error = refused("ssh:board")
        assert error.message.startswith("ssh:board: permission denied for ")
        assert "ssh-copy-id" in error.hint
    finally:
        Path(f"{key}.away").rename(key)


def test_nobody_there_is_told(board, user):
    assert isinstance(refused(f"ssh:127.0.0.1:{free_port()}"), LinkLost)
    assert "no host of this name is known" in refused("ssh:no-such-host.invalid").message
    for name in ("", "-oProxyCommand=x", "a b", "host:port", "a@b@c"):
        assert "is no host" in refused(f"ssh:{name}").message


def test_a_jump_host_of_the_configuration_is_used(board, user):
    config = board.client / ".ssh" / "config"
    text = config.read_text()
    config.write_text(f"{text}Host inner\n  Hostname 127.0.0.1\n  Port {board.port}\n  ProxyJump board\n")
    try:
        before = len(board.sessions())
        transport = connect("ssh:inner")
        assert transport.run("echo here").out == b"here\n"
        assert len(board.sessions()) == before + 2
        transport.close()
    finally:
        config.write_text(text)
