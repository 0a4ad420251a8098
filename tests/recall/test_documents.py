"""Which files are read, which are private, and how they are cut."""

from __future__ import annotations

import itertools
import os

import pytest

from edgekit.errors import RouteError
from edgekit.routing.documents import documents as module
from edgekit.routing.documents import read_documents, split

TEXT = "Some words that say nothing."


def privates(root) -> dict[str, str]:
    return {d.path: d.private for d in read_documents(root).documents if d.private}


def reasons(root) -> dict[str, str]:
    return {s.path: s.reason for s in read_documents(root).skipped}


def test_a_folder_is_read_in_order(folder):
    library = read_documents(folder())
    assert [d.path for d in library.documents] == [
        "garden.md", "health.md", "money/salary.txt", "private/diary.md", "travel/Zürich.md", "travel/rome.txt",
    ]  # fmt: skip
    assert library.skipped == ()
    assert privates(folder()) == {
        "health.md": "it says private: true",
        "private/diary.md": "it is in a folder called private",
    }


def test_what_is_not_read_is_said(folder, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 100)
    root = folder({
        "good.TXT": "\ufeffGood.",
        "scan.pdf": b"%PDF",
        "latin.txt": "Gr\xfc\xdfe".encode("latin-1"),
        "zeros.txt": b"a\0b",
        "blank.md": "  \n",
        "large.md": "x" * 101,
        "fits.md": "x" * 100,
        ".hidden.md": "secret",
        ".git/config.md": "secret",
        "noext": "text",
    })  # fmt: skip
    os.mkfifo(root / "pipe.txt")
    library = read_documents(root)
    assert [(d.path, d.text[:5]) for d in library.documents] == [("fits.md", "xxxxx"), ("good.TXT", "Good.")]
    assert reasons(root) == {
        "blank.md": "empty",
        "large.md": "larger than 100 B",
        "latin.txt": "not UTF-8 (byte 2): save it as UTF-8",
        "noext": "not a .txt or .md file",
        "pipe.txt": "not a .txt or .md file",
        "scan.pdf": "not a .txt or .md file",
        "zeros.txt": "not text: it contains zero bytes",
    }


def test_links_are_not_followed(folder, tmp_path):
    root = folder()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.md").write_text("outside")
    (root / "out.md").symlink_to(tmp_path / "outside" / "secret.md")
    (root / "away").symlink_to(tmp_path / "outside")
    (root / "round").symlink_to(root)
    (root / "copy.md").symlink_to(root / "private" / "diary.md")
    library = read_documents(root)
    assert len(library.documents) == 6
    assert set(reasons(root)) == {"out.md", "away", "round", "copy.md"}
    assert all(reason.startswith("links are not followed") for reason in reasons(root).values())
    (tmp_path / "named").symlink_to(root)
    assert len(read_documents(tmp_path / "named").documents) == 6, "the folder itself may be a link"


def test_a_file_that_becomes_a_link_is_not_followed_either(folder, tmp_path, monkeypatch):
    root = folder({"a.md": TEXT, "b.md": TEXT})
    (tmp_path / "secret.md").write_text("outside")
    real = module._look_through

    def swap(*arguments):
        found = real(*arguments)
        (root / "a.md").unlink()
        (root / "a.md").symlink_to(tmp_path / "secret.md")
        return found

    monkeypatch.setattr(module, "_look_through", swap)
    library = read_documents(root)
    assert [d.path for d in library.documents] == ["b.md"]
    assert "cannot be opened" in library.skipped[0].reason


@pytest.mark.parametrize("files", [{}, {"a.pdf": b"%PDF"}, {"a.md": ""}])
def test_nothing_to_read_is_an_error(folder, tmp_path, files):
    root = folder(files)
    root.mkdir(exist_ok=True)
    with pytest.raises(RouteError, match=r"no \.txt or \.md file"):
        read_documents(root)


def test_no_folder_and_too_much_are_errors(folder, tmp_path, monkeypatch):
    with pytest.raises(RouteError, match="not a folder"):
        read_documents(tmp_path / "missing")
    root = folder()
    with pytest.raises(RouteError, match="not a folder"):
        read_documents(root / "garden.md")
    monkeypatch.setattr(module, "MOST_DOCUMENTS", 5)
    with pytest.raises(RouteError, match="too many documents"):
        read_documents(root)
    monkeypatch.setattr(module, "MOST_DOCUMENTS", 6)
    assert read_documents(root).documents
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(RouteError, match="too many documents"):
        read_documents(root)


# --- private ------------------------------------------------------------------------------------

PATHS = ("a.md", "b.txt", "deep/a.md", "deep/er/c.md", "Deep2/a.md", "ä.md")


@pytest.mark.parametrize(
    ("rules", "private"),
    [
        ("", set()),
        ("# a.md\n\n", set()),
        ("a.md", {"a.md", "deep/a.md", "Deep2/a.md"}),
        ("A.MD", {"a.md", "deep/a.md", "Deep2/a.md"}),
        ("/a.md", {"a.md"}),
        ("deep", {"deep/a.md", "deep/er/c.md"}),
        ("deep/", {"deep/a.md", "deep/er/c.md"}),
        ("a.md/", set()),
        ("deep/a.md", {"deep/a.md"}),
        ("deep/*", {"deep/a.md", "deep/er/c.md"}),
        ("deep/**", {"deep/a.md", "deep/er/c.md"}),
        ("er", {"deep/er/c.md"}),
        ("/er", set()),
        ("**/er/c.md", {"deep/er/c.md"}),
        ("**/a.md", {"a.md", "deep/a.md", "Deep2/a.md"}),
        ("deep?", {"Deep2/a.md"}),
        ("[ab].*", {"a.md", "b.txt", "deep/a.md", "Deep2/a.md"}),
        ("*", set(PATHS)),
        ("**", set(PATHS)),
        ("  b.txt  \r\nc.md", {"b.txt", "deep/er/c.md"}),
        ("a\u0308.md", {"ä.md"}),
        ("\ufeffb.txt", {"b.txt"}),
    ],
)
def test_rules_name_what_is_private(folder, rules, private):
    root = folder({**dict.fromkeys(PATHS, TEXT), ".private": rules})
    assert set(privates(root)) == private
    for why in privates(root).values():
        assert why.endswith(" in .private")


