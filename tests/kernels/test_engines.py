"""Other engines behind the same call: the same greedy text, the same distribution, log-probs that equal a
re-scoring."""

import copy
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.kernels import Group, sample, score
from workbench.models import add_lora

PROMPTS = [[3, 4, 5], [6], [7, 8], [9, 10, 11, 12, 13], [2, 2], [5, 4, 3]]


def assert_rescored(model, prompts, drawn, **options):
    scores = score(model, [Group(p, r) for p, r in zip(prompts, drawn.tokens, strict=True)], route="padded")
    for i, line in enumerate(drawn.token_logps):
        for k, logps in enumerate(line):
            assert logps == pytest.approx(scores.token_logps[i, k, : len(logps)].detach().tolist(), abs=1e-6)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_greedy_is_the_same_on_both(name, request):
    model = request.getfixturevalue(name)
    options = {"n": 2, "max_new_tokens": 10, "temperature": 0.0, "prefix": [[4, 4], [], [9], [], [], [2]]}
    ours, theirs = (
        sample(model, PROMPTS, **options),
        sample(model, PROMPTS, engine="transformers", max_rows=5, **options),
    )
    assert theirs.tokens == ours.tokens
    assert theirs.finish_reasons == ours.finish_reasons
    assert_rescored(model, PROMPTS, theirs)


def test_generate_draws_from_the_same_law(tiny_llama, monkeypatch):
    """Chi-square of 3,000 first tokens; a repetition penalty in the model's own settings must not leak in."""
    monkeypatch.setattr(tiny_llama.generation_config, "repetition_penalty", 3.0)
    monkeypatch.setattr(tiny_llama.generation_config, "top_k", 2)
    options = {"n": 3_000, "max_new_tokens": 1, "temperature": 0.7, "top_k": 6}
    drawn = sample(tiny_llama, [[3, 4]], engine="transformers", max_rows=3_000, seed=1, **options)
    counts = np.bincount([tokens[0] for tokens in drawn.tokens[0]], minlength=23)
    with torch.no_grad():
        logits = tiny_llama(input_ids=torch.tensor([[3, 4]])).logits[0, -1] / 0.7
    best = logits.topk(6)
    distribution = np.zeros(23)
    distribution[best.indices] = best.values.softmax(-1)
    assert (counts[distribution == 0] == 0).all()
    assert (
        stats.chisquare(counts[distribution > 0], 3_000 * distribution[distribution > 0] / distribution.sum()).pvalue
        > 1e-3
    )
    for (token,), (logp,) in zip(drawn.tokens[0][:20], drawn.sampling_token_logps[0], strict=False):
        assert np.exp(logp) == pytest.approx(distribution[token])
    assert tiny_llama.generation_config.repetition_penalty == 3.0


def test_generate_keeps_seed_prefix_ends_and_generator(tiny_llama):
    before = torch.random.get_rng_state()
    options = {"n": 4, "max_new_tokens": 20, "stop_tokens": [9], "prefix": [[4, 5]] * 6, "engine": "transformers"}
    one, same, other = (sample(tiny_llama, PROMPTS, seed=seed, **options) for seed in (1, 1, 2))
    assert one.tokens == same.tokens != other.tokens
    assert torch.equal(torch.random.get_rng_state(), before)
    for line, reasons in zip(one.tokens, one.finish_reasons, strict=True):
        for response, reason in zip(line, reasons, strict=True):
            assert response[:2] == [4, 5]
            assert (response[-1] in (1, 9)) == (reason == "stop")
            assert not {1, 9} & set(response[:-1])
            assert reason == "stop" or len(response) == 22
    assert_rescored(tiny_llama, PROMPTS, one)


def test_generate_stops_at_texts():
    from workbench.models import Policy, bpe_tokenizer, new_llama

    tokenizer = bpe_tokenizer(["abc"], vocab_size=262)
    policy = Policy(new_llama(tokenizer, width=8, layers=1, heads=2, max_length=64, seed=0), tokenizer)
    drawn = sample(policy, ["ab"], n=6, max_new_tokens=50, seed=1, stop=list("abcdefghij"), engine="transformers")
    for text, reason in zip(drawn.texts[0], drawn.finish_reasons[0], strict=True):
        assert not set(text[:-1]) & set("abcdefghij")
        assert (text[-1:] in set("abcdefghij")) == (reason == "stop")
    assert "stop" in drawn.finish_reasons[0]


def test_generate_with_nan_names_the_prompt(tiny_llama):
    """The argmax of NaN is a token like any other: only the re-scoring can tell."""
    broken = copy.deepcopy(tiny_llama)
    broken.model.embed_tokens.weight.data[13] = torch.nan
    with pytest.raises(FloatingPointError, match="prompt 0, response 0: the logits of token 0 are NaN"):
        sample(broken, [[9, 13]], max_new_tokens=4, temperature=0.0, engine="transformers")


def test_vllm_that_is_not_there_is_one_line(tiny_llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match='engine="vllm" needs vLLM and a GPU'):
        sample(tiny_llama, PROMPTS, engine="vllm")


@pytest.fixture
def stand_in(monkeypatch):
    """A module in vLLM's place that answers greedily from the folder that it is given. It shows that weights, adapter,
    limits and ends arrive and that answers are read as vLLM's documentation writes them; not that vLLM agrees."""
    asked = []

    class LLM:
        def __init__(self, model, **options):
            from transformers import AutoModelForCausalLM

            asked.append(options)
            self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, options["dtype"])).eval()

        def generate(self, prompts, params):
            asked.extend(params)
            answers = []
            for prompt, one in zip(prompts, params, strict=True):
                ids, reason = list(prompt["prompt_token_ids"]), "length"
                for _ in range(one.max_tokens):
                    with torch.no_grad():
                        ids.append(int(self.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
                    if ids[-1] in one.stop_token_ids:
                        reason = "stop"
                        break
                new = ids[len(prompt["prompt_token_ids"]) :]
                logps = [{token: SimpleNamespace(logprob=-0.25 * t)} for t, token in enumerate(new)]
                output = SimpleNamespace(token_ids=tuple(new), logprobs=logps, finish_reason=reason)
                answers.append(SimpleNamespace(outputs=[output]))
            return answers

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (50, 100))
    return asked


def test_vllm_gets_the_present_weights_and_its_answers_are_read(tiny_llama, stand_in):
    model = add_lora(copy.deepcopy(tiny_llama), r=2).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    options = {"n": 2, "max_new_tokens": 8, "prefix": [[4, 4], [], [9], [], [], [2]], "stop_tokens": [5], "top_k": 1}
    drawn = sample(model, PROMPTS, engine="vllm", max_rows=7, **options)
    expected = sample(model, PROMPTS, **options)
    assert drawn.tokens == expected.tokens
    assert drawn.finish_reasons == expected.finish_reasons
    assert_rescored(model, PROMPTS, drawn)
    assert drawn.sampling_token_logps[0][0][2:4] == [-0.0, -0.25]
    assert drawn.sampling_token_logps[0][0][:2] == pytest.approx(expected.sampling_token_logps[0][0][:2])
    engine, first, second, *_ = stand_in
    assert (engine["dtype"], engine["max_num_seqs"], engine["gpu_memory_utilization"]) == ("float64", 7, 0.45)
    assert engine["logprobs_mode"] == "processed_logprobs"
    assert (first.max_tokens, first.stop_token_ids, first.top_k, first.logprobs) == (8, [1, 5], 1, 0)
    assert first.seed != second.seed
