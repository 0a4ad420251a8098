"""What the documents say is what happens."""

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command

import edgekit
import edgekit.measure.power
import edgekit.quantize
from edgekit.cli import run
from edgekit.cli.app import app
from edgekit.config import target as device_file
from edgekit.config.recipe import load_recipe
from edgekit.measure import meters
from edgekit.routing.policy_file import load_policy
from edgekit.testing import tiny_checkpoint

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")), *PAGES]


def commands(command=None, words=()):
    """Every command with the words that call it."""
    command = command or get_command(app)
    yield words, command
    for word, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*words, word))


def diffs() -> dict[str, str]:
    """The new files that CONTRIBUTING shows, by path."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = {}
    for block in re.findall(r"```diff\n(.*?)```", text, flags=re.DOTALL):
        path = re.search(r"^\+\+\+ b/(\S+)$", block, flags=re.MULTILINE)
        assert path, block
        lines = block[path.end() + 1 :].splitlines()
        assert all(line.startswith("+") for line in lines)
        found[path[1]] = "\n".join(line[1:] for line in lines) + "\n"
    return found


def test_generated_documents_are_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        capture_output=True, text=True, check=False, cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_has_help_and_an_example_that_parses(words, command, capsys):
    assert run([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example:" in shown
    example = shlex.split(command.epilog.removeprefix("Example:"))
    assert example[: 1 + len(words)] == ["edgekit", *words]
    called = get_command(app)
    rest = example[1:]
    while hasattr(called, "commands"):
        called = called.commands[rest.pop(0)]
    called.make_context("edgekit", rest)


def test_every_option_is_explained():
    for words, command in commands():
        for parameter in command.params:
            assert parameter.help, (words, parameter.name)
            assert parameter.help[0] in "0C" or parameter.help[0].isupper() or ":" in parameter.help, parameter.help


@pytest.fixture
def generator(tmp_path, monkeypatch):
    """docs/generate.py over a copy of the documents that it writes."""
    found = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    monkeypatch.setattr(module, "DOCS", shutil.copytree(ROOT / "docs", tmp_path / "docs"))
    monkeypatch.setattr(module, "README", Path(shutil.copy(ROOT / "README.md", tmp_path)))
    return module


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md", "docs/cli.md", "docs/learn.md"])
def test_a_number_that_was_typed_is_noticed_and_mended(generator, name, tmp_path, monkeypatch):
    path = tmp_path / name
    right = path.read_text(encoding="utf-8")
    typed = right.replace("0.088", "0.066").replace("`512`", "`513`").replace("x of 0.", "x of 7.")
    assert typed != right
    path.write_text(typed, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    with pytest.raises(SystemExit, match=f"^{name} is not up to date: run `make docs`$"):
        generator.main()
    assert path.read_text(encoding="utf-8") == typed
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    generator.main()
    assert path.read_text(encoding="utf-8") == right


def links(text: str) -> list[str]:
    """Every link of a document that leads to a file or a heading here, as it is written."""
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def headings(text: str) -> set[str]:
    """The anchors of a document, as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    lines = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def broken_links(text: str, document: Path) -> tuple[int, list[str]]:
    """How many links lead to a file or a heading, and those of which there is none."""
    found = links(text)
    return len(found), [target for target in found if not leads_somewhere(target, text, document)]


def leads_somewhere(target: str, text: str, document: Path) -> bool:
    """Whether there is such a file, and such a heading in it."""
    name, _, anchor = target.partition("#")
    path = document.parent / name
    if not path.exists():
        return False
    return not anchor or anchor in headings(path.read_text(encoding="utf-8") if name else text)


def unknown_commands(text: str) -> tuple[int, list[str]]:
    """How many commands stand on a line of their own or between backticks, and those that do not exist."""
    wrong = []
    lines = re.findall(r"^\s*(?:\$ )?edgekit ([a-z][^\n]*)$", text, flags=re.MULTILINE)
    lines += re.findall(r"`edgekit ([a-z][^`]*)`", text)
    for line in lines:
        words, command = line.split(), get_command(app)
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            named = [command.commands.get(word) for word in words.pop(0).split("|")]
            command = None if None in named else named[0]
        opts = {name for parameter in getattr(command, "params", ()) for name in parameter.opts} | {"--help"}
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        if command is None or not flags <= opts:
            wrong.append(line)
    return len(lines), wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_commands_of_a_document_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    assert broken_links(text, document)[1] == []
    assert unknown_commands(text)[1] == []


def test_a_wrong_link_and_a_wrong_command_are_noticed():
    """A document may have neither links nor commands, so what finds them is tested on some that are wrong."""
    wrong = '[a](nowhere.md) [b](README.md#c) <img src="gone.svg"> [d](https://host/x) [e](CONTRIBUTING.md#a-device)'
    assert broken_links(wrong, ROOT / "x.md") == (4, ["nowhere.md", "README.md#c", "gone.svg"])
    assert broken_links("# It's `so`\n[a](#its-so) [b](#so)", ROOT / "x.md") == (2, ["#so"])
    text = "$ edgekit bild m\n    edgekit build m --presicion int4\nedgekit build m --out=x\n`edgekit targets lst`"
    assert unknown_commands(text) == (4, ["bild m", "build m --presicion int4", "targets lst"])


