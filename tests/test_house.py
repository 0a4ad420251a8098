"""The rules that keep the house light. Each test names the rule it enforces."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import edgekit.errors
from edgekit.errors import EdgekitError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edgekit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = {"edgekit/run/npu/child.py", "edgekit/run/npu/emulating.py"}
"""Run with `python -m`, in a process of their own: stderr is how they tell their parent how far they are."""
HEAVY = ("onnx", "onnx_ir", "onnxruntime", "transformers", "torch", "numpy", "huggingface_hub", "matplotlib", "optimum")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def loaded_by(code: str) -> set[str]:
    """The top-level modules in sys.modules after ``code`` in a fresh interpreter."""
    program = f"{code}\nimport sys\nprint('\\n'.join({{m.partition('.')[0] for m in sys.modules}}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


def test_rooms_import_as_pyproject_says():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]


def test_importing_edgekit_loads_nothing_heavy():
    assert not loaded_by("import edgekit") & {*HEAVY, "typer", "rich"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["build", "--help"],
        ["run", "--help"],
        ["route", "calibrate", "--help"],
        ["route", "bench", "--help"],
        ["--version"],
    ],
)
def test_help_loads_nothing_heavy(arguments):
    assert not loaded_by(f"from edgekit.cli import run\nassert run({arguments!r}) == 0") & {*HEAVY}


def test_importing_the_command_line_changes_nothing():
    code = (
        "import os, sys, signal, logging\n"
        "before = dict(os.environ), signal.getsignal(signal.SIGINT), list(logging.root.handlers), sys.excepthook\n"
        "import edgekit.cli.app\n"
        "after = dict(os.environ), signal.getsignal(signal.SIGINT), list(logging.root.handlers), sys.excepthook\n"
        "assert before == after"
    )
    loaded_by(code)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_fit_the_eye(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 80, f"{name(path)}:{node.lineno} {node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_modules_are_nouns_that_mean_something(path):
    assert not re.search(r"util|helper|manager|handler|misc|common", path.stem)


OF_THE_RUNTIME = {"edgekit/run/runtime.py", "edgekit/run/predictor_worker.py", "edgekit/run/probing.py"}
"""What knows the provider that is part of every ONNX Runtime."""


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_provider_is_data_and_never_compared(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            # Programs that import nothing of edgekit say themselves what run/runtime.py says for all others.
            cpu = node.value == "CPUExecutionProvider" and name(path) in OF_THE_RUNTIME
            assert cpu or not re.search(r"ExecutionProvider$", node.value), f"{name(path)}:{node.lineno}: {node.value}"
        if isinstance(node, ast.Compare) and any(isinstance(o, ast.Eq | ast.NotEq) for o in node.ops):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            assert not any(side.endswith(".provider") for side in sides), f"{name(path)}:{node.lineno}: {sides}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_the_command_line_prints_and_exits(path):
    if "cli" in path.parts or path.name == "__main__.py":
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "exit", "quit", "sys.exit", "os._exit"), f"{name(path)}:{node.lineno}"
            if name(path) not in PROGRAMS:
                assert called not in ("sys.stdout.write", "sys.stderr.write"), f"{name(path)}:{node.lineno}"


@pytest.mark.parametrize("path", sorted(PROGRAMS))
def test_what_may_write_to_stderr_is_a_program_of_its_own(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert '\nif __name__ == "__main__":\n' in source
    assert "sys.stdout.write" not in source


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_left_unfinished(path):
    assert not re.search(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b", path.read_text(encoding="utf-8"))


def used_names(path: Path) -> set[str]:
    """Names that a file reads, and attributes that it looks up; imports and ``__all__`` use nothing."""
    nodes = list(ast.walk(tree(path)))
    names = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return names | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def test_no_public_function_is_used_by_tests_alone():
    """What the package itself, the benchmarks or the examples do not call is dead, whatever tests it has."""
    elsewhere = [
        path for folder in ("benchmarks", "examples", "docs") for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    used = set().union(*map(used_names, [*SOURCES, *elsewhere]))
    exported = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    dead = [
        f"{name(path)}: {node.name}"
        for path in SOURCES
        if name(path) != "edgekit/testing.py"
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not node.decorator_list
        and node.name not in used
        and f'"{node.name}"' not in exported
    ]
    assert dead == []


def raised(path: Path) -> list[tuple[ast.Call, ast.expr | None]]:
    """Every call in a file that makes an error of the tree, with its hint."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in error_names():
            hints = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "hint")]
            starred = any(isinstance(a, ast.Starred) for a in node.args)
            found.append((node, node.args[0] if starred else hints[0] if hints else None))
    return found


@cache
def error_names() -> frozenset[str]:
    """The errors of the tree and what is derived from them anywhere."""
    names = {n for n, c in vars(edgekit.errors).items() if isinstance(c, type) and issubclass(c, EdgekitError)}
    classes = [n for path in SOURCES for n in ast.walk(tree(path)) if isinstance(n, ast.ClassDef)]
    for _ in range(3):
        names |= {c.name for c in classes if any(ast.unparse(b) in names for b in c.bases)}
    return frozenset(names)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_error_carries_the_next_step(path):
    for call, hint in raised(path):
        empty = hint is None or (isinstance(hint, ast.Constant) and not str(hint.value).strip())
        assert not empty, f"{name(path)}:{call.lineno}: {ast.unparse(call)[:120]} has no hint"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_the_library_s_errors_name_parameters_and_no_flags(path):
    """`size_mb`, which cli/flags.py makes --size-mb of. A whole command may stand there: `edgekit sign --key`."""
    if "cli" in path.parts:
        return
    for call, _ in raised(path):
        for node in ast.walk(call):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = re.sub(r"`[^`]*`|edgekit [a-z]+.*|pip install.*| -m .*|.*--data FILE|.*--merge", "", node.value)
                assert not re.search(r"(?<![\w-])--[a-z]", words), f"{name(path)}:{node.lineno}: {node.value}"


def test_every_error_stands_in_the_tree():
    errors = [c for c in vars(edgekit.errors).values() if isinstance(c, type) and issubclass(c, EdgekitError)]
    assert len(errors) > 5
    for error in errors:
        assert re.search(rf"^[ │├└─]*{error.__name__} ", edgekit.errors.__doc__ or "", flags=re.MULTILINE), error


def test_few_modules_lie_outside_of_a_room():
    """A newcomer reads the architecture from the folder list."""
    assert len(list((ROOT / "edgekit").glob("*.py"))) <= 8
