"""PPO: what a rollout holds, the checks that stop a wrong one, and a killed run that goes on with the same numbers."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.kernels import count_cost, score
from workbench.models import Policy, add_lora, new_llama
from workbench.runs.run import Run
from workbench.training import ppo
from workbench.training.reward_model import RewardModel
from workbench.worlds.language import word_tokenizer

WORDS = [f"s{i}" for i in range(6)]
PROMPTS = [f"s{i} s{j}" for i in range(4) for j in range(4)]


def policy(seed=0, width=16):
    tokenizer = word_tokenizer(WORDS)
    model = new_llama(tokenizer, width=width, layers=1, heads=2, max_length=64, seed=seed)
    return Policy(model, tokenizer)


def config(**changes):
    small = {"updates": 4, "batch_size": 16, "max_new_tokens": 6, "learning_rate": 3e-3, "ppo_checkpoint_every": 2}
    return ppo.PPOConfig(**{**small, **changes})


def likes_s3(prompts, ids, texts):
    return np.array([text.split().count("s3") for text in texts], dtype=float)


def batch(update, resets=True):
    return ppo.Batch(PROMPTS, [[2, 3][: i % 3] if resets else [] for i in range(len(PROMPTS))])


def optimise(folder, *, settings=None, one=None, reference=None, reward=likes_s3, make_batch=batch, evaluate=None):
    one = one or policy()
    run, scored = Run(folder), evaluate or (lambda p, u: {"quality": float(u)})
    given = (one, reference or policy(), RewardModel.over(one), make_batch, reward, settings or config(), run)
    return ppo.optimise(*given, seed=1, evaluate=scored)


def rolled(one=None, **changes):
    one = one or policy()
    return ppo.roll_out(one, policy(), RewardModel.over(one), batch(0), likes_s3, config(**changes), seed=3)


def test_a_rollout_keeps_its_prefix_and_marks_what_was_generated():
    rollout = rolled()
    for i, group in enumerate(rollout.groups):
        response, n = group.responses_ids[0], i % 3
        assert response[:n] == [2, 3][:n]
        assert len(response) <= 6
        assert rollout.is_token[i].sum() == len(response)
        assert rollout.is_generated[i].tolist()[:n] == [False] * n
        assert rollout.is_generated[i].sum() == len(response) - n
        assert int(rollout.last[i]) == len(response) - 1
        assert bool(rollout.ended[i]) == (response[-1] == 1)
        assert float(rollout.scores[i]) == (response.count(5) if bool(rollout.ended[i]) else -1.0)


def test_no_token_is_drawn_that_is_thrown_away():
    """Behind a longer prefix fewer tokens are left to draw; the meter sees those and no others."""
    with count_cost() as meter:
        rollout = rolled()
    assert meter["generated_tokens"] == int(rollout.is_generated.sum())


def test_log_probs_are_at_the_temperature_of_the_rollout():
    one = policy()
    rollout = rolled(one, temperature=0.5)
    expected = score(one, rollout.groups, temperature=0.5).token_logps[:, 0]
    torch.testing.assert_close(rollout.old_logps, expected.detach(), atol=1e-5, rtol=1e-5)
    assert (rollout.old_logps - score(one, rollout.groups).token_logps[:, 0]).abs().max() > 0.01


def test_values_are_read_before_the_token_they_belong_to():
    one = policy()
    critic = RewardModel.over(one)
    torch.nn.init.normal_(critic.model.score.weight)
    group = one.group("s1 s2", [[2, 3, 1]])
    hidden = critic.model.model(input_ids=torch.tensor([[*group.prompt_ids, 2, 3, 1]])).last_hidden_state[0]
    expected = critic.model.score(hidden).squeeze(-1)[len(group.prompt_ids) - 1 : -1]
    short = one.group("s1", [[1]])
    got = critic.values([group, short])
    torch.testing.assert_close(got[0], expected)
    assert got[1, 1:].tolist() == [0, 0]


def test_it_learns_and_its_first_step_sees_the_policy_that_wrote(tmp_path):
    one = policy()
    optimise(tmp_path, one=one, settings=config(updates=15, batch_size=16), make_batch=lambda u: batch(u, resets=False))
    rows = Run(tmp_path).metrics()
    assert np.mean([row["score"] for row in rows[-4:]]) > np.mean([row["score"] for row in rows[:4]]) + 0.3
    assert all(row["first_ratio_error"] < 1e-4 and row["first_policy_clipped"] == 0 for row in rows)
    assert rows[0]["kl_nats"] == pytest.approx(0, abs=1e-5)
    assert (tmp_path / "round-1" / "weights.safetensors").is_file()
    assert rows[-1]["learning_rate"] == pytest.approx(3e-3 / 15)


def test_rows_held_at_once_change_nothing(tmp_path):
    for held in (0, 3):
        optimise(tmp_path / str(held), settings=config(updates=1, micro_batch_size=held))
    whole, cut = (Run(tmp_path / str(held)).metrics()[0] for held in (0, 3))
    assert whole == pytest.approx(cut, abs=1e-4)


def test_what_is_trained_without_rollouts_knows_nothing_of_ppos_schedule_and_clipping():
    training = config(schedule="constant", epochs=3, checkpoint_every=5).supervised(learning_rate=0.1, batch_size=4)
    assert (training.schedule, training.max_grad_norm, training.optimizer) == ("linear", 1.0, "adamw")
    assert (training.epochs, training.checkpoint_every, training.batch_size) == (3, 5, 4)


def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
    optimise(tmp_path / "whole")
    real, calls = ppo.improve, []

    def dies(*arguments, **options):
        calls.append(options["update"])
        if calls == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(ppo, "improve", dies)
    with pytest.raises(KeyboardInterrupt):
        optimise(tmp_path / "killed")
    found = optimise(tmp_path / "killed")
    assert calls == [0, 1, 2, 3, 2, 3]  # from the checkpoint after two updates
    assert Run(tmp_path / "killed").metrics() == Run(tmp_path / "whole").metrics()
    assert found == [{"quality": 0.0}, {"quality": 4.0}]
    monkeypatch.setattr(ppo, "roll_out", lambda *a, **o: pytest.fail("rolled out again"))
    assert optimise(tmp_path / "killed") == found


def test_without_an_adapter_the_base_model_is_the_reference(tmp_path):
    one = policy()
    one.model = add_lora(one.model, r=4)
    given = (one, None, RewardModel.over(one), batch, likes_s3, config(updates=2), Run(tmp_path))
    found = ppo.optimise(*given, seed=0, evaluate=lambda p, u: {})
    assert len(found) == 2
    rows = Run(tmp_path).metrics()
    assert rows[0]["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["kl_nats"] != 0


# ------------------------------------------------------------------------------------------------- what must be refused
def test_another_reference_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="the reference is not the model that this stage starts from"):
        optimise(tmp_path, reference=policy(seed=5))


def test_log_probs_of_another_temperature_are_refused(tmp_path, monkeypatch):
    """Sabotage: the rollout's log-probs forget the temperature."""
    real = ppo.roll_out
    monkeypatch.setattr(ppo, "roll_out", lambda *a, **o: replace(r := real(*a, **o), old_logps=r.old_logps * 0.9))
    monkeypatch.setattr(ppo, "check_start", lambda *a: None)
    with pytest.raises(RuntimeError, match="the ratio of new and old policy is off 1"):
        optimise(tmp_path)


