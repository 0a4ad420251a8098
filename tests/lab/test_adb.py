"""The adb transport through Google's own adb server, against a daemon that speaks adb's protocol."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import LabError, LinkLost
from edgekit.lab.job import start
from edgekit.lab.transport import connect
from tests.lab.loopback import free_port, listening, running, wait_for

DAEMON = Path(__file__).with_name("adbd.py")


def phone_port() -> int:
    """A free port that the adb server does not look at by itself: it scans 5555 to 5585 for emulators."""
    while 5500 < (port := free_port()) < 5600:
        pass
    return port


class Phone:
    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, phone_port()
        folder.mkdir()
        self.start()

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.daemon = subprocess.Popen([sys.executable, DAEMON, str(self.port), self.folder])
        wait_for(lambda: listening(self.port), "the daemon did not start")

    def stop(self) -> None:
        self.daemon.kill()
        self.daemon.wait()


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    """An adb server of our own, on a port of its own, in the foreground, with keys of its own."""
    utils = pytest.importorskip("adbutils")
    port = str(free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", port)
        patch.setenv("ADB_MDNS", "0")
        command = [utils.adb_path(), "-P", port, "nodaemon", "server"]
        environment = {**os.environ, "HOME": str(tmp_path_factory.mktemp("keys"))}
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, env=environment, stdout=null, stderr=null)
        wait_for(lambda: listening(int(port)), "the adb server did not start")
        yield
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def phone(tmp_path_factory, server):
    phone = Phone(tmp_path_factory.mktemp("phone") / "tmp")
    yield phone
    phone.stop()


@pytest.fixture
def device(phone):
    transport = connect(f"adb:{phone.serial}")
    transport.run(f"mkdir -p {transport.home}")
    yield transport
    transport.close()


def test_commands_have_streams_and_a_status(device, phone):
    done = device.run("cat; echo two >&2; exit 3", b"one" * 100_000)
    assert (done.code, done.out, done.err) == (3, b"one" * 100_000, b"two\n")
    assert device.run("kill -9 $$").code == 137
    assert device.run("true", b"unread" * 100_000).code == 0
    assert device.address == f"adb:{phone.serial}"
    assert b"".join(device.stream("echo a; echo b; exit 1")) == b"a\nb\n"


def test_files_go_and_come_whole(device, phone, tmp_path):
    data = os.urandom(1_500_000)
    (tmp_path / "file").write_bytes(data)
    seen = []
    device.put(tmp_path / "file", f"{device.home}/a 'name", lambda *step: seen.append(step))
    device.get(f"{device.home}/a 'name", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert seen[-1] == ("a 'name", 1_500_000, 1_500_000, "B")
    assert [p.name for p in (phone.folder / "edgekit").iterdir() if p.is_file()] == ["a 'name"]


def test_what_the_phone_refuses_is_told_in_its_words(device, tmp_path):
    (tmp_path / "file").write_bytes(b"1" * 100_000)
    with pytest.raises(LabError, match=r"none/file.part: Directory nonexistent"):
        device.put(tmp_path / "file", f"{device.home}/none/file")
    with pytest.raises(LabError, match="none: No such file"):
        device.get(f"{device.home}/none", tmp_path / "back")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_late_command_is_ended_there(device):
    with pytest.raises(LabError, match=r"did not end within 0.5 s"):
        device.run("sleep 4271 & sleep 4272", seconds=0.5)
    assert not running("^sleep 427[12]$")


def test_a_stream_that_is_closed_is_ended_there(device):
    stream = device.stream("echo up; sleep 4273 & sleep 4274")
    assert next(stream) == b"up\n"
    stream.close()
    assert not running("^sleep 427[34]$")


def test_a_phone_that_drops_out_is_found_again_and_the_job_goes_on(device, phone):
    command = "i=0; while [ $i -lt 30 ]; do echo line $i; sleep 0.1; i=$((i + 1)); done; sleep 4276 & exit 5"
    job = start(device, command, f"{device.home}/runs/cut")
    got = []
    for line in job.lines():
        got.append(line)
        if len(got) == 3:
            phone.stop()
            phone.start()
    assert got == [b"line %d" % i for i in range(30)]
    assert job.code == 5
    wait_for(lambda: not running("^sleep 4276$"), "a child was left")


def test_a_job_ends_with_its_children(device):
    with start(device, "setsid sleep 4277 & sleep 4278 & echo up; wait", f"{device.home}/runs/end") as job:
        next(job.lines())
        assert running("^sleep 427[78]$")
    assert not running("^sleep 427[78]$")


def refused(address: str) -> LabError:
    with pytest.raises(LabError) as error:
        connect(address)
    return error.value


def test_an_unknown_serial_has_a_suggestion(device, phone):
    error = refused(f"adb:{phone.serial.replace(':', '')}")
    assert "is not there" in error.message
    assert error.hint.startswith(f"did you mean '{phone.serial}'? ")


def test_nobody_there_is_told():
    error = refused(f"adb:127.0.0.1:{phone_port()}")
    assert isinstance(error, LinkLost)
    assert "failed to connect" in error.message or "unable to connect" in error.message


def test_a_phone_whose_owner_did_not_allow_it_is_told(tmp_path):
    phone = Phone(tmp_path / "phone")
    (phone.folder / "state").write_text("unauthorized")
    try:
        error = refused(f"adb:{phone.serial}")
        assert error.message == f"adb:{phone.serial}: unauthorized"
        assert "allow USB debugging" in error.hint
    finally:
        phone.stop()


def test_a_phone_that_is_offline_is_told(tmp_path):
    phone = Phone(tmp_path / "phone")
    connect(f"adb:{phone.serial}")
    phone.stop()
    error = refused(f"adb:{phone.serial}")
    assert isinstance(error, LinkLost)
