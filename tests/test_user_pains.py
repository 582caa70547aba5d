"""What users of other libraries suffer from, one test a symptom: each would have caught it. Real tokenizers and models.

Some symptoms have their test where the part is tested, and are not written down twice:

| symptom | test |
|---|---|
| loss off by the gradient-accumulation factor | `test_training.test_cutting_a_step_changes_nothing` |
| fast path unlike plain path | `kernels/test_scoring.py`, `kernels/test_heads.py`: routes and heads against the
textbook |
| loss of several processes unlike one's | `test_distributed.test_losses_and_weights_are_those_of_one_process` |
| stale reference after training | `test_reference.test_training_in_place_changes_the_key` |
| text that spells a special token | `test_models.test_text_cannot_spell_special_tokens` |
| NaN, without the processes agreeing | `test_distributed.test_a_nan_is_refused_by_all_with_the_same_words` |
"""

import math

import numpy as np
import pytest
import torch

from workbench import objectives
from workbench.kernels import Group, sample, score
from workbench.models import Policy, add_lora, bpe_tokenizer, new_llama
from workbench.runs.run import Run
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import pair_rows, reference_logps
from workbench.training.rounds import Round, check_start
from workbench.training.steps import preference_step, supervised_step

TEXT = "the quick brown fox jumps over the lazy dog, then the slow grey cat sleeps under the warm red roof. "
DPO = preference_step(objectives.dpo, beta=0.1)


