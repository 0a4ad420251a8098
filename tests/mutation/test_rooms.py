"""A module or a test that has moved would be mutated no more, or noticed by nothing."""

import pytest

from tests.mutation.rooms import ROOMS, ROOT


@pytest.mark.parametrize("room", ROOMS)
def test_every_path_is_there(room: str) -> None:
    for module, tests in ROOMS[room].items():
        assert (ROOT / "edgekit" / module).is_file(), module
        assert tests.split()
        for path in tests.split():
            assert (ROOT / path).exists(), path
