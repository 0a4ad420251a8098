from pathlib import Path

import edgekit


def test_all_is_what_the_module_exports():
    assert sorted(edgekit.__all__) == sorted(edgekit._HOME)


def test_every_name_can_be_had_and_says_what_it_is():
    for name in edgekit.__all__:
        assert getattr(edgekit, name).__doc__, name
        assert getattr(edgekit, name).__module__.startswith("edgekit"), name


def test_type_checkers_see_the_same_names():
    source = Path(edgekit.__file__).read_text(encoding="utf-8")
    for name in edgekit.__all__:
        assert f"import {name} as {name}" in source


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(edgekit, "nonsense")
