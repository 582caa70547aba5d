"""A transformers model as a chat model: a tiny random Llama with a byte-level tokenizer."""

import math

import pytest

from workbench.feedback.chat import Request, user
from workbench.feedback.transcript import Transcript


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from workbench.models import Policy, bpe_tokenizer, new_llama

    tokenizer = bpe_tokenizer(["Answer: B\nConfidence: 0.8"] * 3, vocab_size=300)
    model = new_llama(tokenizer, width=16, layers=1, heads=2, max_length=96, seed=0)
    path = tmp_path_factory.mktemp("model") / "tiny"
    Policy(model, tokenizer).save(path)
    return str(path)


@pytest.fixture
def model(folder):
    from workbench.feedback.local import LocalModel

    return LocalModel(folder, device="cpu", seed=3)


def test_greedy_replies_are_the_same_every_time_and_carry_log_probs(model):
    asked = [Request(user(text), 0.0, 6) for text in ("one", "two", "one")]
    replies = model.ask(asked)
    assert replies == model.ask(asked)
    assert replies[0] == replies[2]
    assert replies[0].logps
    assert all(math.isfinite(logp) and logp <= 0 for logp in replies[0].logps)


def test_a_sampled_reply_depends_on_its_own_request_and_the_seed(folder, model):
    from workbench.feedback.local import LocalModel

    asked = [Request(user(text), 1.0, 6, k) for text in ("one", "two") for k in range(4)]
    together = model.ask(asked)
    assert [model.ask([request])[0].text for request in reversed(asked)] == [reply.text for reply in together[::-1]]
    assert len({reply.text for reply in together}) > 4
    assert [r.text for r in LocalModel(folder, device="cpu", seed=4).ask(asked)] != [r.text for r in together]


def test_a_mixed_batch_keeps_its_order(model):
    mixed = [Request(user("one"), 1.0, 6, 1), Request(user("two"), 0.0, 6), Request(user("one"), 1.0, 6, 0)]
    assert [r.text for r in model.ask(mixed)] == [model.ask([request])[0].text for request in mixed]


def test_what_fits_is_prompt_and_reply_together(model):
    assert model.fits(Request(user("a short one"), 0.0, 16))
    assert not model.fits(Request(user("a short one"), 0.0, 95))
    assert not model.fits(Request(user("long " * 60), 0.0, 16))


def test_it_goes_through_the_transcript(model, tmp_path):
    log = Transcript(tmp_path / "t.jsonl")
    asked = [Request(user("one"), 1.0, 6, k) for k in range(3)]
    assert log.ask(model, asked) == Transcript(tmp_path / "t.jsonl").ask(model, asked)
    assert "/seed-3" in model.name


def test_an_unknown_model_is_an_error(tmp_path):
    from workbench.feedback.local import LocalModel

    with pytest.raises(FileNotFoundError, match="no model folder"):
        LocalModel(str(tmp_path / "nothing"), device="cpu")


def test_label_logps_are_those_of_the_continuations(model):
    """Against one row a label through the padded route; a request that is too long is NaN, not a wrong number."""
    import numpy as np

    from workbench.kernels import Group, score

    local = model
    requests = [Request(user(text), max_tokens=4) for text in ("one", "a longer question", "x" * 400)]
    labels = ["AB", "ABCD", "AB"]
    found = local.label_logps(requests, labels)
    for request, own, row in zip(requests[:2], labels, found, strict=False):
        prompt = local.policy.encode_prompt(request.messages[0]["content"]) + local.policy.encode_part("Answer:")
        alone = [
            score(local.policy, [Group(prompt, [local.policy.encode_part(f" {label}")])], route="padded")
            for label in own
        ]
        np.testing.assert_allclose(row, [one.sums.item() for one in alone], atol=1e-5)
    assert np.isnan(found[2]).all()
