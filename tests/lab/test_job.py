"""Jobs and leases on this machine as a device: nothing lost, nothing doubled, nothing left running."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from edgekit.errors import LabError, LinkLost
from edgekit.lab.job import start
from edgekit.lab.lease import Lease, lease
from edgekit.lab.shell import storing
from edgekit.lab.transports.local import Local
from tests.lab.loopback import wait_for


@pytest.fixture
def device(tmp_path):
    return Local(f"local:{tmp_path}", tmp_path / "device")


def processes(folder) -> list[str]:
    """Processes that a job of ``folder`` has left, by what is in their environment."""
    command = f"grep -lF EDGEKIT_JOB={folder} /proc/[0-9]*/environ"
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=False).stdout.split()


def run_of(device, name="1") -> str:
    return f"{device.home}/runs/{name}"


def test_a_job_prints_ends_and_leaves_nothing(device):
    job = start(device, "cat; echo bad >&2; sleep 77 & exit 7", run_of(device), give=b"one\ntwo\nrest")
    assert list(job.lines()) == [b"one", b"two", b"rest"]
    assert (job.code, job.errors) == (7, "bad\n")
    wait_for(lambda: not processes(run_of(device)), "a child was left")


def test_lines_come_while_it_runs(device):
    with start(device, "echo first; while [ ! -f go ]; do sleep 0.05; done; echo last", run_of(device)) as job:
        lines = job.lines()
        assert next(lines) == b"first"
        Path(run_of(device), "go").touch()
        assert list(lines) == [b"last"]
        assert job.code == 0


def test_end_ends_children_that_left_the_session(device):
    job = start(device, "setsid sleep 78 & setsid sh -c 'sleep 79 & wait' & echo up; wait", run_of(device))
    assert next(job.lines()) == b"up"
    job.end()
    assert processes(run_of(device)) == []
    assert job.code == 137


def test_a_folder_is_used_once(device):
    start(device, "true", run_of(device)).end()
    with pytest.raises(LabError, match="the folder of the job is in use"):
        start(device, "true", run_of(device))


def test_a_killed_job_is_told(device):
    with pytest.raises(LabError, match="the job was killed by SIGKILL: tired"):
        list(start(device, "echo tired >&2; kill -9 $$", run_of(device)).lines())


def test_a_job_that_ran_out_of_memory_is_told(device):
    group = Path(f"/sys/fs/cgroup/memory/edgekit-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs root and memory cgroups")
    try:
        (group / "memory.limit_in_bytes").write_text("20000000")
        hungry = f"{sys.executable} -c 'print(len(bytearray(400_000_000)))'"
        job = start(device, f"echo $$ > {group}/cgroup.procs; {hungry}; exit $?", run_of(device))
        with pytest.raises(LabError, match="the system killed the job: it ran out of memory"):
            list(job.lines())
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the group is in use")
        group.rmdir()


def test_a_job_that_fills_the_disk_is_told(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "x", small], check=False).returncode:
        pytest.skip("needs root to make a small disk")
    try:
        job = start(Local("local", small), "cat /dev/zero || exit 9", f"{small}/runs/1")
        with pytest.raises(LabError, match="No space left on the device") as error:
            list(job.lines())
        assert (job.code, error.value.hint) == (9, "free some space there")
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_killed_supervisor_is_told(device):
    job = start(device, "sleep 80", run_of(device))
    subprocess.run(["kill", "-9", Path(run_of(device), "pid").read_text().strip()], check=True)
    with pytest.raises(LabError, match="ended there by something else"):
        list(job.lines())
    job.end()
    assert processes(run_of(device)) == []


def test_a_reboot_is_told(device):
    job = start(device, "sleep 81", run_of(device), patience=4)
    Path(run_of(device), "boot").write_text("another\n")
    with pytest.raises(LabError, match="was rebooted in the middle of the run"):
        list(job.lines())
    job.code = None
    job.end()


def test_a_silent_host_ends_the_job_on_the_device(device):
    job = start(device, "sleep 82 & sleep 83", run_of(device), patience=2)
    wait_for(lambda: not processes(run_of(device)), "the job goes on without a host")
    with pytest.raises(LabError, match="its host was silent for 2 s"):
        list(job.lines())


def test_a_host_that_is_killed_leaves_no_job(device, tmp_path):
    program = f"""
        from pathlib import Path
        from edgekit.lab.job import start
        from edgekit.lab.transports.local import Local
        device = Local("local", Path({device.home!r}))
        for line in start(device, "echo up; sleep 84", {run_of(device)!r}, patience=2).lines():
            print(line, flush=True)
    """
    host = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    assert host.stdout and host.stdout.readline() == b"b'up'\n"
    host.kill()
    host.wait()
    host.stdout.close()
    assert processes(run_of(device))
    wait_for(lambda: not processes(run_of(device)), "the job goes on without a host")


class Cutting(Local):
    """Loses the link every few bytes, and anywhere in a command."""

    def __init__(self, address, home):
        super().__init__(address, home)
        self.calls = self.cuts = 0
        self.here = True

    def run(self, command, give=b"", seconds=None):
        self.require()
        self.calls += 1
        if self.calls % 3 == 0:
            super().run(command, give, seconds)  # the answer is lost
            self.cut()
        return super().run(command, give, seconds)

    def stream(self, command):
        self.require()
        for data in super().stream(command):
            yield data[:700]
            if len(data) > 700:
                self.cut()

    def require(self):
        if not self.here:
            raise LinkLost("cut", "connect again")

    def cut(self):
        self.cuts += 1
        self.here = False
        self.require()

    def reconnect(self):
        self.here = True


def test_a_lost_link_loses_and_doubles_nothing(tmp_path):
    device = Cutting("cut", tmp_path / "device")
    command = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i + 1)); done"
    job = start(device, command, run_of(device))
    assert list(job.lines()) == [b"line %d" % i for i in range(3000)]
    assert device.cuts > 10
    assert job.code == 0


def test_what_was_cut_off_on_its_way_is_not_begun(tmp_path):
    class Truncating(Local):
        cut = False

        def run(self, command, give=b"", seconds=None):
            if give and not self.cut:
                self.cut = True
                super().run(command, give[:3], seconds)
                raise LinkLost("cut", "connect again")
            return super().run(command, give, seconds)

    device = Truncating("cut", tmp_path / "device")
    assert list(start(device, "cat", run_of(device), give=b"one\ntwo\n").lines()) == [b"one", b"two"]
    assert device.cut
    target = tmp_path / "file"
    assert device.run(storing(str(target), 4), b"onl").code == 1
    assert list(tmp_path.glob("file*")) == []
    assert device.run(storing(str(target), 4), b"only").code == 0
    assert target.read_bytes() == b"only"


def test_a_start_whose_answer_is_lost_starts_once(tmp_path):
    device = Cutting("cut", tmp_path / "device")
    device.calls = 2
    job = start(device, f"echo once >> {tmp_path}/count; sleep 0.5; echo up", run_of(device))
    assert device.cuts == 1
    assert list(job.lines()) == [b"up"]
    assert (tmp_path / "count").read_text() == "once\n"


def test_a_device_that_stays_away_is_told(tmp_path):
    device = Cutting("cut", tmp_path / "device")
    job = start(device, "sleep 85", run_of(device), patience=1)
    device.here = False
    device.reconnect = device.require
    with pytest.raises(LinkLost, match="it did not come back in 1 s"):
        list(job.lines())


def test_two_never_hold_a_device(device):
    refused = pytest.raises(LabError, match=r"is used by .+@.+ since .+, for another (59|60) s")
    with lease(device, seconds=60), refused, lease(device):
        pytest.fail("both hold it")
    with lease(device):
        pass
    assert list(Path(device.home, "lease").iterdir()) == []


def test_who_only_wants_the_device_is_waited_for(device):
    with lease(device):
        pass
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    now = int(float(Path("/proc/uptime").read_text().split()[0]))
    Path(device.home, "lease", "other").write_text(f"{boot} {now + 1} wanted\nsomeone\n")
    with lease(device):
        assert not Path(device.home, "lease", "other").exists()


def test_of_many_at_once_one_gets_it(device):
    got, refused = [], []

    def take():
        one = Lease(device, 60)
        try:
            one.acquire()
            got.append(one)
        except LabError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)


def test_a_stale_lease_is_taken_over_and_its_jobs_ended(device):
    first = Lease(device, 1)
    first.acquire()
    job = start(device, "sleep 86", run_of(device))
    time.sleep(1.5)
    with lease(device, seconds=60):
        assert processes(run_of(device)) == []
        with pytest.raises(LabError, match=r"the lease ended and .+ took the device"):
            first.renew()
        with pytest.raises(LabError, match="ended there by something else"):
            list(job.lines())


def test_a_lease_of_an_earlier_boot_is_stale(device):
    Lease(device, 1000).acquire()
    (file,) = Path(device.home, "lease").iterdir()
    file.write_text("another-boot 99999999 1000\nsomeone\n")
    with lease(device):
        assert not file.exists()


def test_following_a_job_renews_the_lease(device):
    other = Local(device.address, Path(device.home))
    with lease(device, seconds=4):
        for _ in start(device, "sleep 6; echo up", run_of(device)).lines():
            with pytest.raises(LabError, match="is used by"), lease(other):
                pytest.fail("both hold it")
