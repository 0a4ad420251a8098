"""Devices on loopback that several tests use: Debian's own sshd with its own keys, port and configuration."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(true, what: str) -> None:
    """Wait until ``true()``; ``what`` is said if that takes too long."""
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    pytest.fail(what)


def running(text: str) -> bool:
    """Whether a process has a command line that matches an expression."""
    return subprocess.run(["pgrep", "-f", text], capture_output=True, check=False).returncode == 0


class Board:
    """An sshd. ``client`` is the home of who connects, with a ~/.ssh for it; ``cache`` is the board's user's."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self.folder, self.port, self.client, self.cache = folder, free_port(), folder / "client", folder / "board"
        (self.client / ".ssh").mkdir(parents=True)
        self.cache.mkdir()
        self.make_key("host")
        self.make_key("client/.ssh/id_ed25519")
        shutil.copy(self.client / ".ssh" / "id_ed25519.pub", folder / "authorized")
        self.know()
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        (self.client / ".ssh" / "config").write_text(
            f"Host board\n  Hostname 127.0.0.1\n  Port {self.port}\n  User {user}\n"
        )
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\n"
            f"SetEnv HOME={self.cache} XDG_CACHE_HOME={self.cache}\n{extra}"
        )
        self.server: subprocess.Popen | None = None
        self.start()

    def make_key(self, name: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)

    def know(self) -> None:
        key = (self.folder / "host.pub").read_text()
        (self.client / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}")

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        log = self.folder / "log"
        command = [shutil.which("sshd", path="/usr/sbin:/usr/bin"), "-D", "-f", self.folder / "sshd_config", "-E", log]
        self.server = subprocess.Popen(command)
        wait_for(lambda: listening(self.port), "sshd did not start")

    def sessions(self) -> list[int]:
        """The processes of sshd that serve a connection."""
        found = subprocess.run(["pgrep", "-P", str(self.server.pid)], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]

    def cut(self) -> None:
        """Cut every connection, as a cable would: what runs on the board goes on."""
        for process in self.sessions():
            children = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
            for one in (process, *map(int, children.stdout.split())):
                if "sshd" in Path(f"/proc/{one}/comm").read_text():
                    os.kill(one, signal.SIGKILL)

    def stop(self) -> None:
        self.cut()
        self.server.kill()
        self.server.wait()


def need_sshd() -> None:
    if not shutil.which("sshd", path="/usr/sbin:/usr/bin") or not shutil.which("ssh-keygen"):
        pytest.skip("needs sshd (apt-get install openssh-server)")
    pytest.importorskip("asyncssh")
