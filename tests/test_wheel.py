"""What is installed is what is used: a wheel, in an environment of its own, far from the checkout."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An interpreter whose edgekit is the wheel and whose dependencies are this one's."""
    home = tmp_path_factory.mktemp("installed") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    paths = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    site = Path(paths.stdout.strip())
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    # After the wheel's own folder, so that the dependencies are found and a checkout on this path is not.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def call(python, tmp_path, *arguments):
    done = subprocess.run(
        [python, "-m", "edgekit", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_all_data_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for path in (
        *ROOT.glob("targets/**/*.toml"),
        *ROOT.glob("edgekit/recipes/*.toml"),
        *ROOT.glob("edgekit/report/*.j2"),
        *ROOT.glob("edgekit/run/probes/*"),
        *ROOT.glob("edgekit/locks/*.txt"),
    ):
        inside = path.relative_to(ROOT).as_posix()
        assert (inside if inside.startswith("edgekit/") else f"edgekit/{inside}") in names
    assert "edgekit/report/style.css" in names
    assert "edgekit/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]


def test_it_is_the_wheel_that_runs(installed, tmp_path):
    code = "import edgekit; print(edgekit.__file__)"
    done = subprocess.run([installed, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env={})
    assert Path(done.stdout.strip()).is_relative_to(installed.parents[1])


def test_targets_are_found(installed, tmp_path):
    listed = json.loads(call(installed, tmp_path, "targets", "list", "--json"))
    assert {target["name"] for target in listed["targets"]} == {path.stem for path in ROOT.glob("targets/*.toml")}
    families = {target["npu"]["family"] for target in listed["targets"] if target["npu"]}
    assert families == {path.stem for path in ROOT.glob("targets/families/*.toml")}


def test_doctor_knows_its_packages(installed, tmp_path):
    checks = json.loads(call(installed, tmp_path, "doctor", "--json"))["checks"]
    packages = next(check for check in checks if check["name"] == "packages")
    assert packages["status"] == "pass", packages
    assert "onnxruntime" in packages["detail"]
