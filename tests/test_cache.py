"""Nothing in the cache is executed or believed that another user could have put there."""

import os
import stat

import numpy as np
import pytest

from edgekit.errors import ConfigError
from edgekit.graph.optimum import find_optimum
from edgekit.host import cache
from edgekit.inspect import doctor
from edgekit.run import PROMPT_MATMULS, exactness, find_arithmetic
from edgekit.run.arm64 import _folder as arm64_folder
from edgekit.source.packaged import PACKAGED, fetch_packaged
from edgekit.types import silent
from edgekit.verify.bundle import find_reference
from tests import made

STRANGER = 12345


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGEKIT_CACHE", str(folder))
    monkeypatch.delenv("EDGEKIT_OPTIMUM_PYTHON", raising=False)
    return folder


@pytest.fixture
def give_away(monkeypatch):
    """Make a file or folder another user's: root can; who is not root becomes another user himself."""

    def give(path):
        if os.geteuid() == 0:
            os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: STRANGER)

    return give


def make(root, name, content=""):
    path = root / name
    cache.make_own(path.parent)
    path.write_text(content)
    return path


def test_folders_of_the_cache_are_for_their_user_alone(root):
    folder = cache.make_own(root / "a" / "b")
    assert [stat.S_IMODE(p.stat().st_mode) for p in (root, root / "a", folder)] == [0o700] * 3
    assert cache.require_own(folder / "not-there-yet")


@pytest.mark.parametrize("which", ["", "optimum", "optimum/bin", "optimum/bin/python"])
def test_an_interpreter_that_another_user_owns_is_refused(root, give_away, which):
    python = make(root, "optimum/bin/python")
    assert cache.foreign(python) == ""
    give_away(root / which)
    with pytest.raises(ConfigError, match="belongs to another user") as caught:
        find_optimum()
    assert "EDGEKIT_CACHE" in caught.value.hint


@pytest.mark.parametrize("mode", [0o777, 0o1777])
@pytest.mark.parametrize("which", ["", "optimum", "optimum/bin", "optimum/bin/python"])
def test_where_others_may_write_nothing_is_executed(root, which, mode):
    make(root, "optimum/bin/python")
    (root / which).chmod(mode)
    with pytest.raises(ConfigError, match="writable by others"):
        find_optimum()


def test_a_group_is_others_unless_it_is_the_users_own(root, monkeypatch):
    path = make(root, "optimum/bin/python")
    path.parent.chmod(0o770)
    monkeypatch.setattr(cache, "_is_private", lambda gid: False)
    assert "writable by others" in cache.foreign(path)
    monkeypatch.setattr(cache, "_is_private", lambda gid: gid == path.parent.stat().st_gid)
    assert cache.foreign(path) == ""


def test_a_link_on_the_way_is_refused_and_one_at_either_end_is_not(root, tmp_path):
    """The cache may lie on another disk, and Python's environments link to their interpreter."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    root.symlink_to(elsewhere)
    python = root / "optimum" / "bin" / "python"
    cache.make_own(python.parent)
    python.symlink_to("/usr/bin/env")
    assert cache.foreign(python) == ""
    elsewhere.chmod(0o777)
    assert "writable by others" in cache.foreign(python)
    elsewhere.chmod(0o700)
    (root / "optimum").rename(tmp_path / "moved")
    (root / "optimum").symlink_to(tmp_path / "moved")
    assert "is a link, not a folder" in cache.foreign(python)


def test_a_pipe_is_refused_and_not_waited_for(root):
    make(root, "optimum/bin/other")
    os.mkfifo(root / "optimum" / "bin" / "python")
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        find_optimum()


def test_a_packaged_model_of_another_user_is_not_opened(root, give_away):
    (name, row), *_ = PACKAGED.items()
    give_away(make(root, f"models/{name}/{row.member.rsplit('/', 1)[-1]}"))
    with pytest.raises(ConfigError, match="belongs to another user"):
        fetch_packaged(row, offline=True, progress=silent)


def test_a_reference_of_another_user_is_no_measure_of_quality(root, give_away, monkeypatch):
    bundle = made.bundle()
    text = type("T", (), {"sha256": "1"})
    monkeypatch.setattr("edgekit.verify.bundle.measure.reference_key", lambda *_: "key")
    give_away(make(root, "references/key.npz"))
    with pytest.raises(ConfigError, match="belongs to another user"):
        find_reference(bundle, None, text, np.zeros((1, 1), np.int64), silent)


def test_what_another_user_says_about_sums_is_not_believed(root, give_away, monkeypatch):
    assert find_arithmetic(PROMPT_MATMULS).exact
    (kept,) = (root / "exactness").iterdir()
    kept.write_text("null")
    assert exactness._known("prompt_matmul", (), keep=True, root=exactness.Path("/")) is None
    give_away(root / "exactness")
    assert exactness._known("prompt_matmul", (), keep=True, root=exactness.Path("/"))
    assert kept.read_text() == "null"


def test_doctor_says_so(root, give_away):
    make(root, "optimum/bin/python")
    give_away(root)
    check = doctor._cache()
    assert (check.status, check.hint != "") == ("fail", True)
    assert "belongs to another user" in check.detail
    assert doctor._optimum().status == "fail"
    assert arm64_folder() == root / "arm64"
