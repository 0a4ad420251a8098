import pytest

from tests.serve.doubles import ScriptedRouter, site


@pytest.fixture
def router():
    return ScriptedRouter()


@pytest.fixture
def server(router):
    with site(router) as running:
        yield running


@pytest.fixture
def client(server):
    from openai import OpenAI

    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made
