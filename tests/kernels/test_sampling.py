"""Sampling: greedy equals `generate`, seeds hold whatever the batch, log-probs equal a re-scoring, the distribution is
exact."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.kernels import Group, sample, score

pytestmark = pytest.mark.usefixtures("both_loops")

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
        distribution = tiny_llama(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1).numpy()
    assert stats.chisquare(counts, n * distribution / distribution.sum()).pvalue > 1e-3


@pytest.mark.parametrize("max_rows", [3, 5, 100])
def test_k_greedy_responses_are_k_times_that_of_generate(tiny_llama, max_rows):
    """Shared prompts, fewer slots than responses of a prompt, and more than there are rows."""
    prompts, options = PROMPTS[:4], {"max_new_tokens": 8, "temperature": 0.0}
    got = sample(tiny_llama, prompts, n=8, max_rows=max_rows, **options)
    assert got.tokens == [[tokens[0]] * 8 for tokens in sample(tiny_llama, prompts, **options).tokens]


def test_whole_responses_follow_the_exact_law(tiny_llama):
    """Chi-square of 4,000 responses of up to two tokens against the enumerated distribution, at temperature 0.8 and
    top_k 4."""
    n, prompt = 4_000, [3, 4, 5]
    drawn = sample(tiny_llama, [prompt], n=n, max_new_tokens=2, seed=5, temperature=0.8, top_k=4, max_rows=512)
    distribution = {}

    def next_law(ids):
        with torch.no_grad():
            logits = tiny_llama(input_ids=torch.tensor([ids])).logits[0, -1] / 0.8
        best = logits.topk(4)
        return zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True)

    for first, p in next_law(prompt):
        for second, q in next_law([*prompt, first]) if first != 1 else [(None, 1.0)]:
            distribution[(first,) if second is None else (first, second)] = p * q
    counts = Counter(map(tuple, drawn.tokens[0]))
    assert set(counts) <= set(distribution)
    assert stats.chisquare([counts[r] for r in distribution], [n * p for p in distribution.values()]).pvalue > 1e-3
    for response, logps in zip(drawn.tokens[0][:50], drawn.sampling_token_logps[0], strict=False):
        assert math.exp(sum(logps)) == pytest.approx(distribution[tuple(response)])


# -- prefixes
def test_the_beginning_of_a_sample_as_its_prefix_goes_on_as_the_sample_did(tiny_llama):
    """Each response cut at another place, one list a response; log-probs of the prefix come too."""
    whole = sample(tiny_llama, PROMPTS, n=3, max_new_tokens=12, seed=9)
    cuts = [[min(len(r) - 1, i + k) for k, r in enumerate(line)] for i, line in enumerate(whole.tokens)]
    prefix = [[r[:c] for r, c in zip(line, cut, strict=True)] for line, cut in zip(whole.tokens, cuts, strict=True)]
    for max_rows in (2, 50):
        again = sample(tiny_llama, PROMPTS, n=3, max_new_tokens=12, seed=9, prefix=prefix, max_rows=max_rows)
        for i, line in enumerate(whole.tokens):
            for k, response in enumerate(line):
                assert again.tokens[i][k][: len(response)] == response
                assert len(again.tokens[i][k]) <= 12 + cuts[i][k]
                for name in ("token_logps", "sampling_token_logps"):
                    got, expected = getattr(again, name)[i][k], getattr(whole, name)[i][k]
                    assert got[: len(response)] == pytest.approx(expected, abs=1e-6)


def test_one_prefix_a_prompt_is_kept_to_the_token(tiny_llama):
    prefix = [[7, 8, 9], [], [5], [6, 6], [], [2]]
    drawn = sample(tiny_llama, PROMPTS, n=2, max_new_tokens=4, seed=1, prefix=prefix, temperature=0.7)
    scores = score(tiny_llama, [Group(p, r) for p, r in zip(PROMPTS, drawn.tokens, strict=True)], route="padded")
    for i, given in enumerate(prefix):
        for k, response in enumerate(drawn.tokens[i]):
            assert response[: len(given)] == given
            assert len(given) < len(response) <= len(given) + 4
            got, expected = drawn.token_logps[i][k], scores.token_logps[i, k, : len(response)]
            assert got == pytest.approx(expected.tolist(), abs=1e-6)


def test_one_length_a_prompt(tiny_llama):
    """A shorter response is the beginning of the longer one."""
    lengths = [1, 7, 3, 12, 2, 5]
    prefix = [[], [7, 8], [], [5], [], []]
    options = {"n": 2, "seed": 4, "prefix": prefix}
    whole = sample(tiny_llama, PROMPTS, max_new_tokens=12, **options).tokens
    cut = sample(tiny_llama, PROMPTS, max_new_tokens=lengths, **options).tokens
    assert cut == [
        [r[: len(prefix[i]) + length] for r in line]
        for i, (line, length) in enumerate(zip(whole, lengths, strict=True))
    ]


# -- seeds
def test_a_seed_a_prompt_makes_texts_independent_of_the_others(tiny_llama):
    seeds = [3, 2**70, -1, 3, 8, 3]
    together = sample(tiny_llama, PROMPTS, n=2, max_new_tokens=8, seed=seeds).tokens
    for i, prompt in enumerate(PROMPTS):
        assert sample(tiny_llama, [prompt], n=2, max_new_tokens=8, seed=seeds[i]).tokens[0] == together[i]


def test_the_streams_of_published_runs(tiny_llama):
    """Numbers drawn before slots existed: a change here changes the text of every published run."""
    drawn = sample(tiny_llama, PROMPTS[:2], n=2, max_new_tokens=6, seed=4)
    uniforms = np.random.Generator(np.random.Philox(key=4, counter=[0, 0, 0, 1])).random(6)
    ids, expected = list(PROMPTS[1]), []
    for u in uniforms:
        with torch.no_grad():
            distribution = tiny_llama(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1).cumsum(-1)
        expected.append(int(torch.searchsorted(distribution, float(u), right=True)))
        ids.append(expected[-1])
        if expected[-1] == 1:
            break
    assert drawn.tokens[1][0] == expected


# -- ends
def test_stop_tokens_end_beside_all_end_tokens(tiny_llama, monkeypatch):
    monkeypatch.setattr(tiny_llama.generation_config, "eos_token_id", [1, 5])
    drawn = sample(tiny_llama, PROMPTS, n=8, max_new_tokens=30, seed=2, stop_tokens=[9])
    last = {response[-1] for line in drawn.tokens for response in line}
    assert {1, 5, 9} <= last
    assert not {1, 5, 9} & {token for line in drawn.tokens for response in line for token in response[:-1]}


@pytest.fixture(scope="module")
def policy():
    """A byte-level policy that writes its prompt's letters at random."""
    from workbench.models import Policy, bpe_tokenizer, new_llama

    tokenizer = bpe_tokenizer(["abc"], vocab_size=270)
    model = new_llama(tokenizer, width=16, layers=1, heads=2, max_length=96, seed=0).double()
    with torch.no_grad():  # only four letters and the line end are ever likely
        model.lm_head.weight.mul_(0.1)
        letters = torch.tensor(tokenizer.convert_tokens_to_ids([*"abxy", "Ċ"]))
        bias = torch.full((model.config.vocab_size,), -30.0, dtype=torch.float64)
        bias[letters] = 0.0
        model.lm_head.bias = torch.nn.Parameter(bias)
    return Policy(model.eval(), tokenizer)


