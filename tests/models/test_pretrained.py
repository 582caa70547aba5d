"""Loading and saving: adapters of all kinds, tied matrices, and what is refused because a weight would be random."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.kernels import score
from workbench.kernels.heads import merged
from workbench.models import Policy, add_lora, bpe_tokenizer, new_llama
from workbench.training.reward_model import RewardModel

GROUPS = [("what is two?", ["it is four", "no"]), ("yes", ["yes and no"])]


@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer(["what is two and two? it is four. yes, no. " * 5], vocab_size=300)


def tiny(tokenizer, *, tied=False, seed=0):
    model = new_llama(tokenizer, width=16, layers=2, heads=2, max_length=64, seed=seed)
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


@pytest.fixture(scope="module")
def base_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    Policy(tiny(tokenizer), tokenizer).save(folder)
    return folder


@pytest.fixture(scope="module")
def tied_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    Policy(tiny(tokenizer, tied=True), tokenizer).save(folder)
    return folder


def shaken(model, seed=1):
    """Every weight of the adapter moved, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logps(policy):
    with torch.no_grad():
        return score(policy, [policy.group(*group) for group in GROUPS]).token_logps


ADAPTERS = {
    "lora": {"r": 2},
    "dora": {"r": 2, "use_dora": True},
    "rank-stabilised": {"r": 2, "use_rslora": True, "lora_alpha": 8},
    "whole modules beside it": {"r": 2, "modules_to_save": ["lm_head", "embed_tokens"]},
    "on head and embedding": {"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
}


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_comes_back_and_merges_to_the_same_numbers(base_folder, tmp_path, options):
    policy = Policy.load(base_folder, device="cpu", lora=options)
    shaken(policy.model)
    policy.save(tmp_path)
    again = Policy.load(tmp_path, device="cpu")
    torch.testing.assert_close(logps(again), logps(policy))
    assert any(parameter.requires_grad for parameter in again.model.parameters())
    torch.testing.assert_close(
        logps(Policy(merged(policy.model), policy.tokenizer)), logps(policy), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("modules", [["embed_tokens"], ["embed_tokens", "q_proj"], ["lm_head"]])
def test_an_adapter_on_tied_embeddings_is_merged_into_one_side(tied_folder, tmp_path, modules):
    """Merged in place, the other side would get it too."""
    policy = Policy.load(tied_folder, device="cpu", lora={"r": 2, "target_modules": modules})
    shaken(policy.model)
    whole = Policy(merged(policy.model), policy.tokenizer)
    torch.testing.assert_close(logps(whole), logps(policy), atol=1e-5, rtol=1e-5)
    whole.save(tmp_path)
    torch.testing.assert_close(logps(Policy.load(tmp_path, device="cpu")), logps(whole))
    naive = Policy(__import__("copy").deepcopy(policy.model).merge_and_unload(), policy.tokenizer)
    assert (logps(naive) - logps(policy)).abs().max() > 0.01


def test_a_reward_model_over_an_adapter_on_tied_embeddings_has_the_policys_trunk(tied_folder):
    policy = Policy.load(tied_folder, device="cpu", lora={"r": 2, "target_modules": ["embed_tokens", "v_proj"]})
    shaken(policy.model)
    ids = torch.tensor([policy.encode_prompt("what is two?")])
    trunk = RewardModel.over(policy).model.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(trunk, policy.model.get_base_model().model(input_ids=ids).last_hidden_state)


def test_a_base_made_here_is_saved_beside_its_adapter(tokenizer, tmp_path, monkeypatch):
    policy = Policy(shaken(add_lora(tiny(tokenizer), r=2)), tokenizer)
    policy.save(tmp_path / "adapter")
    assert (tmp_path / "adapter/base/config.json").is_file()
    monkeypatch.chdir(tmp_path)  # and the whole folder may be moved
    (tmp_path / "adapter").rename(tmp_path / "moved")
    torch.testing.assert_close(logps(Policy.load("moved", device="cpu")), logps(policy))


def test_adapters_of_other_trainers(base_folder, tokenizer, tmp_path):
    """No tokenizer beside it, the base by an absolute folder, as TRL writes it; then a base that is not here."""
    add_lora_folder = tmp_path / "trl"
    policy = Policy.load(base_folder, device="cpu", lora={"r": 2})
    shaken(policy.model).save_pretrained(add_lora_folder)
    torch.testing.assert_close(logps(Policy.load(add_lora_folder, device="cpu")), logps(policy))
    settings = json.loads((add_lora_folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/somewhere/else/model"
    (add_lora_folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        FileNotFoundError, match=r"'/somewhere/else/model' of the adapter .* write its folder or hub id"
    ):
        Policy.load(add_lora_folder, device="cpu")


def test_tokens_that_were_added_come_with_the_adapter(base_folder, tokenizer, tmp_path):
    """Axolotl and Unsloth: new tokens, and both embeddings trained whole."""
    import copy

    more = copy.deepcopy(tokenizer)
    more.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    whole = Policy.load(base_folder, device="cpu")
    whole.model.resize_token_embeddings(len(more))
    model = shaken(add_lora(whole.model, r=2, modules_to_save=["embed_tokens", "lm_head"]))
    policy = Policy(model, more)
    model.save_pretrained(tmp_path)
    more.save_pretrained(tmp_path)
    again = Policy.load(tmp_path, device="cpu")
    torch.testing.assert_close(logps(again), logps(policy))


def test_an_adapter_of_another_base_is_refused(tokenizer, base_folder, tmp_path):
    policy = Policy(add_lora(new_llama(tokenizer, width=16, layers=3, heads=2, max_length=64, seed=0), r=2), tokenizer)
    policy.model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base_folder)}))
    with pytest.raises(ValueError, match=r"does not fit its base model .* differ in .*layers\.2"):
        Policy.load(tmp_path, device="cpu")