def new_policy(seed=0, max_length=128):
    """A byte-level BPE tokenizer with a chat template, and a Llama whose log-probs are far from uniform."""
    tokenizer = bpe_tokenizer([TEXT * 5], vocab_size=320)
    model = new_llama(tokenizer, width=16, layers=2, heads=2, max_length=max_length, seed=seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    return Policy(model, tokenizer)


PAIRS = [
    ("the quick brown", " fox", " cat sleeps under the warm red roof"),
    ("say: the lazy", " dog, then the slow", " d"),
    (
        [
            {"role": "user", "content": "the cat"},
            {"role": "assistant", "content": "sleeps"},
            {"role": "user", "content": "x"},
        ],
        "under the roof",
        "",
    ),
    ("t", "the the the", "over"),
]


def groups_of(policy):
    return [policy.group(prompt, [chosen, rejected]) for prompt, chosen, rejected in PAIRS]


def rows_of(policy):
    return pair_rows(policy, [f"row {i}" for i in range(len(PAIRS))], groups_of(policy))


def plain_logp(policy, prompt_ids, response_ids):
    """log p(response | prompt), token after token from one unpadded pass: the loop that nobody can get wrong."""
    logits = policy.model(input_ids=torch.tensor([prompt_ids + response_ids])).logits[0]
    total = logits.new_zeros(())
    for place, token in enumerate(response_ids, start=len(prompt_ids)):
        total = total + logits[place - 1].log_softmax(-1)[token]
    return total


def sft_adapter():
    """A policy whose starting point is base model + SFT adapter, as after LoRA fine-tuning."""
    policy = new_policy()
    policy.model = add_lora(policy.model, r=4)
    rows = [policy.group(TEXT[i : i + 10], [TEXT[i + 10 : i + 20]]) for i in range(0, 60, 4)]
    train(policy, rows, supervised_step, TrainConfig(learning_rate=1e-2, epochs=10, batch_size=8))
    return policy


# ------------------------------------------------------------------------------------ 6: the wrong reference under LoRA
def test_reference_under_lora_is_the_sft_adapter_not_the_base_model(tmp_path):
    """The reference is what the merged SFT model gives; base model and fresh adapter give something else."""
    policy = sft_adapter()
    rows = rows_of(policy)
    found = np.array([row.reference_logps for row in rows])
    merged = Policy(policy.copy().model.merge_and_unload(), policy.tokenizer)
    expected = [[plain_logp(merged, g.prompt_ids, r).item() for r in g.responses_ids] for g in groups_of(policy)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with policy.without_adapter() as base:
        assert np.abs(reference_logps(base, groups_of(policy)) - found).min() > 1e-2
    train(policy, rows, DPO, TrainConfig(learning_rate=1e-3, batch_size=4), Run(tmp_path))
    assert Run(tmp_path).metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_reference_without_the_adapter_is_refused_before_training():
    """The silent version of this bug starts away from log 2; the step-0 check sees it."""
    policy = sft_adapter()
    with policy.without_adapter() as base:
        rows = rows_of(base)
    with pytest.raises(RuntimeError, match="step-0 check"):
        check_start(policy, Round(rows, DPO, TrainConfig(batch_size=4), math.log(2)))


def test_the_base_model_is_the_reference_where_it_is_asked_for():
    policy, base = sft_adapter(), new_policy()
    with policy.without_adapter() as off:
        found = reference_logps(off, groups_of(policy))
    np.testing.assert_allclose(found, reference_logps(base, groups_of(policy)), rtol=1e-5)


# ----------------------------------------------------------------------- 7: policy and reference differ before any step
@pytest.mark.parametrize("cutting", [{}, {"micro_batch_size": 1}, {"micro_batch_tokens": 40}], ids=str)
def test_step_zero_difference_is_rounding_only(tmp_path, cutting):
    """Whatever else is in the batch, the log-ratio of every response is 0 to float32 rounding."""
    policy = new_policy()
    rows, seen = rows_of(policy), []

    def watched(policy, batch):
        losses, logged = DPO(policy, batch)
        seen.extend(
            (now - then) / abs(then)
            for k, name in enumerate(("chosen_logps", "rejected_logps"))
            for now, then in zip(logged[name].tolist(), (row.reference_logps[k] for row in batch), strict=True)
        )
        return losses, logged

    train(policy, rows, watched, TrainConfig(batch_size=4, max_steps=1, **cutting), Run(tmp_path))
    assert len(seen) == 8
    assert max(map(abs, seen)) < 1e-5
    assert Run(tmp_path).metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


# ------------------------------------------------------------------------------ 8: end token doubled, missing or masked
def test_end_token_is_there_once_and_is_scored():
    """The template closes assistant turns, and padding is the end token: neither may double or mask."""
    policy = new_policy()
    end = policy.tokenizer.eos_token_id
    assert policy.tokenizer.pad_token_id == end
    groups = groups_of(policy)
    scores = score(policy, groups)
    for i, group in enumerate(groups):
        for k, response in enumerate(group.responses_ids):
            assert response.count(end) == 1
            assert response[-1] == end
            assert int(scores.lengths[i, k]) == len(response)
            without = plain_logp(policy, group.prompt_ids, response[:-1])
            assert scores.sums[i, k].item() == pytest.approx(
                plain_logp(policy, group.prompt_ids, response).item(), rel=1e-5
            )
            assert scores.sums[i, k].item() < without.item() - 1e-3
    # the finished turn of the chat in the prompt keeps its own end token, once
    assert groups[2].prompt_ids.count(end) == 1


def test_training_on_a_turn_equals_its_place_in_the_template():
    """prompt + response is, token by token, what the template writes for the whole conversation."""
    policy = new_policy()
    chat = [{"role": "user", "content": "the quick"}]
    group = policy.group(chat, ["brown fox"])
    whole = policy.tokenizer.apply_chat_template(
        [*chat, {"role": "assistant", "content": "brown fox"}], return_dict=False
    )
    assert group.prompt_ids + group.responses_ids[0] == whole


# ---------------------------------------------------------------------------------------------- 9: never learns to stop
def test_a_trained_model_stops_and_does_not_repeat_itself():
    policy = new_policy()
    pairs = [("the quick", "brown fox"), ("the lazy", "dog"), ("the warm red", "roof")]
    rows = [policy.group(prompt, [answer]) for prompt, answer in pairs]
    train(policy, rows * 8, supervised_step, TrainConfig(learning_rate=2e-2, batch_size=12, epochs=40))
    drawn = sample(policy, [prompt for prompt, _ in pairs], n=4, max_new_tokens=30)
    assert [set(reasons) for reasons in drawn.finish_reasons] == [{"stop"}] * 3
    assert [texts[0] for texts in drawn.texts] == [answer for _, answer in pairs]


# -------------------------------------------------------------------------------- 10: the border of prompt and response
def test_no_token_spans_the_border():
    """ "the qu" + "ick" would be tokenised otherwise as one text; the prompt of training is the prompt of sampling."""
    policy = new_policy()
    policy.tokenizer.chat_template = None
    encode = policy.tokenizer
    joined = encode("the quick", add_special_tokens=False).input_ids
    group = policy.group("the qu", ["ick"])
    apart = group.prompt_ids + group.responses_ids[0]
    assert apart[1:-1] != joined, "this pair of texts does not test anything"
    assert encode.decode(group.prompt_ids[1:]) == "the qu"
    assert encode.decode(group.responses_ids[0][:-1]) == "ick"
    assert group.prompt_ids == policy.encode_prompt("the qu")


def test_prompt_ends_with_a_whole_special_token():
    """The implicit prompt of two conversations must not be cut inside <|assistant|>."""
    policy = new_policy()
    assistant = policy.tokenizer.convert_tokens_to_ids("<|assistant|>")
    for chosen, rejected in [("<b", "<c"), ("|assistant|>", "|user|>"), ("a", "ab")]:
        group = policy.group("x", [chosen, rejected])
        assert group.prompt_ids[-1] == assistant
        assert [policy.decode(ids) for ids in group.responses_ids] == [chosen, rejected]


# ------------------------------------------------------------------------------------ 11: truncation empties a response
def test_truncation_never_empties_a_response():
    """The prompt loses its left, a response its end, never all of it; cuts are counted; no room at all is an error."""
    policy = new_policy(max_length=16)
    group = policy.group(TEXT, [TEXT, "dog"])
    assert len(group.prompt_ids) == 8
    assert policy.encode_prompt(TEXT)[-8:] == group.prompt_ids
    assert [len(ids) for ids in group.responses_ids] == [8, len(policy.encode_response("dog"))]
    assert policy.counts == {"prompts_cut": 1, "responses_cut": 1}
    losses, _ = DPO(policy, pair_rows(policy, ["row 0"], [group]))
    assert bool(losses.isfinite().all())
    with pytest.raises(ValueError, match="leaves no room for a response behind 16 prompt tokens"):
        policy.group(TEXT, ["dog"], max_length=16, max_prompt_length=16)
    with pytest.raises(ValueError, match="group 0, response 1 has no tokens"):
        score(policy, [Group([0], [[5], []])])


# ------------------------------------------------------------------------------------------------ 12: NaN without a row
@pytest.mark.parametrize("where", ["reference", "loss", "weights"])
def test_nan_names_the_row(where):
    """A word whose embedding is NaN stands in one pair only; so does a NaN reference."""
    policy = new_policy()
    rows = rows_of(policy)
    word = policy.encode_response("d")[0]
    assert [word in row.group.responses_ids[1] for row in rows] == [False, True, False, False]
    if where == "loss":
        rows[1] = rows[1]._replace(reference_logps=(0.0, math.nan))
    else:
        with torch.no_grad():
            policy.model.model.embed_tokens.weight[word] = math.nan
    call = {"reference": lambda: rows_of(policy)}.get(
        where, lambda: train(policy, rows, DPO, TrainConfig(batch_size=4))
    )
    with pytest.raises(FloatingPointError, match=r"(for rows|log-probs to) row 1; look at these rows"):
        call()


# --------------------------------------------------------------------- 16: prompts, or rejected prompts, are trained on
def test_loss_and_gradient_are_those_of_a_plain_loop():
    """One unpadded row at a time, response tokens only; float64. A prompt token in the loss would show in both."""
    policy, plain = new_policy(), new_policy()
    policy.model.double(), plain.model.double()
    rows, gradient = rows_of(policy), {}
    handles = [
        p.register_post_accumulate_grad_hook(lambda p, name=name: gradient.__setitem__(name, p.grad.clone()))
        for name, p in policy.model.named_parameters()
    ]
    loss = train(policy, rows, DPO, TrainConfig(batch_size=4, max_steps=1, micro_batch_size=4))
    for handle in handles:
        handle.remove()

    expected = torch.zeros((), dtype=torch.float64)
    for row in rows:
        chosen, rejected = (plain_logp(plain, row.group.prompt_ids, ids) for ids in row.group.responses_ids)
        margin = (chosen - row.reference_logps[0]) - (rejected - row.reference_logps[1])
        expected = expected - torch.nn.functional.logsigmoid(0.1 * margin) / len(rows)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    for name, parameter in plain.model.named_parameters():  # Llama's normalisation rounds to float32 inside
        assert (gradient[name] - parameter.grad).norm() < 1e-6 * parameter.grad.norm(), name


# -------------------------------------------------------------------- 19: the sampler's log-probs are not the trainer's
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_samples_are_those_of_training(temperature):
    """Responses as drawn, prompts as texts and chats: log-probs of sampler, reference and training agree."""
    policy = new_policy()
    prompts = [prompt for prompt, _, _ in PAIRS]
    drawn = sample(policy, prompts, n=2, max_new_tokens=12, temperature=temperature)
    groups = [policy.group(prompt, tokens) for prompt, tokens in zip(prompts, drawn.tokens, strict=True)]
    from_sampler = np.array([[sum(logps) for logps in row] for row in drawn.token_logps])
    rows = pair_rows(policy, list("abcd"), groups)
    np.testing.assert_allclose([row.reference_logps for row in rows], from_sampler, rtol=1e-5)
    _, logged = DPO(policy, rows)
    now = torch.stack([logged["chosen_logps"], logged["rejected_logps"]], 1)
    np.testing.assert_allclose(now, from_sampler, rtol=1e-5)


def test_learning_rate_zero_does_not_move_log_probs():
    """Train at a rate of almost nothing, sample again: the same texts, and no drift between sampler and scorer."""
    policy = new_policy()
    prompts = [prompt for prompt, _, _ in PAIRS]
    before = sample(policy, prompts, max_new_tokens=12)
    train(policy, rows_of(policy), DPO, TrainConfig(learning_rate=1e-12, batch_size=4))
    after = sample(policy, prompts, max_new_tokens=12)
    assert after.tokens == before.tokens
    groups = [policy.group(prompt, tokens) for prompt, tokens in zip(prompts, after.tokens, strict=True)]
    np.testing.assert_allclose(
        reference_logps(policy, groups)[:, 0], [sum(row[0]) for row in after.token_logps], rtol=1e-5
    )