def test_a_stop_text_over_several_tokens_ends_where_it_is_complete(policy):
    drawn = sample(policy, ["ab", "ab"], n=20, max_new_tokens=60, seed=1, stop=["ab\n", "xyx"])
    texts = [policy.decode(tokens) for line in drawn.tokens for tokens in line]
    reasons = [reason for line in drawn.finish_reasons for reason in line]
    assert {"stop", "length"} >= set(reasons) >= {"stop"}
    for text, reason in zip(texts, reasons, strict=True):
        assert not any(s in text[:-1] for s in ("ab\n", "xyx"))
        assert text.endswith(("ab\n", "xyx")) == (reason == "stop")


def test_a_stop_text_in_prompt_or_prefix_does_not_end_a_response(policy):
    """But one that begins in the prefix and is completed behind it does, or a sample could not be gone on with."""
    ab, a = (policy.tokenizer(text, add_special_tokens=False).input_ids for text in ("xab", "xa"))
    drawn = sample(policy, ["ab"] * 2, n=10, max_new_tokens=30, seed=1, stop=["ab"], prefix=[ab, a])
    texts = [[policy.decode(tokens) for tokens in line] for line in drawn.tokens]
    assert all(len(text) > 3 and "ab" not in text[2:-1] for text in texts[0])
    assert any(text == "xab" for text in texts[1])
    assert all(text.index("ab") == len(text) - 2 for text in texts[1] if "ab" in text)


