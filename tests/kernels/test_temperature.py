"""Scores at a temperature are those of logits divided by it, on every route, capped heads included."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from workbench.kernels import Group, score
from workbench.models import new_llama
from workbench.worlds.language import word_tokenizer


@pytest.mark.parametrize("route", ["padded", "shared"])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_scores_at_a_temperature(route, cap):
    size = {"vocab_size": 10, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    config = Gemma2Config(**size, num_attention_heads=4, num_key_value_heads=4, final_logit_softcapping=cap)
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).double().eval()
    with torch.no_grad():
        model.lm_head.weight *= 20
    groups = [Group([0, 2, 3], [[4, 5, 1], [6, 1]]), Group([0, 5], [[7, 1], [2, 2]])]
    for temperature in (0.7, 1.0, 3.0):
        got = score(model, groups, route=route, temperature=temperature)
        for i, group in enumerate(groups):
            for k, response in enumerate(group.responses_ids):
                ids = torch.tensor([group.prompt_ids + response])
                logits = model(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1]
                dense = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None]).squeeze(1)
                torch.testing.assert_close(got.token_logps[i, k, : len(response)], dense, atol=1e-8, rtol=1e-8)


def test_a_temperature_of_zero_is_refused():
    tokenizer = word_tokenizer(["s0"])
    model = new_llama(tokenizer, width=8, layers=1, heads=1, max_length=8, seed=0)
    with pytest.raises(ValueError, match="temperature must be above 0 to have log-probabilities; got 0"):
        score(model, [Group([0], [[1]])], temperature=0.0)
