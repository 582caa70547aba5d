"""Drawing: cut distributions by hand, the inversion against one long cumulative sum, what can never be drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.kernels.drawing import BLOCK, SamplingParams, draw, logps_of


def test_cut_distributions():
    """Probabilities .5 .3 .15 .05: top_k 2 keeps two; top_p .6 keeps the one that crosses .6; renormalised."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log().repeat(1_000, 1)
    uniforms = torch.linspace(0, 0.999, 1_000, dtype=torch.float64)
    for options, kept in (
        ((1.0, 1.0, 2), {0: 0.5, 1: 0.3}),
        ((1.0, 0.6, 0), {0: 0.5, 1: 0.3}),
        ((1.0, 0.5, 0), {0: 0.5}),
    ):
        tokens, policy, sampling = draw(logits, uniforms, SamplingParams(*options))
        assert set(tokens.tolist()) == set(kept)
        for token, p in kept.items():
            i = tokens.tolist().index(token)
            assert policy[i].exp().item() == pytest.approx(p)
            assert sampling[i].exp().item() == pytest.approx(p / sum(kept.values()))


def test_impossible_tokens_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]], dtype=torch.float64).repeat(3, 1)
    tokens, _, _ = draw(logits, torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64), SamplingParams())
    assert tokens.tolist() == [1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(vocab=st.integers(2, 9 * BLOCK), scale=st.floats(0.0, 8.0), seed=st.integers(0, 2**32))
def test_the_inversion_equals_one_long_sum(vocab, scale, seed):
    """Also where the vocabulary is wide enough to be searched in blocks, whatever is left over in the last one."""
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(20, vocab, generator=rng, dtype=torch.float64)
    uniforms = torch.rand(20, generator=rng, dtype=torch.float64)
    tokens, logps, sampling_logps = draw(logits, uniforms, SamplingParams())
    cumulative = logits.softmax(-1).cumsum(-1)
    expected = torch.searchsorted(cumulative, (uniforms[:, None] * cumulative[:, -1:]), right=True).squeeze(-1)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logps, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0], rtol=1e-10, atol=1e-10)
    assert torch.equal(logps, sampling_logps)


def test_a_wide_vocabulary_follows_its_law():
    """Chi-square of 40,000 float32 draws over 3,000 tokens in 30 bins, most of the mass in a few tokens."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(3_000)
    uniforms = torch.rand(40_000, dtype=torch.float64)
    tokens = torch.cat([draw(logits.expand(len(u), -1), u, SamplingParams())[0] for u in uniforms.split(4_000)])
    counts = np.bincount(tokens.numpy() // 100, minlength=30)
    distribution = logits.double().softmax(-1).view(30, 100).sum(-1).numpy()
    assert stats.chisquare(counts, 40_000 * distribution / distribution.sum()).pvalue > 1e-3


@pytest.mark.parametrize("vocab", [5, 20 * BLOCK])
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval(vocab, uniform):
    """Only two tokens are possible: the first of them at 0, the second just below 1."""
    logits = torch.full((1, vocab), -torch.inf)
    logits[0, [vocab // 3, vocab // 2]] = 0.0
    token, _, _ = draw(logits, torch.tensor([uniform], dtype=torch.float64), SamplingParams())
    assert token.item() == (vocab // 3 if uniform == 0 else vocab // 2)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(0.7),
        SamplingParams(1.0, 0.8),
        SamplingParams(1.0, 1.0, 5),
        SamplingParams(0.0),
        SamplingParams(0.5, 0.9, 3),
    ],
)
def test_given_tokens_have_the_log_probs_of_drawn_ones(params):
    torch.manual_seed(1)
    logits = 3 * torch.randn(50, 40, dtype=torch.float64)
    tokens, *drawn = draw(logits, torch.rand(50, dtype=torch.float64), params)
    for got, expected in zip(logps_of(logits, tokens, params), drawn, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_token_that_is_cut_off_has_no_chance():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    policy, sampling = logps_of(logits, torch.tensor([2]), SamplingParams(1.0, 1.0, 2))
    assert policy.exp().item() == pytest.approx(0.2)
    assert sampling.item() == -torch.inf


@pytest.mark.parametrize(
    "params",
    [SamplingParams(), SamplingParams(0.0), SamplingParams(0.7), SamplingParams(1.0, 0.5), SamplingParams(1.0, 1.0, 2)],
)
@pytest.mark.parametrize("bad", [[torch.nan, 0.0, 1.0], [torch.inf, 0.0, 1.0], [-torch.inf] * 3])
def test_no_distribution_gives_nan_in_its_own_row_only(params, bad):
    logits = torch.tensor([bad, [0.0, 1.0, 2.0]])
    _, logps, _ = draw(logits, torch.tensor([0.3, 0.3], dtype=torch.float64), params)
    assert logps.isnan().tolist() == [True, False]
