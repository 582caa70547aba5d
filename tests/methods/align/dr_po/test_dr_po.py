"""DR-PO: resets as the paper draws them, sabotage that its checks or numbers see, bad input, real text, verdicts."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from small import play, save_policy

from workbench.methods.align.dr_po import measures
from workbench.methods.align.dr_po import method as dr_po
from workbench.methods.align.dr_po.experiment import ARMS, at_matched_kl, claims
from workbench.methods.align.dr_po.method import Arm
from workbench.methods.align.dr_po.references import encode_reference, read_references
from workbench.methods.experiment import Results, run_seed
from workbench.runs.run import Run
from workbench.training import ppo


def config(**changes):
    return dr_po.Config.at("smoke", **{"arms": ["dr_po_50", "ppo"], **changes})


@pytest.fixture(scope="module")
def played(root):
    """One small run of the method and PPO, its folder and its seed."""
    return play(dr_po, config(), 3, root)


def trained(task, folder, monkeypatch, arm=None):
    """Trains one arm with a share of 1; returns the batches and the rollouts of its updates."""
    batches, rollouts = [], []
    real = ppo.roll_out

    def record(policy, reference, critic, batch, *arguments, **options):
        batches.append(batch)
        rollouts.append(real(policy, reference, critic, batch, *arguments, **options))
        return rollouts[-1]

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "roll_out", record)
        dr_po.train_arm(task, config(), arm or ARMS["dr_po"], 3, Run(folder))
    return batches, rollouts


def encoded(task):
    """Token ids of the reference of each training prompt."""
    policy = task.start(3)
    return {row["prompt"]: policy.encode_response(row["completion"]) for row in task.demonstrations("train", 3)}


# ------------------------------------------------------------------------------------------------------------ resets
def test_reset_lengths():
    rng = np.random.default_rng(0)
    assert set(dr_po.reset_lengths([0, 1] * 50, 1.0, rng)) == {0}  # nothing to reset to
    assert set(dr_po.reset_lengths([2] * 50, 1.0, rng)) == {1}
    assert set(dr_po.reset_lengths([5] * 500, 1.0, rng)) == {1, 2, 3, 4}  # never the whole reference
    assert set(dr_po.reset_lengths([5] * 500, 0.0, rng)) == {0}
    assert np.mean(dr_po.reset_lengths([5] * 20_000, 0.25, rng) > 0) == pytest.approx(0.25, abs=0.02)


def test_prefixes_are_the_rows_own_references(played, tmp_path, monkeypatch):
    task, *_ = played
    truth = encoded(task)
    for batch, rollout in zip(*trained(task, tmp_path, monkeypatch), strict=True):
        for prompt, prefix, group, generated in zip(
            batch.prompts, batch.prefixes, rollout.groups, rollout.is_generated, strict=True
        ):
            assert 1 <= len(prefix) < len(truth[prompt])
            assert prefix == truth[prompt][: len(prefix)] == group.responses_ids[0][: len(prefix)]
            assert not generated[: len(prefix)].any(), "given tokens get a policy gradient"
            assert generated[len(prefix)]


def test_wrong_prefixes_belong_to_other_prompts(played, tmp_path, monkeypatch):
    task, *_ = played
    batches, _ = trained(task, tmp_path, monkeypatch, replace(ARMS["wrong"], beta=1.0))
    truth = encoded(task)
    assert np.mean([p == truth[q][: len(p)] for b in batches for q, p in zip(*b, strict=True)]) < 0.3  # by chance only
    assert all(any(p == ids[: len(p)] for ids in truth.values()) for b in batches for p in b.prefixes)


def test_own_prefixes_come_from_the_start(played, tmp_path, monkeypatch):
    task, *_ = played
    batches, _ = trained(task, tmp_path, monkeypatch, replace(ARMS["ppo_pp"], beta=1.0))
    truth = encoded(task)
    pairs = [(q, p) for b in batches for q, p in zip(*b, strict=True) if len(p) > 2]
    assert pairs
    assert any(p != truth[q][: len(p)] for q, p in pairs)


def test_a_share_of_zero_is_ppo_to_the_last_digit(played, tmp_path):
    task, settings, run, result = played
    again = dr_po.train_arm(task, settings, Arm("DR-PO with a share of 0", beta=0.0), 3, Run(tmp_path))
    assert again == result["arms"]["ppo"]
    assert Run(tmp_path).metrics() == run.child("ppo").metrics()


def test_evaluation_never_resets(played, monkeypatch):
    task, settings, *_ = played
    seen = []
    real = ppo.answers
    monkeypatch.setattr(
        ppo, "answers", lambda p, s, prompts, prefixes, *a: seen.append(prefixes) or real(p, s, prompts, prefixes, *a)
    )
    policy = task.start(3)
    prompts = task.prompts("test", 3)[:8]
    measures.from_bare_prompts(policy, policy.copy(), prompts, lambda p, i, t: np.zeros(len(p)), settings, 3)
    assert seen == [[[]] * 8]


# ---------------------------------------------------------------------------------------------------------- sabotage
def test_sabotage_reset_to_the_whole_reference(played, tmp_path, monkeypatch):
    """Lengths up to L instead of L - 1: the prefix then holds an end token, and nothing would be generated."""
    task, *_ = played
    monkeypatch.setattr(dr_po, "reset_lengths", lambda lengths, beta, rng: np.array(lengths))
    with pytest.raises(ValueError, match="nothing is left to generate"):
        trained(task, tmp_path, monkeypatch)


def test_sabotage_policy_gradient_on_forced_tokens(played, tmp_path, monkeypatch):
    real = ppo.roll_out
    monkeypatch.setattr(ppo, "roll_out", lambda *a, **o: replace(r := real(*a, **o), is_generated=r.is_token))
    with pytest.raises(AssertionError, match="given tokens get a policy gradient"):
        test_prefixes_are_the_rows_own_references(played, tmp_path, monkeypatch)


def test_sabotage_prefix_from_the_wrong_row(played, tmp_path, monkeypatch):
    real = dr_po.reset_batch

    def off_by_one(rows, encoded, *arguments):
        return real(rows, encoded[1:] + encoded[:1], *arguments)

    monkeypatch.setattr(dr_po, "reset_batch", off_by_one)
    with pytest.raises(AssertionError):
        test_prefixes_are_the_rows_own_references(played, tmp_path, monkeypatch)


def test_resets_show_in_the_metrics(played):
    _, _, run, _ = played
    assert 0.2 < np.mean([row["reset_share"] for row in run.child("dr_po_50").metrics()]) < 0.8
    assert all(row["reset_share"] == 0 for row in run.child("ppo").metrics())


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 1.5}, r"beta is the reset share, the part of rollouts that start from a reset, in \[0, 1\]; got 1.5"),
        ({"beta": -0.1}, "beta is the reset share"),
        ({"minibatch_size": 4}, "whitening over fewer than 8 responses"),
        ({"top_p": 0.9}, "top_p = 0.9: Input should be greater than or equal to 1"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        dr_po.Config.at("smoke", **changes)


class Unreferenced:
    """Rows of which a part has no reference."""

    def __init__(self, missing, n=100):
        self.rows = [{"prompt": f"p{i}", "completion": "" if i < missing else "x"} for i in range(n)]

    def demonstrations(self, split, seed):
        return self.rows


def test_missing_references(caplog):
    with pytest.raises(ValueError, match=r"none of the 100 rows has a reference .* set beta=0"):
        read_references(Unreferenced(100), "train", 0)
    assert len(read_references(Unreferenced(100), "train", 0, needed=False)) == 100
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read_references(Unreferenced(4), "train", 0)
        assert not caplog.text
        read_references(Unreferenced(6), "train", 0)
        assert "6 of 100 rows have no reference and are never reset to" in caplog.text


def test_long_references_are_cut_and_missing_ones_are_empty(played):
    policy = played[0].start(3)
    assert encode_reference(policy, "", 7) == []
    assert encode_reference(policy, "s1 s2", 7)[-1] == policy.tokenizer.eos_token_id
    assert len(encode_reference(policy, " ".join(["s1"] * 20), 7)) == 7


def test_planted_arms_are_refused_on_real_text():
    with pytest.raises(ValueError, match=r"arms \['patchy'\] need the embedded world"):
        dr_po.open_task(config(arms=["patchy"]), model="x", dataset="y")


# --------------------------------------------------------------------------------------------------------- real text
def test_real_pairs_and_a_learned_reward_end_to_end(runs_root, shared, tmp_path):
    """Rows of alpaca_eval, a small random model, a reward model trained on the pairs, two updates."""
    from workbench import data

    dataset = str(shared / "data" / "alpaca_eval" / "pairs.jsonl.gz")
    texts = [row["chosen"] for row in data.as_preferences(data.load(dataset))[:100]]
    model = save_policy(tmp_path / "model", texts, vocab_size=400, max_length=256)
    settings = dr_po.Config.at("smoke", True, arms=["dr_po_50"])
    task = dr_po.open_task(settings, model=model, dataset=dataset, device="cpu")
    run = Run(tmp_path / "run")
    before, after = run_seed(dr_po, task, settings, 0, run)["arms"]["dr_po_50"]
    assert {"quality", "reward", "kl_nats", "missing_end", "reward_model_accuracy"} <= set(after)
    assert before["kl_nats"] == pytest.approx(0, abs=1e-4)
    rows = run.child("dr_po_50").metrics()
    assert len(rows) == 2
    assert rows[0]["missing_end"] > 0.5  # a random model does not end: the fixed penalty is counted


# ------------------------------------------------------------------------------------------------------------ claims
class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""

    def __init__(self, folder, tokens):
        self.run = Run(folder)
        for seed in self.seeds:
            for arm, (response, reset) in tokens.items():
                row = {"response_tokens": response + 0.01 * seed, "reset_tokens": reset * (1 + 0.01 * seed)}
                self.run.child(f"seed-{seed}").child(arm).log({"step": 0, **row})


def results(levels):
    rng = np.random.default_rng(0)

    def arm(level):
        points = np.linspace(0, 1, 3)
        noise = rng.normal(0, 0.01)
        levels = [(t, noise * (t > 0)) for t in points]
        return [{"quality": level * t + e, "reward": 4 * level * t + e, "kl_nats": 3.0 * t} for t, e in levels]

    return Results({"arms": {name: arm(level) for name, level in levels.items()}} for _ in range(5))


GOOD = {"dr_po": 0.3, "dr_po_50": 0.5, "dr_po_25": 0.4, "ppo": 0.02, "ppo_pp": 0.02, "wrong": 0.02, "sft": 0.2}
GOOD |= {"patchy": 0.3, "sft_patchy": 0.1}
TOKENS = {"dr_po_50": (19.0, 4.5), "ppo": (19.0, 0.0), "ppo_pp": (19.0, 4.5)}


def test_verdicts_follow_the_numbers(tmp_path):
    good = claims(Told(tmp_path / "a", TOKENS), results(GOOD)).verdicts()
    shown = {id for id, verdict in good.items() if verdict == "shown in small"}
    assert shown == {"C1", "C1 own prefixes", "C1 wrong", "C2", "C3", "C4", "C7", "C7 patchy"}
    assert good["C3 trend"] == "not shown"  # no control, never shown
    assert {id for id, verdict in good.items() if verdict == "needs full scale"} == {"C5", "C6", "C8"}
    flat = claims(
        Told(tmp_path / "b", dict.fromkeys(TOKENS, (19.0, 0.0))), results(dict.fromkeys(GOOD, 0.1))
    ).verdicts()
    assert not {id for id, verdict in flat.items() if verdict == "shown in small"}


def test_a_control_that_gains_too_hides_the_claim(tmp_path):
    verdicts = claims(Told(tmp_path, TOKENS), results({**GOOD, "wrong": 0.5})).verdicts()
    assert verdicts["C1"] == verdicts["C3"] == verdicts["C2"] == "not shown"


def test_reward_at_matched_kl():
    """At 2 nats the one has 1.0 and the other, half way to 4 nats, 0.5."""
    one = [{"kl_nats": 0, "reward": 0.0}, {"kl_nats": 2, "reward": 1.0}]
    other = [{"kl_nats": 0, "reward": 0.0}, {"kl_nats": 4, "reward": 1.0}]
    assert at_matched_kl(one, other) == pytest.approx(0.5)
    assert at_matched_kl(other, one) == pytest.approx(-0.5)
