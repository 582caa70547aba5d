"""Sampling: greedy equals transformers, seeds hold whatever the batch, log-probs equal a re-scoring, exact law."""

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.kernels import Group, sample, score
from workbench.kernels.sampling import _draw

PROMPTS = [[3, 4, 5], [6], [7, 8], [9, 10, 11, 12, 13], [2, 2], [5, 4, 3]]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_greedy_equals_generate(name, request):
    model = request.getfixturevalue(name)
    got = sample(model, PROMPTS, max_new_tokens=12, temperature=0.0)
    for prompt, tokens in zip(PROMPTS, got.tokens, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=1
        )
        assert tokens[0] == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.6}])
def test_same_seed_same_tokens_whatever_the_batch(name, options, request):
    model = request.getfixturevalue(name)
    one = sample(model, PROMPTS, n=3, max_new_tokens=10, seed=4, max_rows=3, **options)
    all_ = sample(model, PROMPTS, n=3, max_new_tokens=10, seed=4, max_rows=100, **options)
    assert one.tokens == all_.tokens
    assert one.tokens != sample(model, PROMPTS, n=3, max_new_tokens=10, seed=5, **options).tokens


def test_log_probs_equal_a_rescoring(tiny_llama):
    drawn = sample(tiny_llama, PROMPTS, n=4, max_new_tokens=9, seed=1, temperature=0.7)
    scores = score(tiny_llama, [Group(p, r) for p, r in zip(PROMPTS, drawn.tokens, strict=True)])
    for i in range(len(PROMPTS)):
        for k in range(4):
            got = torch.tensor(drawn.token_logps[i][k], dtype=torch.float64)
            torch.testing.assert_close(got, scores.token_logps[i, k, : len(got)].detach(), rtol=1e-6, atol=1e-6)


def test_end_tokens_end_and_rows_leave(tiny_llama):
    drawn = sample(tiny_llama, PROMPTS * 20, n=2, max_new_tokens=30, seed=2)
    reasons = [
        (tokens, reason)
        for t, r in zip(drawn.tokens, drawn.finish_reasons, strict=True)
        for tokens, reason in zip(t, r, strict=True)
    ]
    assert {reason for _, reason in reasons} == {"stop", "length"}
    for tokens, reason in reasons:
        assert 1 not in tokens[:-1]
        assert (tokens[-1] == 1) == (reason == "stop")
        assert reason == "stop" or len(tokens) == 30


def test_first_token_follows_the_exact_law(tiny_llama):
    """Chi-square of 6,000 draws against the model's own next-token probabilities."""
    n = 6_000
    drawn = sample(tiny_llama, [PROMPTS[0]], n=n, max_new_tokens=1, seed=3, max_rows=n)
    counts = np.bincount([tokens[0] for tokens in drawn.tokens[0]], minlength=23)
    with torch.no_grad():
        law = tiny_llama(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1).numpy()
    assert stats.chisquare(counts, n * law / law.sum()).pvalue > 1e-3


def test_cut_distributions():
    """Probabilities .5 .3 .15 .05: top_k 2 keeps two; top_p .6 keeps the one that crosses .6; renormalised."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log().repeat(1_000, 1)
    uniforms = torch.linspace(0, 0.999, 1_000, dtype=torch.float64)
    for options, kept in (
        ((1.0, 1.0, 2), {0: 0.5, 1: 0.3}),
        ((1.0, 0.6, 0), {0: 0.5, 1: 0.3}),
        ((1.0, 0.5, 0), {0: 0.5}),
    ):
        tokens, policy, sampling = _draw(logits, uniforms, *options[:1], *options[1:])
        assert set(tokens.tolist()) == set(kept)
        for token, p in kept.items():
            i = tokens.tolist().index(token)
            assert policy[i].exp().item() == pytest.approx(p)
            assert sampling[i].exp().item() == pytest.approx(p / sum(kept.values()))


def test_impossible_tokens_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]], dtype=torch.float64).repeat(3, 1)
    tokens, _, _ = _draw(logits, torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64), 1.0, 1.0, 0)
    assert tokens.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n and max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "need temperature >= 0"),
        ({"top_p": 0.0}, "0 < top_p <= 1"),
        ({"stop": ["x"]}, "stop texts need a tokenizer"),
    ],
)
def test_errors(tiny_llama, options, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny_llama, [[3]], **options)


def test_empty_prompt_is_named(tiny_llama):
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        sample(tiny_llama, [[3], []])
