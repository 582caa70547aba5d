"""Evidence: alterations by hand, exact comparison, closeness, divergence over all positions, and what is refused."""

import math

import numpy as np
import pytest
import torch

from workbench import objectives
from workbench.kernels import Group
from workbench.methods.align.pami_vdpo import alterations
from workbench.methods.align.pami_vdpo.alterations import (
    ALTERATIONS,
    bag_of_words,
    candidates,
    check_triples,
    closeness,
    divergences,
    same,
)
from workbench.models import Policy, new_llama
from workbench.worlds.language import word_tokenizer

FRAMES = list("abcdef")
ROW = {"evidence": FRAMES, "prompt": "q", "response": "r"}


def altered(kind, frames=FRAMES, seed=0):
    return ALTERATIONS[kind](list(frames), np.random.default_rng(seed), list("uvwxyz"), "-")


def test_alterations_by_hand():
    assert altered("reverse") == list("fedcba")
    assert sorted(altered("shuffle")) == FRAMES
    assert altered("blank") == ["-"] * 6
    crop, mix = altered("crop"), altered("mix")
    assert crop.count("-") == 3
    assert all(frame in (own, "-") for frame, own in zip(crop, FRAMES, strict=True))
    assert sum(frame == own for frame, own in zip(mix, FRAMES, strict=True)) == 3
    assert sum(frame == own for frame, own in zip(mix, "uvwxyz", strict=True)) == 3
    for kind in ("drop", "sub_clip"):
        kept = altered(kind)
        assert len(kept) == 3
        assert kept == sorted(kept)  # the order of time stays
    places = [FRAMES.index(frame) for frame in altered("sub_clip")]
    assert places == list(range(places[0], places[0] + 3))
    frozen = altered("freeze", seed=1)
    assert len(frozen) == 6
    assert frozen == sorted(frozen)
    assert len(set(frozen)) < 6


def test_pictures_are_altered_by_the_same_code():
    rng = np.random.default_rng(0)
    pictures = [rng.random((3, 4, 4)) for _ in range(4)]
    backwards = ALTERATIONS["reverse"](pictures, rng, pictures, np.zeros((3, 4, 4)))
    assert same(backwards, pictures[::-1])
    assert not same(backwards, pictures)
    found, _ = candidates({**ROW, "evidence": pictures}, ["crop"], 1, rng, other=pictures, blank=np.zeros((3, 4, 4)))
    assert sum(bool((frame == 0).all()) for frame in found[0].evidence) == 2


def test_candidates_are_fresh_and_not_the_original():
    def draw(seed):
        return candidates(ROW, ["shuffle", "crop"], 4, np.random.default_rng(seed), other=list("uvwxyz"), blank="-")

    found, identical = draw(0)
    assert sorted(one.kind for one in found) == ["crop", "crop", "shuffle", "shuffle"]
    assert identical == 0
    assert [one.evidence for one in found] != [one.evidence for one in draw(1)[0]]
    palindrome = {**ROW, "evidence": list("abba")}
    found, identical = candidates(palindrome, ["reverse"], 3, np.random.default_rng(0), other=["x"], blank="-")
    assert (found, identical) == ([], 3)


def test_one_frame_has_no_time():
    single = {**ROW, "evidence": ["a"]}
    said = "has one frame, which reverse, shuffle leave as it is; add kinds that change a frame"
    with pytest.raises(ValueError, match=said):
        candidates(single, ["reverse", "shuffle"], 2, np.random.default_rng(0), other=["x"], blank="-")
    found, identical = candidates(single, ["reverse", "crop"], 2, np.random.default_rng(0), other=["x"], blank="-")
    assert ([one.kind for one in found], identical) == (["crop"], 1)


def test_closeness_knows_no_order_and_no_prompt():
    a, b = np.eye(4)[:2], np.eye(4)[[1, 0]]
    assert closeness(a, b) == pytest.approx(1.0)
    assert closeness(a, np.eye(4)[2:]) == 0.0
    assert closeness(a, np.zeros((2, 4))) == 0.0
    assert closeness(bag_of_words(["a b", "c"], ""), bag_of_words(["c", ""], "")) == pytest.approx(1 / math.sqrt(3))


@pytest.fixture(scope="module")
def policy():
    tokenizer = word_tokenizer([*FRAMES, "-", "q", "r", "s"])
    return Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=32, seed=0), tokenizer)


def group(policy, frames, response):
    return Group(policy.encode_prompt(" ".join([*frames, "q"])), [policy.encode_part(response)])


def test_divergence_is_the_mean_over_all_positions_in_nats(policy, monkeypatch):
    original, other = group(policy, FRAMES, "r s r"), group(policy, FRAMES[::-1], "r s r")
    (found,) = divergences(policy, [original], [[other, original]])
    by_hand = []
    for place in range(3):
        sides = []
        for one in (original, other):
            ids = torch.tensor([one.prompt_ids + one.responses_ids[0][:place]])
            sides.append(policy.model(input_ids=ids).logits[:, -1].log_softmax(-1))
        by_hand.append(objectives.js_divergence(*sides).item())
    assert found[0] == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert found[1] == pytest.approx(0.0, abs=1e-9)
    assert found[0] <= math.log(2)
    monkeypatch.setattr(alterations, "TILE", 12)  # one position at a time
    assert divergences(policy, [original], [[other]])[0][0] == pytest.approx(found[0], abs=1e-7)


def test_the_largest_divergence_is_log_2():
    """In another base it would be 1."""
    p, q = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    assert objectives.js_divergence(p, q).item() == pytest.approx(math.log(2))


def test_nan_divergences_and_other_tokens_are_refused(policy):
    with pytest.raises(FloatingPointError, match="a Jensen-Shannon divergence is NaN"):
        objectives.js_divergence(torch.tensor([[math.nan, 0.0]]), torch.tensor([[0.0, 0.0]]))
    with pytest.raises(ValueError, match="row 0: the response has other tokens under altered evidence"):
        divergences(policy, [group(policy, FRAMES, "r")], [[group(policy, FRAMES, "s")]])
    far = objectives.js_divergence(torch.tensor([[-1e4, 0.0]]), torch.tensor([[0.0, -1e4]]))
    assert torch.isfinite(far).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response": ""}, "row 0, column 'response': text is needed; got ''"),
        ({"prompt": " "}, "row 0, column 'prompt'"),
        ({"evidence": []}, r"row 0, column 'evidence': a sequence of frames is needed; got \[\]"),
        ({"evidence": "text"}, "row 0, column 'evidence'"),
    ],
)
def test_bad_triples(change, message):
    with pytest.raises(ValueError, match=message):
        check_triples([{**ROW, **change}])
