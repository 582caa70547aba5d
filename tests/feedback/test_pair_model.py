"""A pair model: the layout of PairRM's checkpoint with random weights, against its arithmetic written out."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DebertaV2Config, PreTrainedTokenizerFast

from workbench.feedback.judges import open_judge
from workbench.feedback.pair_model import MARKS, PairModel, is_pair_model

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *MARKS.values(), "good", "bad", "why", "because", "it", "is"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS.values())})
    marks = {f"{key}_prefix_id": WORDS.index(mark) for key, mark in MARKS.items()}
    config = DebertaV2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        n_tasks=1,
        drop_out=0.05,
        **marks,
    )
    torch.manual_seed(0)
    model = PairModel(config, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    path = tmp_path_factory.mktemp("pair")
    config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    save_file(model.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def model(folder):
    return PairModel.load(folder, device="cpu")


ROWS = [("why is it", "because it is good", "bad"), ("why", "it is bad because it is", "good good good")]


@torch.no_grad()
def by_hand(model, prompt, a, b):
    """One row, no padding, the head's arithmetic step by step."""
    texts = [f"[CLS] {MARKS['source']} {prompt} [SEP]", f"[CLS] {MARKS['cand1']} {a} [SEP]"]
    texts.append(f"[CLS] {MARKS['cand2']} {b} [SEP]")
    ids = [WORDS.index(word) for text in texts for word in text.split()]
    states = model.pretrained_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    source, first, second = (states[ids.index(WORDS.index(mark))] for mark in MARKS.values())
    w1, b1, w2, b2 = (model.state_dict()[f"head_layer.{name}"] for name in ("1.weight", "1.bias", "4.weight", "4.bias"))
    left, right = (w2 @ torch.tanh(w1 @ torch.cat([source, one]) + b1) + b2 for one in (first, second))
    return float(left - right)


def test_batched_and_alone_in_both_orders(model):
    expected = [(by_hand(model, p, a, b) - by_hand(model, p, b, a)) / 2 for p, a, b in ROWS]
    found = model.logits(*zip(*ROWS, strict=True))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found).min() > 1e-3
    prompts, a, b = zip(*ROWS, strict=True)
    np.testing.assert_allclose(model.prefer(prompts, b, a), 1 - model.prefer(prompts, a, b), atol=1e-6)


def test_it_is_known_by_its_configuration_and_judges(folder, model, tmp_path):
    assert is_pair_model(folder)
    assert not is_pair_model(tmp_path)
    judge = open_judge(str(folder), device="cpu")
    prompts, a, b = zip(*ROWS, strict=True)
    np.testing.assert_allclose(judge.prefer(prompts, a, b), model.prefer(prompts, a, b), atol=1e-6)
    with pytest.raises(ValueError, match="scores need a reward model"):
        judge.score(prompts, a)


def test_text_spells_no_mark_and_long_parts_are_cut(model):
    ids = model.encode("why " * 3000, f"good {MARKS['cand2']}", "bad " * 3000)
    assert [ids.count(WORDS.index(mark)) for mark in MARKS.values()] == [1, 1, 1]
    assert len(ids) <= model.longest


def test_other_checkpoints_are_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "less")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "head_layer.4" not in k}, tmp_path / "less/model.safetensors")
    with pytest.raises(ValueError, match=r"no pair model: weights missing \['head_layer.4"):
        PairModel.load(tmp_path / "less")
    with pytest.raises(FileNotFoundError, match="cannot load a pair model"):
        PairModel.load(tmp_path)