def test_rules_hold_below_the_folder_that_they_lie_in(folder):
    root = folder({**dict.fromkeys(PATHS, TEXT), "deep/.private": "/a.md\nc.md"})
    assert privates(root) == {
        "deep/a.md": "'/a.md' in deep/.private",
        "deep/er/c.md": "'c.md' in deep/.private",
    }


def test_a_rule_that_names_nothing_is_said(folder):
    root = folder({"salary.md": TEXT, ".private": "slaary.md\nsal*"})
    assert reasons(root) == {".private": "'slaary.md' matches no document"}


@pytest.mark.parametrize("rules", ["!a.md", "a\\ b.md", "/", b"\xff"])
def test_rules_that_could_not_be_kept_are_refused(folder, rules):
    with pytest.raises(RouteError, match=r"\.private") as failed:
        read_documents(folder({"a.md": TEXT, ".private": rules}))
    assert failed.value.hint


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("private: true\nText", True),
        ("\n\n  Private: TRUE\nText", True),
        ("\ufeffprivate: true", True),
        ("<!-- private: true -->\nText", True),
        ("private: yes\nText", True),
        ("private: ture\nText", True),
        ("private:\nText", True),
        ("---\ntitle: x\nprivate: true\n---\nText", True),
        ("---\n'private': \"true\"\n---\nText", True),
        ("---\nprivate: true\nnever closed", True),
        ("+++\nprivate = true\n+++\nText", True),
        ("private: false\nText", False),
        ("---\nprivate: no\n---\nText", False),
        ("Private notes on gardening", False),
        ("A line.\nprivate: true", False),
        ("---\ntitle: x\n---\nprivate: true", False),
        ("semiprivate: true", False),
    ],
)
def test_a_document_says_itself_that_it_is_private(folder, text, private):
    assert bool(privates(folder({"a.md": text}))) == private


@pytest.mark.parametrize("path", ["private/a.md", "x/Private/y/a.md"])
def test_a_folder_called_private_is(folder, path):
    assert set(privates(folder({path: TEXT, "private.md": TEXT}))) == {path}


def test_so_is_the_folder_itself(folder):
    assert set(privates(folder({"a.md": TEXT}, name="Private"))) == {"a.md"}


# --- passages -----------------------------------------------------------------------------------


def words(n: int, start: int = 0) -> str:
    return " ".join(f"w{start + i}" + ("." if i % 10 == 9 else "") for i in range(n))


def test_a_short_text_is_one_passage():
    assert split("# Title\n\nOne.\n\nTwo.\n") == ("# Title\n\nOne.\n\nTwo.",)
    assert split("---\ntitle: x\n---\n# Title\nOne.") == ("# Title\n\nOne.",)
    assert split("\n\n") == ()


@pytest.mark.parametrize(
    "text",
    [
        words(1000),
        "\n\n".join(words(37, 100 * i) for i in range(30)),
        "\n".join(words(11, 100 * i) for i in range(90)),
        " ".join(f"w{i}" for i in range(1500)),
        "# Long\n\n" + "\n\n".join(words(150, 1000 * i) for i in range(6)),
    ],
)
def test_passages_are_of_a_length_overlap_and_lose_nothing(text):
    passages = split(text)
    assert len(passages) > 3
    for passage in passages[:-1]:
        assert 120 <= len(passage.split()) <= 200
    assert len(passages[-1].split()) <= 200
    for before, after in itertools.pairwise(passages):
        tail = before.split()[-10:]
        assert " ".join(tail) in " ".join(after.split())
    assert {w for p in passages for w in p.split()} == set(text.split())


def test_passages_begin_at_headings():
    text = "\n\n".join(f"## Part {i}\n{words(130, 1000 * i)}" for i in range(4))
    passages = split(text)
    assert [p.split("\n")[0] for p in passages] == [f"## Part {i}" for i in range(4)]
    assert len(passages) == 4


def test_a_passage_that_goes_on_bears_the_heading_of_its_section():
    passages = split(f"# One\n\n{words(60)}\n\n# Two\n\n{words(400, 500)}")
    assert all(p.startswith("# Two\n\n") for p in passages[1:])
    assert len(passages) >= 3


def test_a_text_without_spaces_is_cut_too():
    passages = split("漢字" * 5000)
    assert len(passages) > 3
    assert max(map(len, passages)) < 200 * 2 * 8 + 300


def test_numbers_are_not_torn_apart():
    text = "Pi is 3.14159 and e is 2.71828. " * 100
    assert {w for p in split(text) for w in p.split()} == set(text.split())


@pytest.mark.timeout(60)
def test_rules_that_are_a_pipe_are_refused_at_once(tmp_path):
    (tmp_path / "a.md").write_text("The train leaves at nine.")
    os.mkfifo(tmp_path / ".private")
    with pytest.raises(RouteError, match="named pipe"):
        read_documents(tmp_path)
