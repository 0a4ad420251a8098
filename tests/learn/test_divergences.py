"""Losses without logits give the gradients of losses with them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from edgekit.learn import losses  # noqa: E402
from edgekit.learn.losses import Loss, cross_entropy, divergence, divergence_of_top  # noqa: E402


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    monkeypatch.setattr(losses, "PIECE", 5)


def made(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def direct(kind, student, teacher, temperature):
    p, q = F.softmax(teacher / temperature, -1), F.softmax(student / temperature, -1)
    if kind == "reverse":
        p, q = q, p
    elif kind == "skewed":
        q = 0.1 * p + 0.9 * q
    return (p * (p / q).log()).sum(-1).mean() * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["forward", "reverse", "skewed"])
def test_gradients(kind, temperature):
    hidden, head = made(2, 6, 8, seed=0).requires_grad_(), made(30, 8, seed=1).requires_grad_()
    target, target_head = made(2, 6, 4, seed=2), made(30, 4, seed=3)
    loss = divergence(hidden, head, target, target_head, Loss(kind, temperature))
    loss.backward()
    ours = hidden.grad, head.grad
    hidden.grad = head.grad = None
    expected = direct(kind, hidden @ head.T, target @ target_head.T, temperature)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, (hidden.grad, head.grad))


def test_the_same_distribution_costs_nothing():
    hidden, head = made(1, 7, 8, seed=0), made(30, 8, seed=1)
    for kind in ("forward", "reverse", "skewed"):
        assert abs(float(divergence(hidden, head, hidden, head, Loss(kind)))) < 1e-6


def test_cross_entropy_predicts_the_next_token():
    hidden, head = made(2, 6, 8, seed=0).requires_grad_(), made(30, 8, seed=1)
    tokens = torch.randint(30, (2, 6), generator=torch.Generator().manual_seed(5))
    loss = cross_entropy(hidden, head, tokens)
    loss.backward()
    ours, hidden.grad = hidden.grad, None
    expected = F.cross_entropy((hidden @ head.T)[:, :-1].reshape(-1, 30), tokens[:, 1:].reshape(-1))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours, hidden.grad)


def others(logprobs):
    return (1 - logprobs.exp().sum(-1)).log()


def test_all_tokens_as_the_likeliest_are_the_whole_divergence():
    hidden, head = made(1, 6, 8, seed=0).requires_grad_(), made(30, 8, seed=1)
    teacher = made(1, 6, 30, seed=2)
    logprobs, ids = F.log_softmax(teacher, -1).topk(29)
    some = divergence_of_top(hidden, head, ids, logprobs, others(logprobs), Loss())
    whole = direct("forward", hidden @ head.T, teacher, 1.0)
    torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-5)
    few = divergence_of_top(hidden, head, ids[..., :3], logprobs[..., :3], others(logprobs[..., :3]), Loss())
    assert 0 < few < whole
