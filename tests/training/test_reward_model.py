"""Reward models: the score is the head at the last token, whatever is batched with it, and pairs can be learned."""

import numpy as np
import pytest
import torch

from workbench.models import Policy, add_lora, new_llama
from workbench.training import reward_model
from workbench.training.loop import TrainConfig
from workbench.training.reward_model import RewardModel, train_reward_model, trained_once
from workbench.worlds.language import word_tokenizer

WORDS = [f"s{i}" for i in range(6)]


def policy(seed=0):
    tokenizer = word_tokenizer(WORDS)
    return Policy(new_llama(tokenizer, width=32, layers=2, heads=2, max_length=32, seed=seed), tokenizer)


def rows(n, seed=0):
    """The response with s3 in it is chosen."""
    rng = np.random.default_rng(seed)
    words = [WORDS[i] for i in (0, 1, 2, 4, 5)]
    draw = lambda k: list(rng.choice(words, k))  # noqa: E731
    return [
        {"prompt": " ".join(draw(2)), "chosen": " ".join([*draw(1), "s3", *draw(1)]), "rejected": " ".join(draw(3))}
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def trained():
    training = TrainConfig(learning_rate=3e-3, epochs=3, batch_size=32)
    return train_reward_model(policy(), rows(256), training, seed=0, test_rows=rows(100, seed=9))


def test_pairs_are_learned_and_hold_on_new_ones(trained):
    assert trained[1] > 0.9


def test_the_score_is_the_head_at_the_end_token_whatever_else_is_scored(trained):
    model, _ = trained
    prompts, responses = ["s1 s2", "s1", "s4 s4"], ["s3", "s1 s2 s3 s4", ""]
    together = model.score(prompts, responses)
    for prompt, response, got in zip(prompts, responses, together, strict=True):
        ids = torch.tensor([model.encode_prompt(prompt) + model.encode_response(response)])
        assert ids[0, -1] == model.tokenizer.eos_token_id
        with torch.no_grad():
            expected = model.model.score(model.model.model(input_ids=ids).last_hidden_state[0, -1])
        assert got == pytest.approx(float(expected), abs=1e-5)
    assert model.score(["s1"], [model.encode_response("s3")]) == pytest.approx(model.score(["s1"], ["s3"]))


def test_a_new_head_scores_everything_zero_and_has_the_policys_trunk():
    one = policy()
    model = RewardModel.over(one)
    assert model.score(["s1", "s2"], ["s3", ""]).tolist() == [0, 0]
    ours, theirs = model.model.base_model.state_dict(), one.model.base_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert RewardModel.over(Policy(add_lora(policy().model, r=2), one.tokenizer)).score(["s1"], ["s2"]).tolist() == [0]


def test_saved_and_loaded_scores_are_the_same(trained, tmp_path):
    trained[0].save(tmp_path)
    again = RewardModel.load(tmp_path, device="cpu")
    np.testing.assert_allclose(again.score(["s1"], ["s3 s2"]), trained[0].score(["s1"], ["s3 s2"]), atol=1e-6)


def test_it_is_trained_once(runs_root, monkeypatch):
    training = TrainConfig(learning_rate=1e-3, batch_size=32)
    first, accuracy = trained_once(policy(), rows(32), training, seed=0, test_rows=rows(8))
    monkeypatch.setattr(reward_model, "train_reward_model", lambda *a, **o: pytest.fail("trained again"))
    second, again = trained_once(policy(), rows(32), training, seed=0, test_rows=rows(8))
    assert again == accuracy
    np.testing.assert_allclose(first.score(["s1"], ["s3"]), second.score(["s1"], ["s3"]))


def test_errors(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match=r"no model folder|cannot load a reward model from"):
        RewardModel.load(tmp_path / "nothing")
    broken = trained[0].copy()
    with torch.no_grad():
        broken.model.score.weight[:] = float("nan")
    with pytest.raises(FloatingPointError, match="the reward of rows 0, 1 is NaN"):
        broken.score(["s1", "s2"], ["s3", "s3"])
    broken.model.config.num_labels = 2
    with pytest.raises(ValueError, match=r"one label \(num_labels=1\); x has 2"):
        RewardModel(broken.model, broken.tokenizer, name="x")
    with pytest.raises(ValueError, match="one response each"):
        trained[0].rewards([trained[0].group("s1", ["s2", "s3"])])


# ------------------------------------------------------------------------------------- other people's reward models
ENCODER = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}


