"""Process rewards: planted quality, conditioned on the whole prefix, and a real token classifier read behind each
step."""

import math

import numpy as np
import pytest
import torch

from workbench.tasks.reasoning.process_reward import SimulatedPrm, TokenPrm, check_scores

STEPS = ["a", "b", "c", "d"]


def prm(**options):
    return SimulatedPrm(lambda prompt, steps: 2 if len(steps) > 2 else None, **options)


def test_scores_fall_at_the_first_error_and_stay_low():
    scores = prm()("p", STEPS)
    assert scores == pytest.approx([0.8808, 0.8808, 0.1192, 0.1192], abs=1e-4)


def test_the_same_steps_always_get_the_same_score():
    noisy = prm(noise=1.0)
    assert noisy("p", STEPS)[:2] == noisy("p", STEPS[:2])
    assert noisy("p", STEPS) != prm(noise=1.0, seed=1)("p", STEPS)
    assert noisy("p", STEPS) != noisy("q", STEPS)


def test_noise_has_its_size_and_a_coin_knows_nothing():
    def values(noise):
        return np.array([prm(noise=noise)(f"p{i}", STEPS) for i in range(2_000)])

    logits = np.log(values(3.0) / (1 - values(3.0)))
    np.testing.assert_allclose(logits.mean(0), [2, 2, -2, -2], atol=0.25)
    np.testing.assert_allclose(logits.std(0), 3, atol=0.2)
    np.testing.assert_allclose(values(math.inf).mean(0), 0.5, atol=0.03)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.5], "problem 'p': 1 process rewards for 4 steps"),
        ([0.1, 0.2, math.nan, 0.3], r"problem 'p', step 2: a process reward in \[0, 1\] is needed; got nan"),
        ([0.1, 1.2, 0.1, 0.3], "step 1"),
        ([None, 0.2, 0.1, 0.3], "step 0"),
    ],
)
def test_bad_scores_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        check_scores("p", STEPS, scores)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random token classifier in the hub's format whose tokenizer knows the step token."""
    from transformers import LlamaConfig, LlamaForTokenClassification

    from workbench.models import bpe_tokenizer

    tokenizer = bpe_tokenizer(["one two three"], vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=2,
    )
    path = tmp_path_factory.mktemp("prm")
    LlamaForTokenClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_step_is_read_behind_its_own_text_and_all_earlier_steps(folder):
    read = TokenPrm(str(folder), device="cpu")
    scores = read("one", [" two", " three", " four"])
    assert all(0 < score < 1 for score in scores)
    assert read("one", [" two", " three"]) == pytest.approx(scores[:2], abs=1e-6)  # what comes later is not seen
    assert read("one", [" XX", " three", " four"])[2] != pytest.approx(scores[2], abs=1e-6)  # what came earlier is
    assert read("two", [" two", " three", " four"])[0] != pytest.approx(scores[0], abs=1e-6)


def test_a_two_layer_head_is_read_from_the_weights(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.startswith("score")}
    head = {
        "score.0.weight": torch.eye(16),
        "score.0.bias": torch.zeros(16),
        "score.2.weight": torch.zeros(2, 16),
        "score.2.bias": torch.tensor([0.0, 1.0]),
    }
    save_file({**weights, **head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert TokenPrm(str(tmp_path), device="cpu")("one", [" two"]) == pytest.approx([1 / (1 + math.exp(-1))], abs=1e-6)


def test_an_unknown_step_token_is_refused(folder):
    with pytest.raises(ValueError, match=r"'<nowhere>' is \d+ tokens of the tokenizer"):
        TokenPrm(str(folder), device="cpu", step_token="<nowhere>")
    with pytest.raises(FileNotFoundError, match="cannot load a process reward model"):
        TokenPrm(str(folder / "nothing"), device="cpu")