def test_links_and_commands_are_found_in_the_documents_that_have_them():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert broken_links(text, ROOT / "README.md")[0] > 5
    assert unknown_commands(text)[0] > 5


def linked_from(document: Path) -> set[Path]:
    """The documents that can be reached from one, over others."""
    seen, waiting = set(), [document]
    while waiting:
        here = waiting.pop()
        if here in seen or here.suffix != ".md":
            continue
        seen.add(here)
        found = (here.parent / target.partition("#")[0] for target in links(here.read_text(encoding="utf-8")))
        waiting += [path.resolve() for path in found]
    return seen


def test_every_page_is_reached_from_the_readme():
    assert {path.resolve() for path in PAGES} - linked_from((ROOT / "README.md").resolve()) == set()


def test_every_picture_is_shown_by_a_document():
    shown = {
        (path.parent / target).resolve() for path in DOCUMENTS for target in links(path.read_text(encoding="utf-8"))
    }
    assert {path.resolve() for path in (ROOT / "docs").glob("*.svg")} - shown == set()


def named_paths(text: str) -> list[str]:
    """Files and folders of the repository that stand between backticks; in "The house", those of edgekit/ too."""
    rooms = re.findall(r"^## The house\n(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"`((?:edgekit|docs|examples|benchmarks|targets|tests)/[\w./-]*)`", text)
    return found + [
        f"edgekit/{path}" for room in rooms for path in re.findall(r"`((?!edgekit|targets)\w+/[\w./]*)`", room)
    ]


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name != "CHANGELOG.md"], ids=lambda path: path.name)
def test_files_that_a_document_names_are_there(document):
    named = named_paths(document.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert len(named) > 8 or document.name != "README.md"


def blocks(language: str) -> list[str]:
    """Every code block of a language in the README and the pages."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *PAGES))
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_python_in_the_documents_uses_what_edgekit_offers():
    used = [
        alias.name
        for block in blocks("python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "edgekit"
        for alias in node.names
    ]
    assert used
    assert [name for name in used if not hasattr(edgekit, name)] == []


def test_policies_in_the_documents_are_policies(tmp_path):
    found = [block for block in blocks("toml") if "[[tier]]" in block]
    assert found
    for block in found:
        (tmp_path / "policy.toml").write_text(block, encoding="utf-8")
        assert load_policy(tmp_path / "policy.toml").tiers


def test_version_is_the_same_everywhere():
    assert f'version = "{edgekit.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_device_of_contributing_shows_up(tmp_path, monkeypatch, capsys):
    path, text = next((path, text) for path, text in diffs().items() if path.startswith("targets/"))
    folder = shutil.copytree(ROOT / "targets", tmp_path / "targets")
    (folder / Path(path).name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(device_file, "targets_folder", lambda: folder)
    assert run(["targets", "list"]) == 0
    assert Path(path).stem in capsys.readouterr().out
    assert run(["targets", "show", Path(path).stem]) == 0
    shown = capsys.readouterr().out
    assert "12.8 GB/s" in shown
    assert "4.0 GB" in shown
    assert run(["targets", "lint", Path(path).stem]) == 0


def test_the_meter_of_contributing_measures(tmp_path, monkeypatch):
    path, text = next((path, text) for path, text in diffs().items() if "/power/" in path)
    (tmp_path / Path(path).name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(edgekit.measure.power, "__path__", [*edgekit.measure.power.__path__, str(tmp_path)])
    chip = tmp_path / "root/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    chip.mkdir(parents=True)
    (chip / "curr1_input").write_text("1500\n")
    (chip / "in1_input").write_text("5000\n")
    (probe,) = meters(tmp_path / "root")
    assert probe.name.startswith("Jetson hwmon3")
    probe.start()
    assert probe.stop() > 0


def test_the_method_of_contributing_quantizes(tmp_path, monkeypatch):
    path, text = next((path, text) for path, text in diffs().items() if "/quantize/" in path)
    (tmp_path / Path(path).name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(edgekit.quantize, "__path__", [*edgekit.quantize.__path__, str(tmp_path)])
    recipe = replace(load_recipe("int4"), name="shrunk", method=Path(path).stem)
    model = tiny_checkpoint(tmp_path / "model")
    shrunk = edgekit.build_bundle(str(model), recipe=recipe, out=tmp_path / "shrunk").manifest
    plain = edgekit.build_bundle(str(model), recipe=replace(recipe, method="rtn"), out=tmp_path / "plain").manifest
    assert shrunk.recipe.method == "shrink"
    assert [t.bytes for t in shrunk.tensors] == [t.bytes for t in plain.tensors]
    assert [t.error for t in shrunk.tensors] != [t.error for t in plain.tensors]