def encoder(kind, tmp_path):
    """A sequence classifier of BERT's kind with random weights and a WordPiece tokenizer of its own."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "why", "because", "it", "is", "good", "bad", ".", "?"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **special)
    torch.manual_seed(0)
    size = ENCODER | ({"dim": 16, "n_heads": 2, "hidden_dim": 32, "n_layers": 2} if kind == "DistilBert" else {})
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(words), num_labels=1, pad_token_id=0, **size)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["Bert", "DebertaV2", "Roberta", "DistilBert"])
def test_encoders_score_as_their_own_forward_does_alone_and_batched(kind, tmp_path):
    encoder(kind, tmp_path)
    model = RewardModel.load(tmp_path, device="cpu")
    prompts = ["why is it ?", "why ?", [{"role": "user", "content": "is it bad ?"}]]
    responses = ["because it is good .", "bad", "it is ."]
    together = model.score(prompts, responses)
    for prompt, response, got in zip(["why is it ?", "why ?", "is it bad ?"], responses, together, strict=True):
        given = model.tokenizer(prompt, response, return_tensors="pt")
        if kind == "DistilBert":
            del given["token_type_ids"]
        with torch.no_grad():
            assert got == pytest.approx(float(model.model(**given).logits), abs=1e-5)
    assert np.ptp(together) > 1e-3
    with pytest.raises(ValueError, match="scores whole texts; a critic needs"):
        model.values([model.group("why ?", ["bad"])])
    with pytest.raises(ValueError, match="give responses as text"):
        model.score(["why ?"], [[4, 5]])
    with pytest.raises(ValueError, match="cannot read a chat of turns"):
        model.score([[{"role": "user", "content": "why"}, {"role": "assistant", "content": "it"}]], ["bad"])


def test_where_padding_is_the_end_token_the_models_own_forward_decides(trained):
    """The library reads the token before the end there; a model trained by other people was trained so."""
    model = trained[0].copy()
    model.model.config.pad_token_id = model.tokenizer.eos_token_id
    prompts, responses = ["s1 s2", "s1", "s4 s4"], ["s3", "s1 s2 s3 s4", "s0"]
    together = model.score(prompts, responses)
    for prompt, response, got in zip(prompts, responses, together, strict=True):
        ids = torch.tensor([model.encode_prompt(prompt) + model.encode_response(response)])
        with torch.no_grad():
            own = float(model.model(input_ids=ids).logits)
            before = model.model.score(model.model.model(input_ids=ids).last_hidden_state[0, -2])
        assert got == pytest.approx(own, abs=1e-5)
        assert own == pytest.approx(float(before), abs=1e-5)


def test_a_policy_with_other_tokens_is_scored_by_its_texts(trained):
    model = trained[0]
    other = word_tokenizer([*reversed(WORDS)])
    writer = Policy(new_llama(other, width=32, layers=1, heads=2, max_length=32, seed=1), other)
    ids = [writer.encode_response("s3 s1")]
    assert not model.has_tokens_of(writer)
    np.testing.assert_allclose(model.score_samples(writer, ["s1"], ids, ["s3 s1"]), model.score(["s1"], ["s3 s1"]))
    assert model.score(["s1"], ids) != pytest.approx(model.score(["s1"], ["s3 s1"]))
    assert model.has_tokens_of(policy())
