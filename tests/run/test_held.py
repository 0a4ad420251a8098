"""A runner between prompts: the first tokens that two prompts share are fed once, where they are many enough."""

import pytest

from edgekit.run import HeldPrompt
from edgekit.run.text import Tokenizer
from edgekit.testing import FakeRunner, tiny_tokenizer
from edgekit.types import Sampling

FOUR = Sampling(max_new_tokens=4)


class Counting(FakeRunner):
    """Counts what prompts are fed, and can go back."""

    def __init__(self) -> None:
        super().__init__()
        self.fed: list[int] = []

    def prefill(self, tokens):
        self.fed.append(len(tokens))
        return super().prefill(tokens)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.length = length


@pytest.fixture
def tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer as Codec

    return Tokenizer(Codec.from_str(tiny_tokenizer()))


def test_shared_tokens_are_fed_once(tokenizer):
    runner = Counting()
    held = HeldPrompt(runner, tokenizer)
    first = [5, 6, 7, 8]
    answer = [e.token for e in held.generate(first, FOUR)]
    assert held.tokens == (first + answer)[: runner.length]
    list(held.generate([*first, answer[0], 9, 10], FOUR))
    assert runner.fed == [4, 2]


def test_few_shared_tokens_are_fed_again(tokenizer):
    runner = Counting()
    held = HeldPrompt(runner, tokenizer, at_least=6)
    list(held.generate([5, 6, 7, 8], FOUR))
    list(held.generate([5, 6, 7, 8, 9], FOUR))
    assert runner.fed == [4, 5]


def test_the_same_prompt_again_feeds_its_last_token(tokenizer):
    runner = Counting()
    held = HeldPrompt(runner, tokenizer)
    tokens = [[e.token for e in held.generate([5, 6, 7, 8], FOUR)] for _ in range(2)]
    assert runner.fed == [4, 1]
    assert tokens[0] == tokens[1]


def test_a_closed_answer_leaves_what_was_fed(tokenizer):
    runner = Counting()
    held = HeldPrompt(runner, tokenizer)
    answer = held.generate([5, 6, 7], FOUR)
    token = next(answer).token
    answer.close()
    assert held.tokens == [5, 6, 7]
    list(held.generate([5, 6, 7, token, 3], FOUR))
    assert runner.fed == [3, 2]
