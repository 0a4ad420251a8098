"""Drafts from what was said before: what is drafted, when, and that answers do not depend on it."""

from itertools import count, pairwise

import numpy as np
import pytest
import tokenizers

from edgekit.run import Tokenizer, generate, load_runner, speculative
from edgekit.run.speculative import LENGTHS, DraftPolicy, NgramDrafter, SpeculativeDecoder, Verifier, top2_logit_gap
from edgekit.testing import FakeRunner, tiny_tokenizer
from edgekit.types import Sampling

TEXT = "Paris is the capital of France, and Rome of Italy. " * 4
PROMPT = [5, 6, 7]


class Copyist(FakeRunner):
    """Recites a script whatever it is fed; ``leads[position]`` is the best logit's lead, and runs err by ``error``."""

    def __init__(self, script, *, leads=None, error=0.0, rounding=0.0, **options):
        super().__init__(**options)
        self._script = dict(enumerate(script, start=len(PROMPT)))
        self._leads = leads or {}
        self._error = error
        self._rows = np.zeros((16, self.vocab_size), np.float32)
        self.pace = DraftPolicy(rounding)
        self.runs = []

    def _row(self, position, error=0.0):
        logits = np.zeros(self.vocab_size, np.float32)
        logits[1] = error
        logits[self._script.get(position, 0)] = self._leads.get(position, 5) - error
        return logits

    def prefill(self, tokens):
        super().prefill(tokens)
        return self._row(self.length)

    def step(self, token):
        super().step(token)
        return self._row(self.length)

    def verify(self, tokens):
        self.runs.append(len(tokens))
        rows = self._rows[: len(tokens)]
        for row in rows:
            self.length += 1
            row[:] = self._row(self.length, self._error)
        return rows

    def rewind(self, length):
        assert 0 <= length <= self.length
        self.length = length


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(tokenizers.Tokenizer.from_str(tiny_tokenizer()), eos_ids=[2])


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Every look at the clock is a second later: a run over a draft costs one step."""
    seconds = count()
    monkeypatch.setattr(speculative, "perf_counter", lambda: next(seconds))


def both(make, tokenizer, sampling, prompt=PROMPT, **options):
    """The same answer without and with lookup: (runner, generation, emitted) of each."""
    done = []
    for drafts in (False, True):
        runner = make()
        generation = generate(runner, tokenizer, prompt, sampling, lookup=drafts, **options)
        done.append((runner, generation, list(generation)))
    return done


def assert_same(plain, drafted):
    assert drafted[2] == plain[2]
    assert drafted[1].tokens == plain[1].tokens
    assert drafted[1].finish == plain[1].finish
    assert drafted[0].length == plain[0].length


def test_a_draft_is_what_followed_the_last_time():
    assert NgramDrafter([1, 2, 3, 4, 5, 1, 2, 3]).draft(2) == [4, 5]
    assert NgramDrafter([1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3]).draft(2) == [5, 9]
    assert NgramDrafter([8, 2, 3, 4, 9, 7, 2, 3]).draft(2) == [4, 9]
    # three tokens say more than the two that came later
    assert NgramDrafter([1, 2, 3, 4, 9, 7, 2, 3, 5, 9, 1, 2, 3]).draft(1) == [4]


def test_no_draft_where_nothing_matches():
    for tokens in ([], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 3, 2]):
        drafter = NgramDrafter(tokens)
        assert drafter.guess is None and drafter.draft(5) == []


def test_a_draft_that_reaches_the_end_goes_round():
    drafter = NgramDrafter([9, 1, 2, 3, 1, 2, 3])
    assert drafter.draft(7) == [1, 2, 3, 1, 2, 3, 1]
    assert drafter.guess == 1


def test_a_match_is_followed_while_it_is_right():
    drafter = NgramDrafter([1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert drafter.run == 0
    for token, run in ((4, 1), (5, 2), (6, 3), (9, 0)):
        drafter.push(token)
        assert drafter.run == run
    assert drafter.guess is None


def test_drafts_against_a_search_of_all_tokens():
    random = np.random.default_rng(3)
    tokens = random.integers(0, 4, 300).tolist()
    drafter, following = NgramDrafter(tokens[:3]), 0
    for at in range(3, len(tokens)):
        if drafter.guess != tokens[at]:
            drafter.push(tokens[at])
            ends = [[i for i in range(n, at + 1) if tokens[i - n : i] == tokens[at + 1 - n : at + 1]] for n in (3, 2)]
            latest = next((found[-1] for found in ends if found), None)
            assert drafter.guess == (None if latest is None else tokens[latest])
        else:
            drafter.push(tokens[at])
            following += 1
    assert following > 50


def test_lead_leaves_the_logits_as_they_were():
    logits = np.array([1, 5, 3.5], np.float32)
    assert top2_logit_gap(logits) == (1, 1.5)
    assert logits.tolist() == [1, 5, 3.5]


def test_an_answer_that_repeats_itself_takes_fewer_runs(tokenizer):
    script = [*tokenizer.encode(TEXT * 2), 2]
    plain, drafted = both(lambda: Copyist(script), tokenizer, Sampling(), signals=True)
    assert_same(plain, drafted)
    assert plain[1].drafted == 0 and not plain[0].runs
    assert drafted[1].accepted > len(script) // 2
    assert drafted[1].drafted == sum(n - 1 for n in drafted[0].runs)


@pytest.mark.parametrize(
    ("sampling", "context", "finish"),
    [
        (Sampling(), 512, "eos"),
        *((Sampling(max_new_tokens=n), 512, "length") for n in (1, 2, 40, 41, 47)),
        *((Sampling(), n, "context") for n in (4, 5, 40, 41, 47)),
        *((Sampling(stop=(stop,)), 512, "stop") for stop in ("Italy. Paris is", "Italy. Paris is the capital o")),
    ],
)
def test_every_end_is_where_it_is_without_drafts(tokenizer, sampling, context, finish):
    script = [*tokenizer.encode(TEXT), 2]
    plain, drafted = both(lambda: Copyist(script, context_length=context), tokenizer, sampling)
    assert drafted[1].finish == finish
    assert_same(plain, drafted)


def test_the_end_token_in_the_middle_of_a_draft_ends(tokenizer):
    script = [10, 11, 12, 13, 2, 14] * 4
    plain, drafted = both(lambda: Copyist(script), tokenizer, Sampling(), [5, 10, 11, 12, 13, 2, 14][:3])
    assert drafted[1].finish == "eos"
    assert_same(plain, drafted)


def test_cancelled_after_any_token_the_runner_holds_what_was_fed(tokenizer):
    script = tokenizer.encode(TEXT)
    ahead = 0
    for stop in range(1, 60):
        runner = Copyist(script)
        generation = generate(runner, tokenizer, PROMPT, Sampling())
        for _ in range(stop):
            next(generation)
        ahead += runner.length > len(PROMPT) + stop - 1
        generation.close()
        assert generation.finish == "cancelled"
        assert runner.length == len(PROMPT) + stop - 1
    assert ahead > 10


def test_ctrl_c_during_a_run_cancels(tokenizer):
    class Interrupted(Copyist):
        def verify(self, tokens):
            self.length += len(tokens)
            raise KeyboardInterrupt

    runner = Interrupted(tokenizer.encode(TEXT))
    generation = generate(runner, tokenizer, PROMPT, Sampling())
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    assert generation.finish == "cancelled"
    assert runner.length <= len(PROMPT) + len(generation.tokens)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.5), Sampling(repetition_penalty=1.1)])
def test_only_greedy_answers_are_drafted(tokenizer, sampling):
    runner = Copyist(tokenizer.encode(TEXT))
    generation = generate(runner, tokenizer, PROMPT, sampling)
    list(generation)
    assert generation.drafted == 0 and not runner.runs


def test_drafts_that_may_change_an_answer_are_asked_for(tokenizer):
    for rounding, asked, expected in ((0.0, None, True), (0.3, None, False), (0.3, True, True), (0.0, False, False)):
        runner = Copyist(tokenizer.encode(TEXT), rounding=rounding)
        generation = generate(runner, tokenizer, PROMPT, Sampling(), lookup=asked)
        list(generation)
        assert (generation.drafted > 0) == bool(runner.runs) == expected


def test_a_runner_without_runs_over_drafts_steps(tokenizer):
    assert not isinstance(FakeRunner(), Verifier)
    generation = generate(FakeRunner(), tokenizer, PROMPT, Sampling(max_new_tokens=30))
    assert len(list(generation)) == 30 and generation.drafted == 0


def test_what_leads_by_less_than_the_guard_is_decided_by_a_step(tokenizer):
    """Every sixth position is a near-tie that runs get wrong: the guard is why the answer does not change."""
    script = [*tokenizer.encode(TEXT), 2]
    ties = dict.fromkeys(range(len(PROMPT) + 2, len(PROMPT) + len(script), 6), 0.5)

    def answer(rounding):
        return both(lambda: Copyist(script, leads=ties, error=1.0, rounding=rounding), tokenizer, Sampling())

    spread = Copyist(script).prefill(PROMPT).std()
    plain, drafted = answer(1.01 / spread)
    assert_same(plain, drafted)
    assert 0 < drafted[1].accepted < drafted[1].drafted
    plain, drafted = answer(0.0)
    assert drafted[1].tokens != plain[1].tokens


def test_the_guard_grows_with_what_is_seen(tokenizer):
    script = tokenizer.encode(TEXT)
    runner = Copyist(script, leads=dict.fromkeys(range(500), 0.2), error=0.1, rounding=0.0)
    runner.pace.guard = 0.15
    list(generate(runner, tokenizer, PROMPT, Sampling(max_new_tokens=60)))
    assert runner.pace.guard == pytest.approx(0.15)
    pace = DraftPolicy(0.5)
    pace.begin(np.array([0, 2, 0, 2], np.float32))
    assert pace.guard == 0.5
    pace.compared(np.array([1, 2], np.float32), np.array([1, 1.25], np.float32))
    assert pace.guard == 0.75
    pace.begin(np.zeros(4, np.float32))
    assert pace.guard == 0.75


def test_runs_that_cost_too_much_stop_and_are_tried_again(tokenizer, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speculative, "perf_counter", lambda: now[0])

    class Timed(Copyist):
        price = 30.0

        def step(self, token):
            now[0] += 1
            return super().step(token)

        def verify(self, tokens):
            now[0] += self.price
            self.at.append(self.length)
            return super().verify(tokens)

    runner = Timed([10, 11, 12, 13] * 700, context_length=4000)
    runner.at = []
    list(generate(runner, tokenizer, PROMPT, Sampling(max_new_tokens=1500)))
    tries = len(runner.at)
    assert 2 <= tries < 20
    assert max(later - earlier for earlier, later in pairwise(runner.at)) > 100
    assert now[0] < 1.2 * 1500
    Timed.price, runner.at = 1.0, []
    list(generate(runner, tokenizer, PROMPT, Sampling(max_new_tokens=1500)))
    assert len(runner.at) > tries


def test_text_that_does_not_repeat_is_stepped(tokenizer):
    script = np.random.default_rng(0).permutation(np.arange(3, 384)).tolist()
    runner = Copyist(script)
    generation = generate(runner, tokenizer, PROMPT, Sampling(max_new_tokens=300))
    assert len(list(generation)) == 300 and not runner.runs


def test_guesses_that_are_wrong_are_not_run(tokenizer):
    """Pairs of tokens come again and again, and what follows them never does."""
    fresh = iter(np.random.default_rng(0).permutation(np.arange(20, 384)).tolist())
    script = [token for _ in range(150) for token in (10, 11, next(fresh))]
    runner = Copyist(script)
    generation = generate(runner, tokenizer, PROMPT, Sampling(max_new_tokens=400))
    list(generation)
    assert generation.tokens == script[:400]
    assert sum(runner.runs) < 40


def test_pace_drafts_longer_the_longer_it_was_right():
    pace = DraftPolicy()
    pace.stepped(1.0)
    lengths = [pace.length(run, 15) for run in (0, 1, 2, 4, 8, 16)]
    assert lengths[0] == 0 and lengths == sorted(lengths) and lengths[-1] >= 7
    assert pace.length(16, 4) == 3 and pace.length(16, 0) == 0
    for _ in range(50):
        pace.judged(16, right=False)
    assert pace.length(16, 15) == 0


@pytest.mark.parametrize("dialect", ["in place", "append"])
def test_a_model_answers_alike_with_drafts_accepted_and_refused(big_bundle_of, tokenizer, dialect):
    runner = load_runner(big_bundle_of(dialect), threads=1)
    random = np.random.default_rng(5)
    drafted = accepted = 0
    for i in range(8):
        part = random.integers(3, 384, 20).tolist()
        prompt = part * 3 if i % 2 else [*part, *part[::2], *part]
        plain, other = both(lambda: runner, tokenizer, Sampling(max_new_tokens=150), prompt)
        assert other[1].tokens == plain[1].tokens
        drafted, accepted = drafted + other[1].drafted, accepted + other[1].accepted
    runner.close()
    assert 0 < accepted < drafted


@pytest.mark.parametrize("dialect", ["in place", "append"])
def test_a_run_over_a_draft_equals_its_steps(bundle_of, dialect):
    runner = load_runner(bundle_of(dialect), threads=1, context=300)
    tokens = np.random.default_rng(1).integers(0, 50, 280).tolist()
    whole = runner.logits(tokens)
    runner.reset()
    runner.prefill(tokens[:250])
    first = runner.verify(tokens[250:258])
    np.testing.assert_allclose(first, whole[250:258], atol=1e-4)
    assert runner.length == 258
    runner.rewind(253)
    np.testing.assert_allclose(runner.step(tokens[253]), whole[253], atol=1e-4)
    again = runner.verify(tokens[254 : 254 + 1 + max(LENGTHS)])
    np.testing.assert_allclose(again, whole[254 : 254 + 1 + max(LENGTHS)], atol=1e-4)
    assert np.shares_memory(first, again)
    runner.close()


def test_lookahead_feeds_in_order(tokenizer):
    """A SpeculativeDecoder alone: its logits are the script's, and settling leaves what was fed."""
    script = tokenizer.encode(TEXT)
    runner = Copyist(script)
    ahead = SpeculativeDecoder(runner, PROMPT, runner.prefill(PROMPT))
    for i, token in enumerate(script[:-1]):
        assert int(ahead.step(token, 200).argmax()) == script[i + 1]
    ahead.settle()
    assert runner.length == len(PROMPT) + len(script) - 1
