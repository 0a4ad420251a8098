import pytest

from edgekit import build_bundle
from edgekit.testing import tiny_checkpoint


def cache_folder(factory):
    return str(factory.getbasetemp() / "cache")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("cli") / "tiny")


@pytest.fixture(scope="session")
def bundle(checkpoint, tmp_path_factory):
    """Do not write into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", cache_folder(tmp_path_factory))  # which knows where the checkpoint lies
        return build_bundle(str(checkpoint), precision="int4", out=checkpoint.parent / "tiny-int4").path


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """A bundle that talks for many seconds when nobody stops it: 16,000 tokens fit its context."""
    model = tiny_checkpoint(tmp_path_factory.mktemp("talker") / "tiny", max_position_embeddings=16384)
    return build_bundle(str(model), precision="fp32", out=model.parent / "bundle").path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", cache_folder(tmp_path_factory))
