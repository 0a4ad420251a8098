"""Thread counts from trees of /proc and /sys: hyper-threads, affinity, cgroup quotas of both versions."""

import pytest

from edgekit.run import core_cpus, machine_class, physical_cores


@pytest.fixture
def machine(tmp_path):
    """Four cores with two hyper-threads each: CPU i and CPU i + 4 are siblings."""
    for cpu in range(8):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


ALL = range(8)


@pytest.mark.parametrize(
    ("affinity", "cores"), [(ALL, 4), ({0, 4}, 1), ({0, 1, 4}, 2), ({5, 6, 7}, 3), (range(4, 8), 4)]
)
def test_siblings_count_once(machine, affinity, cores):
    assert physical_cores(machine, affinity) == cores


@pytest.mark.parametrize(
    ("affinity", "cpus"), [(ALL, (0, 1, 2, 3)), ({4, 0}, (0,)), ({5, 6, 7}, (5, 6, 7)), ({0, 99}, ())]
)
def test_one_cpu_of_each_core(machine, affinity, cpus):
    assert core_cpus(machine, affinity) == cpus


def test_the_class_of_a_machine_is_its_processor_and_cores(machine, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: ALL, raising=False)
    write(machine / "proc/cpuinfo", "processor : 0\nmodel name\t: Made-up CPU @ 2 GHz\n")
    assert machine_class(machine) == "Made-up CPU @ 2 GHz, 4 cores"
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2, 6}, raising=False)
    assert machine_class(machine) == "Made-up CPU @ 2 GHz, 1 core"
    write(machine / "proc/cpuinfo", "processor : 0\nModel : A Board Rev 1.0\n")
    assert machine_class(machine) == "A Board Rev 1.0, 1 core"


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 4), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1)]
)
def test_cgroup_2_quota(machine, limit, cores):
    write(machine / "proc/self/cgroup", "0::/user.slice/job\n")
    write(machine / "sys/fs/cgroup/user.slice/job/cpu.max", limit + "\n")
    assert physical_cores(machine, ALL) == cores


def test_cgroup_2_quota_of_a_parent_counts(machine):
    write(machine / "proc/self/cgroup", "0::/user.slice/job\n")
    write(machine / "sys/fs/cgroup/user.slice/job/cpu.max", "max 100000\n")
    write(machine / "sys/fs/cgroup/user.slice/cpu.max", "300000 100000\n")
    assert physical_cores(machine, ALL) == 3


def test_cgroup_path_of_the_host_inside_a_container(machine):
    write(machine / "proc/self/cgroup", "0::/docker/0123abc\n")
    write(machine / "sys/fs/cgroup/cpu.max", "100000 100000\n")
    assert physical_cores(machine, ALL) == 1


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("300000", 3)])
def test_cgroup_1_quota(machine, quota, cores):
    write(machine / "proc/self/cgroup", "7:memory:/job\n4:cpu,cpuacct:/job\n1:cpuset:/\n0::/\n")
    write(machine / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", quota + "\n")
    write(machine / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    assert physical_cores(machine, ALL) == cores


def test_without_topology_the_affinity_still_holds(tmp_path):
    assert physical_cores(tmp_path, {3}) == 1


def test_this_machine():
    assert physical_cores() >= 1