# -- what is refused, and precision
@pytest.mark.parametrize("n", [1, 3])
def test_nan_names_the_prompt(tiny_llama, n):
    """Token 13 has an embedding of NaN: only the prompt that has it is named."""
    broken = copy.deepcopy(tiny_llama)
    broken.model.embed_tokens.weight.data[13] = torch.nan
    with pytest.raises(FloatingPointError, match="prompt 3, response 0: the logits of token 0 are NaN or infinite"):
        sample(broken, PROMPTS, n=n, max_new_tokens=4)
    with pytest.raises(FloatingPointError, match="prompt 1, response 0: the logits of token"):
        sample(broken, PROMPTS[:2], n=n, max_new_tokens=4, prefix=[[], [5, 13, 5]])


def test_bf16_is_within_its_stated_error(policy):
    """Under autocast the policy's log-probs stay within 0.02 nats of float32 for this model; text may differ."""
    from workbench.models import Policy

    model = copy.deepcopy(policy.model).float()
    prompts = ["ab", "abxy", "y"]
    half = Policy(model, policy.tokenizer, precision="bf16")
    drawn = sample(half, prompts, n=4, max_new_tokens=10, seed=1)
    groups = [Group(policy.encode_prompt(p), r) for p, r in zip(prompts, drawn.tokens, strict=True)]
    exact = score(model, groups, route="padded").token_logps
    rescored = score(half, groups, route="padded").token_logps
    for i in range(3):
        for k, logps in enumerate(drawn.token_logps[i]):
            assert logps == pytest.approx(exact[i, k, : len(logps)].tolist(), abs=0.02)
            assert logps == pytest.approx(rescored[i, k, : len(logps)].tolist(), abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n and max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "need temperature >= 0"),
        ({"top_p": 0.0}, "0 < top_p <= 1"),
        ({"stop": ["x"]}, "stop texts need a tokenizer"),
        ({"max_rows": 0}, "max_rows too; got n=1, max_new_tokens=256, max_rows=0"),
        ({"engine": "tgi"}, "engine must be one of workbench, transformers, vllm; got 'tgi'"),
        ({"max_new_tokens": [4, 4]}, "max_new_tokens needs one number a prompt; got 2 for 1 prompts"),
        ({"max_new_tokens": [0]}, "max_new_tokens must be at least 1"),
        ({"seed": [1, 2]}, "seed needs one number a prompt; got 2 for 1 prompts"),
        ({"prefix": [[3], [4]]}, "prefix needs one entry a prompt; got 2 for 1 prompts"),
        ({"prefix": [[[3], [4]]]}, "the prefix of prompt 0 must be token ids, or n=1 lists of token ids"),
        ({"prefix": [[3, 1, 4]]}, "the prefix of prompt 0 contains token 1, which ends a response"),
    ],
)
def test_errors(tiny_llama, options, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny_llama, [[3]], **options)


def test_empty_prompt_is_named(tiny_llama):
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        sample(tiny_llama, [[3], []])
