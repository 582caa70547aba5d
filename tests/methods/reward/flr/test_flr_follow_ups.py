"""Follow-ups: their place in a real chat template, only their words scored, balance, keys, every bad input."""

import copy
import logging

import numpy as np
import pytest
import torch

from workbench.kernels.scoring import NanScore
from workbench.methods.reward.flr import method as module
from workbench.methods.reward.flr.follow_ups import FollowUps
from workbench.methods.reward.flr.method import Reward, Scored
from workbench.methods.reward.flr.phrases import PHRASES
from workbench.methods.reward.flr.ranking import length_bias, pairwise_accuracy, rating_agreement
from workbench.models import Policy, bpe_tokenizer, new_llama

SETS = {
    "understanding": {"positive": ["You got it."], "negative": ["You misread it.", "Read it again."]},
    "following": {"positive": ["As I asked.", "Just so.", "Thanks."], "negative": ["No."]},
}
ROWS = [
    {"prompt": "How do I boil an egg?", "response": "Seven minutes in boiling water."},
    {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Why?"},
        ],
        "response": "No idea.",
    },
]


@pytest.fixture(scope="module")
def policy():
    tokenizer = bpe_tokenizer(
        ["How do I boil an egg? Seven minutes in boiling water. You misread it."] * 3, vocab_size=320
    )
    return Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=200, seed=0), tokenizer)


def reward(policy, sets=SETS, dimensions=(), **options):
    return Reward(policy, FollowUps.of(sets, dimensions), **options)


def test_phrases_are_balanced_and_different():
    assert " ".join(PHRASES) == "understanding relevance correctness engagingness informativeness following"
    everything = FollowUps.of().phrases
    assert len(everything) == len(set(everything)) == 120
    assert all(len(both[p]) == 10 for both in PHRASES.values() for p in ("positive", "negative"))


def test_the_place_of_a_follow_up(policy):
    """The history, the response, its end, and the header of the user's next turn; nothing of the phrase."""
    ids, tail = reward(policy).before(ROWS[1]["prompt"], "No idea.")
    text = policy.tokenizer.decode(ids)
    assert (
        text == "<s><|system|>Be brief.<|user|>Hi<|assistant|>Hello.</s><|user|>Why?<|assistant|>No idea.</s><|user|>"
    )
    assert policy.tokenizer.decode(ids[-tail:]) == "No idea.</s><|user|>"


def test_swapped_roles_keep_the_last_two_utterances(policy):
    ids, _ = reward(policy, layout="swapped", pose="Ask.").before(ROWS[1]["prompt"], "No idea.")
    assert policy.tokenizer.decode(ids) == "<s><|user|>Ask.<|assistant|>Why?</s><|user|>No idea.<|assistant|>"


def test_only_the_words_of_the_phrase_are_scored(policy):
    """Against the model's own logits, one phrase at a time, with the whole chat rendered."""
    follow_ups = FollowUps.of(SETS)
    scored, sums = reward(policy)(ROWS), reward(policy, statistic="sum")(ROWS)
    for i, row in enumerate(ROWS):
        prefix, _ = reward(policy).before(row["prompt"], row["response"])
        for k, phrase in enumerate(follow_ups.phrases):
            words = policy.encode_part(phrase)
            with torch.no_grad():
                logps = policy.model(input_ids=torch.tensor([prefix + words])).logits.log_softmax(-1)[0]
            by_hand = [logps[len(prefix) - 1 + t, word].item() for t, word in enumerate(words)]
            assert scored.likelihoods[i, k] == pytest.approx(np.mean(by_hand), abs=1e-5)
            assert sums.likelihoods[i, k] == pytest.approx(np.sum(by_hand), abs=1e-4)
    assert policy.tokenizer.eos_token_id not in reward(policy).groups(ROWS)[0][0].responses_ids[0]


def test_the_raw_statistic_reads_one_position(policy):
    follow_ups = FollowUps.of(SETS)
    scored = reward(policy, statistic="official_raw_logit")(ROWS)
    prefix, _ = reward(policy).before(ROWS[0]["prompt"], ROWS[0]["response"])
    words = policy.encode_part(follow_ups.phrases[1])
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prefix + words])).logits[0, len(prefix)]
    assert scored.likelihoods[0, 1] == pytest.approx(
        logits[[policy.tokenizer.bos_token_id, *words]].mean().item(), abs=1e-5
    )


def test_scores_are_balanced_by_hand():
    """1 - (2 + 4)/2 = -2 and (1 + 2 + 3)/3 - 4 = -2, mean -2; positive only (1 + 2)/2."""
    follow_ups = FollowUps.of(SETS)
    scored = Scored(follow_ups, np.array([[1.0, 2, 4, 1, 2, 3, 4]]), "")
    for name in ("understanding", "following"):
        assert scored.side(name, "positive")[0] - scored.side(name, "negative")[0] == pytest.approx(-2)
    assert scored.flr[0] == pytest.approx(-2)
    assert scored.positive[0] == pytest.approx(1.5)
    assert scored.of_phrases([0])[0] == pytest.approx(((1 - 2) + (1 - 4)) / 2)