def test_a_reward_adapter_with_its_head(tokenizer, tmp_path):
    """TRL's reward trainer with LoRA: the base has no head, the adapter brings it."""
    base = tmp_path / "base"
    Policy(tiny(tokenizer), tokenizer).save(base)
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = None
    model = shaken(add_lora(model, r=2, task_type="SEQ_CLS", modules_to_save=["score"]))
    model.save_pretrained(tmp_path / "adapter")
    reward = RewardModel.load(tmp_path / "adapter", device="cpu")
    ids = torch.tensor([reward.encode_prompt("yes") + reward.encode_response("no")])
    with torch.no_grad():
        expected = float(model.eval()(input_ids=ids).logits)
    assert abs(expected) > 1e-3
    # the tokenizer's padding is its end token: the model's own forward reads the token before it
    assert reward.score(["yes"], ["no"])[0] == pytest.approx(float(reward.model(input_ids=ids).logits), abs=1e-6)


# ------------------------------------------------------------------------------------------------------- whole weights
def test_a_language_model_is_no_reward_model_and_the_reverse(base_folder, tied_folder, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no weights for score\.weight.*this is a language model, not a reward model"):
        RewardModel.load(base_folder, device="cpu")
    RewardModel.over(Policy.load(tied_folder, device="cpu")).save(tmp_path)
    with pytest.raises(ValueError, match=r"reward model, not a policy"):
        Policy.load(tmp_path, device="cpu")


def test_a_folder_with_a_layer_missing_is_refused(base_folder, tokenizer, tmp_path):
    Policy.load(base_folder, device="cpu").save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = {name: value for name, value in weights.items() if "layers.1.mlp" not in name}
    save_file(lost, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for model\.layers\.1\.mlp.*incomplete"):
        Policy.load(tmp_path, device="cpu")
    narrow = {name: value[:8] if name == "model.norm.weight" else value for name, value in weights.items()}
    save_file(narrow, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight|don't fit its config"):
        Policy.load(tmp_path, device="cpu")


def test_no_adapter_is_looked_for_on_the_hub_without_network(monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.ERROR), pytest.raises(FileNotFoundError, match="cannot load a model"):
        Policy.load("no-such-owner/no-such-model")