def test_nan_scores_name_the_rows(tmp_path):
    def broken(prompts, ids, texts):
        return np.where(np.arange(len(prompts)) == 5, np.nan, 0.0)

    with pytest.raises(FloatingPointError, match=r"scores of rows \[5\] are NaN.*'s1 s1'"):
        optimise(tmp_path, reward=broken)


def test_without_the_kl_penalty_the_policy_runs_away(tmp_path):
    """Sabotage: the penalty left out. The same rewards, and a multiple of the distance."""
    kl = {}
    for kl_coef in (0.0, 0.5):
        settings = config(updates=15, kl_coef=kl_coef)
        optimise(tmp_path / str(kl_coef), settings=settings, make_batch=lambda u: batch(u, resets=False))
        kl[kl_coef] = np.mean([row["kl_nats"] for row in Run(tmp_path / str(kl_coef)).metrics()[-4:]])
    assert kl[0.0] > 2 * kl[0.5]


def test_an_infinite_gradient_is_refused_with_and_without_clipping(tmp_path):
    """The loss is finite, so only the gradient can tell; the weights stay what they were."""
    for number, norm in enumerate((0.0, 1.0)):
        one = policy()
        weight = one.model.model.layers[0].mlp.up_proj.weight
        weight.register_hook(lambda gradient: gradient * torch.inf)
        before = weight.detach().clone()
        with pytest.raises(FloatingPointError, match="update 0: the loss is finite but the gradient is not"):
            optimise(tmp_path / str(number), one=one, settings=config(max_grad_norm=norm))
        assert torch.equal(weight, before)


def test_a_prefix_that_leaves_nothing_to_generate_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"prefixes of rows \[0, 1.*have 6 tokens or more: nothing is left"):
        optimise(tmp_path, make_batch=lambda u: ppo.Batch(PROMPTS, [[2] * 6] * len(PROMPTS)))


def test_responses_that_never_end_are_counted_and_warned_of(tmp_path, caplog):
    one = policy()
    with torch.no_grad():
        one.model.lm_head.weight[1] = 0
        one.model.lm_head.weight[2:] *= 50
    with caplog.at_level(logging.WARNING):
        optimise(tmp_path, one=one, reference=one.copy(), settings=config(updates=1))
    rows = Run(tmp_path).metrics()
    if rows[0]["missing_end"] > 0.5:
        assert "had no EOS token and got the fixed penalty" in caplog.text
    assert rows[0]["missing_end"] > 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, "whitening over fewer than 8 responses"),
        ({"minibatch_size": 4}, "whitening over fewer than 8 responses"),
        ({"minibatch_size": 32}, "minibatch_size=32 is more than batch_size=16"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
    assert config(batch_size=4, whiten_rewards=False).batch_size == 4


def test_a_reset_moves_nothing_before_it(tmp_path):
    """All rewards on one-token rollouts behind long prefixes: only that token's row of logits gets a gradient."""
    one = policy()
    rollout = ppo.roll_out(
        one, policy(), RewardModel.over(one), ppo.Batch(PROMPTS, [[2, 3, 4, 5, 2]] * 16), likes_s3, config(), seed=0
    )
    assert rollout.is_generated.sum(-1).tolist() == [1] * 16
    assert rollout.is_generated[:, :5].sum() == 0
    assert rollout.is_token[:, :5].all()
