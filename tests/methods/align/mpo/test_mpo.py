"""MPO: stages that hand over as they must, sabotage that its checks or numbers see, bad input, real text, verdicts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small import play, save_policy

from workbench.methods.align.mpo import margins
from workbench.methods.align.mpo import method as mpo
from workbench.methods.align.mpo.experiment import ARMS, claims
from workbench.methods.align.mpo.pairs import sound_pairs, split_dialogues
from workbench.methods.experiment import Results, run_arm, run_seed
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.runs.run import Run
from workbench.training import ppo
from workbench.training.checkpoints import load_weights
from workbench.training.reference import reference_logps

WORLD = {"n_pairs": 96, "sft_steps": 20, "test_draws": 16, "width": 16}


def config(**changes):
    small = {"n_pairs": 96, "test_size": 8, "reward_epochs": 1, "world": WORLD}
    return mpo.Config.at("smoke", **{"arms": ["mpo"], **small, **changes})


@pytest.fixture(scope="module")
def played(root):
    """One small run of the method, its folder and its seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mpo, "check_reward_model", lambda *a, **o: None)  # a world this small teaches it little
        yield play(mpo, config(), 3, root)


def stage_one_weights(folder):
    """Of the only training of stage 1 under the folder of a seed."""
    (path,) = (folder / "shared").glob("dpo-*/weights.safetensors")
    return path


# ------------------------------------------------------------------------------------------------------------ stages
def test_start_stage_one_and_stage_two_are_reported(played):
    *_, result = played
    start, first, second = result["arms"]["mpo"]
    assert [stage["dpo_steps"] for stage in (start, first)] == [0, first["dpo_steps"]]
    assert first["dpo_steps"] >= 1
    assert second["ppo_updates"] == 2
    assert start["kl_sft"] == pytest.approx(0, abs=1e-4)
    assert {"quality", "greedy", "win_rate", "proxy", "missing_end", "implicit_accuracy", "kl_reference"} <= set(second)


def test_stage_one_learns_from_easy_pairs_and_stage_two_asks_the_other_prompts(played, tmp_path, monkeypatch):
    task, settings, *_ = played
    taught, asked = [], []
    real_pairs, real_roll = mpo.pair_rows, ppo.roll_out
    monkeypatch.setattr(mpo, "pair_rows", lambda p, ids, groups: taught.extend(groups) or real_pairs(p, ids, groups))
    monkeypatch.setattr(ppo, "roll_out", lambda *a, **o: asked.extend(a[3].prompts) or real_roll(*a, **o))
    mpo.train_arm(task, settings, ARMS["mpo"], 3, Run(tmp_path / "mpo"))
    table = pd.read_parquet(tmp_path / "mpo" / "split.parquet")
    policy = task.start(3)
    easy = table[table["part"] == "easy"]
    expected = {tuple(policy.encode_response(text)) for text in easy.chosen}
    assert {tuple(group.responses_ids[0]) for group in taught} == expected
    assert len(taught) == len(easy)
    assert easy.margin.min() > 0
    assert set(asked) <= set(table.prompt[table["part"] != "easy"])


def test_stage_two_starts_from_and_is_measured_against_stage_one(played, monkeypatch, tmp_path):
    task, settings, *_ = played
    seen = []
    real = ppo.roll_out
    monkeypatch.setattr(ppo, "roll_out", lambda p, r, *a, **o: seen.append((p.copy(), r.copy())) or real(p, r, *a, **o))
    mpo.train_arm(task, settings, ARMS["mpo"], 3, Run(tmp_path / "mpo"))
    stage_one = task.start(3)
    load_weights(stage_one.model, stage_one_weights(tmp_path))
    groups = [stage_one.group("s1 s2 s3", ["s1 s2 s3 s4 s5 s6"])]
    expected = reference_logps(stage_one, groups)
    np.testing.assert_allclose(reference_logps(seen[0][0], groups), expected, atol=1e-5)
    for _, reference in seen:
        np.testing.assert_allclose(reference_logps(reference, groups), expected, atol=1e-5)
    assert abs(reference_logps(task.start(3), groups) - expected).max() > 1e-4  # stage 1 moved it


def test_arms_share_the_weights_of_stage_one(played):
    task, settings, run, _ = played
    before = stage_one_weights(run.folder).stat().st_mtime_ns
    assert len(run_arm(mpo, task, settings, "dpo_easy", 3, run)) == 2
    assert stage_one_weights(run.folder).stat().st_mtime_ns == before
    assert (run.folder / "dpo_easy" / "round-1" / "weights.safetensors").is_file()
    assert (run.folder / "mpo" / "round-1" / "weights.safetensors").is_file()


def test_longer_ppo_gets_the_steps_of_stage_one():
    settings = config(dpo_batch_size=16, epochs=2)
    # 2 epochs x 96 / 16 = 12 steps, 1 an update
    assert mpo.ppo_settings(settings, ARMS["ppo_long"], 192).updates == 2 + 12
    assert mpo.ppo_settings(settings, ARMS["ppo"], 192).updates == 2
    assert mpo.ppo_settings(settings, ARMS["no_kl"], 192).kl_coef == 0


