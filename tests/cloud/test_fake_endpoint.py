"""The public fake speaks the protocol as the official client and ours understand it."""

from __future__ import annotations

import openai
import pytest

from edgekit.testing import serve_fake_openai
from edgekit.types.routing import Request
from tests.cloud.loopback import cleared, question

TEXT = "Two  words,\nand a line. \n"


def test_our_endpoint_understands_it(endpoint):
    with serve_fake_openai(TEXT) as fake:
        far = endpoint(fake.url)
        for request in (question("one two three"), cleared(Request(prompt="one two three"))):
            reply = far.ask(request)
            pieces = list(reply)
            assert "".join(pieces) == TEXT
            assert len(pieces) == 5
            assert (reply.finish, reply.prompt_tokens, reply.new_tokens) == ("stop", 3, 5)
    assert [b.get("prompt") for b in fake.bodies] == [None, "one two three"]
    assert fake.headers[0]["authorization"].startswith("Bearer ")


@pytest.mark.parametrize("stream", [True, False])
def test_so_does_the_official_client(stream):
    with serve_fake_openai(lambda body: body["messages"][0]["content"][::-1], model="mirror") as fake:
        client = openai.OpenAI(base_url=fake.url, api_key="x")
        got = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "abc"}], stream=stream)
        if stream:
            assert "".join(c.choices[0].delta.content or "" for c in got if c.choices) == "cba"
        else:
            assert got.choices[0].message.content == "cba"
        assert [m.id for m in client.models.list()] == ["mirror"]
        client.close()
