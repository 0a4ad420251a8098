"""A small library on disk."""

from __future__ import annotations

import pytest

FILES = {
    "garden.md": "# Garden\n\nTomatoes want sun and much water. Plant them in May.\n\n# Frost\n\nCover the figs.\n",
    "travel/rome.txt": "The train to Rome leaves Milan at nine. A ticket costs forty euros.",
    "travel/Zürich.md": "In Zürich the lake is cold, and coffee is dear.",
    "private/diary.md": "I met the notary about grandmother's will; the safe's number is 4711.",
    "health.md": "---\ntitle: Health\nprivate: true\n---\nThe doctor found an allergy to penicillin in the spring.",
    "money/salary.txt": "My salary is eighty thousand, paid by Acme in Turin.",
}


@pytest.fixture
def folder(tmp_path):
    """Write files under a folder: {path: text or bytes}."""

    def write(files=FILES, name="docs"):
        root = tmp_path / name
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return write