def test_with_an_adapter_stage_one_is_merged_before_stage_two():
    from workbench.models import add_lora

    tokenizer = bpe_tokenizer(["a b c"], vocab_size=300)
    policy = Policy(add_lora(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=32, seed=0), r=2), tokenizer)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    groups = [policy.group("a", ["b c"])]
    stage_one = reference_logps(policy, groups)
    assert mpo.hand_over(policy, config(lora_rank=2)) is None
    with policy.without_adapter() as reference:
        np.testing.assert_allclose(reference_logps(reference, groups), stage_one, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- sabotage
def test_sabotage_reference_left_at_sft(played, tmp_path, monkeypatch):
    task, settings, *_ = played
    monkeypatch.setattr(mpo, "hand_over", lambda policy, config: task.start(3))
    stronger = replace(settings, dpo_learning_rate=3e-3, epochs=2)
    with pytest.raises(RuntimeError, match="the reference is not the model that this stage starts from"):
        mpo.train_arm(task, stronger, ARMS["mpo"], 3, Run(tmp_path / "mpo"))


@pytest.mark.parametrize(("first", "second"), [("easy", "easy"), ("hard", "hard"), ("all", "hard")])
def test_sabotage_other_parts_for_the_stages(played, tmp_path, monkeypatch, first, second):
    """Stage 2 on easy prompts, stage 1 on hard or on all pairs: the test of who learns from what falls."""
    monkeypatch.setitem(ARMS, "mpo", replace(ARMS["mpo"], first=first, second=second))
    with pytest.raises(AssertionError):
        test_stage_one_learns_from_easy_pairs_and_stage_two_asks_the_other_prompts(played, tmp_path, monkeypatch)


def test_the_reward_model_learns_from_all_pairs(played, tmp_path, monkeypatch):
    """Not from the easy ones alone, which stage 1 learns from."""
    task, settings, *_ = played
    seen, real = [], mpo.reward_model
    monkeypatch.setattr(mpo, "reward_model", lambda *a, **o: seen.append(len(a[2])) or real(*a, **o))
    monkeypatch.setattr(mpo, "train_dpo", lambda *a: 1 / 0)  # what follows is not asked
    with pytest.raises(ZeroDivisionError):
        mpo.train_arm(task, settings, ARMS["mpo"], 3, Run(tmp_path / "mpo"))
    assert seen[0] == len(sound_pairs(task, 3, n_pairs=settings.n_pairs))


def test_sabotage_sign_of_the_margin_or_chosen_reward_alone():
    """With planted margins: the right split has fewest wrong labels among easy pairs; the flipped one most."""
    rng = np.random.default_rng(0)
    better, worse = rng.normal(size=4_000), rng.normal(size=4_000)
    gap = better - worse
    wrong = rng.random(4_000) > 1 / (1 + np.exp(-2 * np.abs(gap)))
    margin = np.where(wrong, -np.abs(gap), np.abs(gap)) + rng.normal(0, 0.5, size=4_000)

    def errors(values):
        split = margins.split_pairs(values)
        return wrong[split.pairs("easy")].mean(), wrong[split.pairs("hard")].mean()

    easy, hard = errors(margin)
    assert easy < 0.05 < 0.15 < hard
    assert errors(-margin)[0] > 0.5
    by_chosen = np.where(wrong, worse, better)  # the chosen reward instead of the gap
    assert errors(by_chosen)[0] > easy + 0.05


def test_sabotage_dpo_with_another_reference(played, tmp_path, monkeypatch):
    task, settings, *_ = played
    real = mpo.pair_rows

    def shifted(*arguments):
        rows = real(*arguments)
        return [row._replace(reference_logps=(row.reference_logps[0] - 1, row.reference_logps[1])) for row in rows]

    monkeypatch.setattr(mpo, "pair_rows", shifted)
    with pytest.raises(RuntimeError, match="step-0 check"):
        mpo.train_arm(task, settings, ARMS["dpo"], 3, Run(tmp_path / "dpo"))


# ------------------------------------------------------------------------------------------------------------ resume
def test_a_call_killed_in_stage_two_goes_on_with_the_same_numbers(played, tmp_path, monkeypatch):
    task, _, _, result = played
    settings = config(ppo_checkpoint_every=1)
    real = ppo.improve

    def dies(*arguments, update, **options):
        if update == 1:
            raise KeyboardInterrupt
        return real(*arguments, update=update, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "improve", dies)
        with pytest.raises(KeyboardInterrupt):
            mpo.train_arm(task, settings, ARMS["mpo"], 3, Run(tmp_path / "mpo"))
    monkeypatch.setattr(mpo, "train", lambda *a, **o: pytest.fail("stage 1 was trained again"))
    assert mpo.train_arm(task, settings, ARMS["mpo"], 3, Run(tmp_path / "mpo")) == result["arms"]["mpo"]


# --------------------------------------------------------------------------------------------------------- bad input
def test_dialogues_are_cut_at_the_last_shared_turn():
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: egg?\n\nAssistant:"
    (row,) = split_dialogues([{"chosen": start + " Eight minutes.", "rejected": start + " Eggs."}])
    assert row == {"prompt": start, "chosen": " Eight minutes.", "rejected": " Eggs."}
    with pytest.raises(ValueError, match=r"row 1: chosen and rejected share no prompt that ends at 'Assistant:'"):
        split_dialogues([{"chosen": start + "a", "rejected": start + "b"}, {"chosen": "x", "rejected": "y"}])


def test_identical_and_empty_pairs_are_dropped_and_counted(caplog):
    class Task:
        def preferences(self, split, seed):
            return [{"prompt": "p", "chosen": c, "rejected": r} for c, r in (("a", "b"), ("a", "a "), ("a", ""))]

    with caplog.at_level("WARNING"):
        rows = sound_pairs(Task(), 0)
    assert len(rows) == 1
    assert "1 identical" in caplog.text
    assert "1 empty rejected" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantile": 1.0}, "quantile = 1.0"),
        ({"gamma": -1.0}, "gamma = -1.0"),
        ({"conflict": "drop"}, "conflict = 'drop'"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        mpo.Config.at("smoke", **changes)


# --------------------------------------------------------------------------------------------------------- real text
@pytest.mark.parametrize("lora_rank", [pytest.param(0, marks=pytest.mark.exhaustive), 2])
def test_real_pairs_end_to_end(runs_root, shared, tmp_path, monkeypatch, lora_rank):
    """Rows of alpaca_eval and a small random model in the hub's format: reward model, split, DPO, a real PPO update.
    What is left in the run folder is the final policy, with and without adapters."""
    from workbench import data

    monkeypatch.setattr(mpo, "check_reward_model", lambda *a, **o: None)  # a random model may be below a coin
    dataset = str(shared / "data" / "alpaca_eval" / "pairs.jsonl.gz")
    texts = [row["chosen"] for row in data.as_preferences(data.load(dataset))[:100]]
    save_policy(tmp_path / "model", texts, vocab_size=400, max_length=256)
    settings = mpo.Config.at("smoke", True, lora_rank=lora_rank, dpo_learning_rate=1e-2, learning_rate=1e-2)
    task = mpo.open_task(settings, model=str(tmp_path / "model"), dataset=dataset, device="cpu")
    found = run_seed(mpo, task, settings, 0, Run(tmp_path / "run"))["arms"]["mpo"]
    assert len(found) == 3
    assert found[2]["ppo_updates"] == 1
    assert found[2]["missing_end"] > 0.5
    start, last = task.start(0), task.start(0)
    load_weights(last.model, tmp_path / "run" / "mpo" / "round-1" / "weights.safetensors")
    numbers = [task.evaluate(policy, 0)["quality"] for policy in (start, last)]
    assert numbers == pytest.approx([found[0]["quality"], found[2]["quality"]], abs=1e-5)
    assert abs(numbers[0] - numbers[1]) > 1e-4


# ------------------------------------------------------------------------------------------------------------ claims
class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""

    def __init__(self, folder, hard=0.25):
        self.run = Run(folder)
        rng = np.random.default_rng(1)
        for seed in self.seeds:
            for arm, shares in (("mpo", (0.05, hard)), ("random", (0.15, 0.15))):
                wrong = [1000 * (share + rng.normal(0, 0.01)) for share in shares]
                gaps = [-1.0 if i < n else 1.0 for n in wrong for i in range(1000)]
                table = pd.DataFrame({"part": ["easy"] * 1000 + ["hard"] * 1000, "true_gap": gaps})
                self.run.child(f"seed-{seed}").child(arm).table("split", lambda table=table: table)


LEVELS = {"mpo": 1.0, "dpo": 0.3, "dpo_easy": 0.5, "dpo_hard": 0.1, "dpo_random": 0.25, "ppo": 0.6, "ppo_hard": 0.6}
LEVELS |= {"mpo_all": 1.0, "reversed": 0.6, "random": 0.7, "random_reversed": 0.7, "shuffled": 0.0}


def results(levels):
    rng = np.random.default_rng(0)

    def arm(name, level):
        end = level + rng.normal(0, 0.02)
        first = (end - 0.4 if name != "shuffled" else end) + rng.normal(0, 0.02)
        return [{"quality": q, "implicit_accuracy": 0.7} for q in (0.0, first, end)]

    return Results({"arms": {name: arm(name, level) for name, level in levels.items()}} for _ in range(5))


def test_verdicts_follow_the_numbers(tmp_path):
    good = claims(Told(tmp_path / "a"), results(LEVELS)).verdicts()
    assert set(good) == {"C1 DPO", "C1 PPO", "C2", "C3", "C4", "C5", "C6", "S1"}
    assert set(good.values()) == {"shown in small"}
    flat = dict.fromkeys(LEVELS, 0.5)
    bad = claims(Told(tmp_path / "b", hard=0.05), results(flat)).verdicts()
    assert all(verdict == "not shown" for id, verdict in bad.items() if id not in ("C4", "C5"))
    worse = claims(Told(tmp_path / "c"), results({**LEVELS, "dpo_hard": 0.9})).verdicts()
    assert worse["C2"] == "not shown"
