"""What is imported is declared, what is declared is used, and what is fetched later is pinned by its hashes."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from edgekit import locks
from edgekit.errors import RunError
from edgekit.graph import optimum
from edgekit.run import arm64, wheels

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

OWNERS = {
    "serve": ("serve/", "routing/"),
    "lab": ("lab/",),
    "large": ("quantize/jit/",),
    "learn": ("corpus/", "learn/"),
    "nvidia": ("measure/power/nvml.py",),
    "meters": ("measure/appliance.py", "measure/power/"),
    "coreml": ("bundle/mlprogram.py",),
    "sign": ("bundle/signing.py",),
    "sentencepiece": ("strangers/cell_program.py",),
}
"""Which part of edgekit may import an extra's distributions; nobody imports those of other extras."""

BY_NAME = {
    "tiktoken": "transformers reads tokenizers of that kind with it",
    "protobuf": "transformers reads tokenizer.model with it",
    "labgrid": "its client is run as a program",
    "optimum-onnx": "run in an interpreter of its own",
    "onnxruntime-qnn": "imported by the name that the NPU's family gives",
    "openvino": "the tests compare with it",
}
"""Declared and not imported, each for a reason."""

NOT_HERE = {"pynvml": "nvidia-ml-py", "Monsoon": "monsoon", "pyjoulescope_driver": "pyjoulescope-driver"}
"""Distributions of modules that need not be installed to run this test."""


def names(requirements):
    return {canonicalize_name(Requirement(line).name) for line in requirements}


CORE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(lines) for extra, lines in PROJECT["optional-dependencies"].items() if extra != "dev"}


def imported(path):
    """Top-level modules that a file imports, lazily and for its types too, or looks for by a literal name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and re.match(r"import_module\('[\w.]+'\)", ast.unparse(node)):
            yield ast.literal_eval(node.args[0]).partition(".")[0]


def uses():
    """(file, distribution) of every import from outside the standard library."""
    known = packages_distributions()
    for path in sorted((ROOT / "edgekit").rglob("*.py")):
        for module in set(imported(path)) - {"edgekit", *sys.stdlib_module_names}:
            (name,) = {NOT_HERE[module]} if module in NOT_HERE else set(known[module])
            yield path.relative_to(ROOT / "edgekit").as_posix(), canonicalize_name(name)


USES = sorted(set(uses()))


def test_every_import_is_declared_where_it_may_be_used():
    assert len(USES) > 100
    for file, distribution in USES:
        allowed = CORE.union(*(EXTRAS[e] for e, places in OWNERS.items() if file.startswith(places)))
        assert distribution in allowed, f"{file} imports {distribution}: no dependency of the core, nor of its extra"


def test_every_declaration_is_used():
    used = {distribution for _, distribution in USES}
    for where, declared in {"the core": CORE, **EXTRAS}.items():
        assert declared <= used | BY_NAME.keys(), f"{where}: {declared - used - BY_NAME.keys()}"
    assert not used & BY_NAME.keys(), "it is imported after all"


def test_an_extra_names_what_the_core_does_not():
    for extra, declared in EXTRAS.items():
        assert not declared & CORE, extra


# --- what doctor installs -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["optimum", "runtime"])
def test_locks_pin_versions_and_hashes_and_name_no_index(name):
    text = (locks.FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^-", text, flags=re.MULTILINE)
    pinned = locks.pins(name)
    assert len(pinned) > 10
    for pin, line in pinned.items():
        requirement = Requirement(pin)
        assert [s.operator for s in requirement.specifier] == ["=="], pin
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})(?= |$)", line)
        assert hashes, pin
        assert line.count("--hash") == len(hashes)


def test_the_lock_is_what_the_extra_asks_for():
    pinned = [Requirement(pin) for pin in locks.pins("optimum")]
    pinned.append(Requirement(optimum.TORCH))  # by version alone: each kind of processor has a build of its own
    versions = {canonicalize_name(p.name): Version(next(iter(p.specifier)).version) for p in pinned}
    for line in PROJECT["optional-dependencies"]["optimum"]:
        wanted = Requirement(line)
        assert versions[canonicalize_name(wanted.name)] in wanted.specifier
    floor = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "onnxruntime")
    known = [Requirement(p) for p in locks.pins("runtime")]
    runtimes = [Version(next(iter(p.specifier)).version) for p in known if p.name == "onnxruntime"]
    assert all(v in floor.specifier for v in runtimes)
    assert runtimes == sorted(runtimes)


def commands_of(monkeypatch, module, call):
    ran = []

    def run(command, *_, **__):
        ran.append([str(word) for word in command])
        return 0, ""

    monkeypatch.setattr(module, "_run", run)
    call()
    return [command for command in ran if "pip" in command]


def test_optimum_is_installed_by_its_hashes(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    locked, torch = commands_of(monkeypatch, optimum, optimum.install_optimum)
    assert {*locks.STRICT, "--no-deps"} <= set(locked)
    assert locked[-2:] == ["--requirement", str(optimum.LOCK)]
    assert "--only-binary=:all:" in torch
    assert torch[-1] == optimum.TORCH


def test_arms_wheels_are_fetched_by_their_hashes(monkeypatch, tmp_path):
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/python3.12").touch()
    (pip,) = commands_of(monkeypatch, wheels, lambda: arm64._unpack_wheels(tmp_path / "wheels", tmp_path / "root"))
    assert set(locks.STRICT) <= set(pip)
    lock = Path(pip[pip.index("--requirement") + 1]).read_text(encoding="utf-8")
    assert [line.split()[0].partition("==")[0] for line in lock.splitlines()] == ["onnxruntime", "numpy"]
    assert lock.count("--hash=sha256:") > 10


def test_a_runtime_without_known_hashes_is_refused():
    with pytest.raises(RunError, match="no hashes for onnxruntime 0") as caught:
        wheels.runtime_pins("0")
    assert "pip install onnxruntime==" in caught.value.hint


def test_locks_ship_in_the_wheel():
    included = PROJECT and tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert included["wheel"]["packages"] == ["edgekit"]
    assert locks.FOLDER.is_relative_to(ROOT / "edgekit")