def test_scores_on_other_scales_are_refused(policy):
    first = reward(policy)(ROWS)
    assert first.key == reward(policy)(ROWS[:1]).key
    other = Policy(new_llama(policy.tokenizer, width=16, layers=1, heads=2, max_length=200, seed=1), policy.tokenizer)
    for second in (
        reward(policy, SETS, ["following"]),
        reward(other),
        reward(policy, statistic="sum"),
        reward(policy, layout="swapped"),
    ):
        with pytest.raises(ValueError, match="share no scale"):
            first - second(ROWS)
    assert pairwise_accuracy(first - first) == 0.5


def test_a_response_that_comes_twice_is_scored_once(policy, monkeypatch):
    true, seen = Reward.groups, []
    monkeypatch.setattr(Reward, "groups", lambda self, rows: seen.append(len(rows)) or true(self, rows))
    twice = reward(policy)([*ROWS, ROWS[0]]).likelihoods
    assert seen == [2]
    np.testing.assert_array_equal(twice[0], twice[2])


def test_ties_count_half_and_ratings_correlate():
    assert pairwise_accuracy(np.array([1.0, 0.0, -1.0])) == 0.5
    found = rating_agreement(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 2, 4, 3]))
    assert found == pytest.approx({"spearman": 0.8, "kendall": 2 / 3, "pearson": 0.8})


def test_length_bias_is_reported():
    assert length_bias(np.array([1.0, 2.0, 3.0]), ["a", "a b", "a b c"])["length_correlation"] == pytest.approx(1.0)
    assert length_bias(np.array([1.0, 2.0]), ["a", "b"]) == {"length_correlation": 0.0, "mean_words": 1.0}


# --------------------------------------------------------------------------------------------------------- bad input
def test_bad_phrases(policy, caplog):
    with pytest.raises(ValueError, match=r"unknown dimensions \['charm'\]; known: understanding"):
        FollowUps.of(dimensions=["charm"])
    with pytest.raises(ValueError, match="dimension 'd': negative phrases are missing or empty"):
        FollowUps.of({"d": {"positive": ["x"], "negative": [" "]}})
    with caplog.at_level(logging.WARNING):
        found = FollowUps.of({"d": {"positive": ["x", "x"], "negative": ["y"]}})
    assert found.phrases == ["x", "y"]
    assert "1 repeated positive phrases dropped" in caplog.text
    deaf = Policy(policy.model, policy.tokenizer)
    deaf.encode_part = lambda text: []
    with pytest.raises(ValueError, match="the follow-up 'x' has no tokens"):
        reward(deaf, {"d": {"positive": ["x"], "negative": ["y"]}}).groups(ROWS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "response": " "}, "row 0: the response is empty"),
        ({"prompt": [{"role": "system", "content": "x"}], "response": "a"}, r"must alternate .* got \['system'\]"),
        (
            {"prompt": [{"role": "user", "content": "x"}] * 2, "response": "a"},
            r"must alternate .* got \['user', 'user'\]",
        ),
        ({"prompt": "q", "response": "word " * 300}, "row 0: the response and its follow-ups need"),
    ],
)
def test_bad_rows_are_named(policy, row, message):
    with pytest.raises(ValueError, match=message):
        reward(policy)([row])


def test_templates_without_a_next_turn_are_refused(policy):
    for template, message in (
        (None, "has no chat template"),
        ("{{ messages[0]['content'] }}", "does not show the response and the turn behind it"),
        ("{{ raise_exception('no turn behind the assistant') }}", "cannot render a turn behind the response"),
    ):
        tokenizer = copy.deepcopy(policy.tokenizer)
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match=message):
            reward(Policy(policy.model, tokenizer)).before("q", "a")


def test_long_histories_lose_their_beginning_never_the_response(policy, caplog):
    rows = [{"prompt": "word " * 200, "response": "Seven minutes."}]
    with caplog.at_level(logging.WARNING):
        groups, n_cut = reward(policy).groups(rows)
    text = policy.tokenizer.decode(groups[0].prompt_ids)
    assert n_cut == 1
    assert text.endswith("Seven minutes.</s><|user|>")
    assert len(groups[0].prompt_ids) + max(map(len, groups[0].responses_ids)) == 200
    assert "1 of 1 conversations lost their beginning" in caplog.text
    assert reward(policy)(rows + ROWS).cut_share == pytest.approx(1 / 3)


def test_nan_in_half_precision_is_scored_in_float32_else_an_error(policy, monkeypatch, caplog):
    half = Policy(policy.copy().model.to(torch.bfloat16), policy.tokenizer)
    true = module.score

    def overflows(scorer, groups, **options):
        if scorer.model.dtype == torch.bfloat16:
            raise NanScore([0])
        return true(scorer, groups, **options)

    monkeypatch.setattr(module, "score", overflows)
    with caplog.at_level(logging.WARNING):
        assert np.isfinite(reward(half)(ROWS).likelihoods).all()
    assert "scored in float32" in caplog.text
    broken = policy.copy()
    torch.nn.init.constant_(broken.model.lm_head.weight, float("nan"))
    with pytest.raises(NanScore):
        reward(broken)(ROWS)


def test_another_script_gives_a_warning(policy, caplog):
    with caplog.at_level(logging.WARNING):
        reward(policy)([{"prompt": "q", "response": "Семь минут"}])
    assert "written in cyrillic letters and the follow-ups in latin" in caplog.text
