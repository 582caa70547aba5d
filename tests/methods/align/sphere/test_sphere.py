"""SPHERE: the gates between stages, sound pairs, resuming, bad input, what sabotage does, the drawing of a search."""

import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from small import Told, play

from workbench.methods.align.sphere import method as sphere
from workbench.methods.align.sphere.experiment import ARMS, claims, dependence
from workbench.methods.align.sphere.pairs import check_sound, paired
from workbench.methods.align.sphere.view import tree_of
from workbench.methods.experiment import Results, run_seed
from workbench.runs.run import Run
from workbench.worlds.sum_facts import SumVerifier

CHECK = SumVerifier()


def config(**changes):
    return sphere.Config.at("smoke", **{"arms": ["sphere", "random"], **changes})


@pytest.fixture(scope="module")
def trained(root):
    return play(sphere, config(), 0, root)


def chains(run, stage):
    return pd.read_parquet(run.folder / "search" / f"prm-1-stage{stage}-0.parquet")


def test_gates_send_problems_to_their_stage(trained):
    _, _, run, _ = trained
    first = chains(run, 1).set_index("number")
    for stage, verdict in ((2, "wrong"), (3, "right")):
        for row in chains(run, stage).to_dict("records"):
            assert first.loc[row["number"], ["correct_max", "correct_min"]].tolist() == [verdict, verdict]
    assert set(chains(run, 2)["policy"]) == {"policy"}
    assert set(chains(run, 3)["policy"]) <= {"small"}


def test_pairs_are_right_against_wrong_on_the_original_problem(trained):
    task, settings, run, result = trained
    pairs = sphere.make_pairs(task, settings, ARMS["sphere"], 0, run.child("search"))
    problems = {row["prompt"] for row in task.problems("train", 0)}
    assert {1, 2} <= set(pairs["stage"])
    for row in pairs.to_dict("records"):
        assert row["prompt"] in problems  # never the request to correct, which holds the wrong chain
        assert CHECK.is_right(row["prompt"], row["chosen"])
        assert not row["rejected_ended"] or not CHECK.is_right(row["prompt"], row["rejected"])
    assert result["search"]["sphere"]["pairs"] == len(pairs)


def test_a_worst_chain_that_ends_right_is_no_rejected_answer():
    sides = {"sol_max": ["3 3 ;", " 9 12 ;", " 5 1 ;", " A 1"], "sol_min": ["9 9 ;", " 5 14 ;", " 3 1 ;", " A 1"]}
    known = {"correct_max": "right", "correct_min": "right", "truncated_max": False, "truncated_min": False}
    first = pd.DataFrame([{"number": 0, "problem": "3 9 5", **sides, **known}])
    assert paired(1, first, first, checked=True).empty
    pairs = paired(1, first, first, checked=False)
    check_sound(pairs, CHECK, rejected_is_wrong=False)
    with pytest.raises(RuntimeError, match="chosen must be right and rejected wrong"):
        check_sound(pairs, CHECK, rejected_is_wrong=True)


def test_a_pair_that_teaches_the_opposite_is_refused(trained, tmp_path, monkeypatch):
    task, settings, run, _ = trained
    rows = sphere.make_pairs(task, settings, ARMS["stage1"], 0, run.child("search"))
    swapped = rows.rename(columns={"chosen": "rejected", "rejected": "chosen"})
    monkeypatch.setattr(sphere, "stage_pairs", lambda *a: swapped)
    with pytest.raises(RuntimeError, match="chosen must be right and rejected wrong"):
        sphere.make_pairs(task, settings, ARMS["stage1"], 0, Run(tmp_path))


def test_random_pairs_are_as_many_as_stage_one_gives(trained):
    task, settings, run, _ = trained
    wanted = len(sphere.make_pairs(task, settings, ARMS["stage1"], 0, run.child("search")))
    rows = sphere.make_pairs(task, settings, ARMS["random"], 0, run.child("search"))
    assert 0 < len(rows) <= wanted
    assert set(rows["kind"]) == {"random"}


def test_loss_starts_at_log_two(trained):
    run = trained[2]
    assert Run(run.folder / "sphere/round-1").metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (run.folder / "sphere/round-1/weights.safetensors").is_file()


def test_a_killed_search_searches_no_shard_twice(trained, tmp_path, monkeypatch):
    task, settings, run, _ = trained
    monkeypatch.setattr(sphere, "SHARD", 20)
    starts, real = [], sphere.search

    def dies(*arguments, **options):
        starts.append(options["offset"])
        if len(starts) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(sphere, "search", dies)
    with pytest.raises(KeyboardInterrupt):
        sphere.searched(task, settings, ARMS["stage1"], 1, 0, Run(tmp_path))
    table = sphere.searched(task, settings, ARMS["stage1"], 1, 0, Run(tmp_path))
    assert starts == [0, 20, 20, 40]
    assert table["sol_max"].map("".join).tolist() == chains(run, 1)["sol_max"].map("".join).tolist()


# ---------------------------------------------------------------------------------------------------------- sabotage
def test_sabotage_swapped_gates_are_seen(trained, tmp_path, monkeypatch):
    """The smaller model gets the problems that nobody solved, the correction those that need none."""
    task, settings, run, _ = trained
    real = sphere.searched

    def swapped(task, config, arm, stage, seed, data):
        table = real(task, config, arm, stage, seed, data)
        turned = {"right": "wrong", "wrong": "right", "unsure": "unsure"}
        return table.replace({"correct_max": turned, "correct_min": turned}) if stage == 1 else table

    monkeypatch.setattr(sphere, "searched", swapped)
    broken = Run(tmp_path)
    (tmp_path / "search").mkdir()
    shutil.copy(run.folder / "search" / "prm-1-stage1-0.parquet", tmp_path / "search")
    for stage in (2, 3):
        sphere.searched(task, settings, ARMS["sphere"], stage, 0, broken.child("search"))
    with pytest.raises(AssertionError):
        test_gates_send_problems_to_their_stage((task, settings, broken, None))


def test_sabotage_a_judge_that_calls_wrong_answers_right_is_refused(trained, tmp_path, monkeypatch):
    """The routes turn around, and the check of every pair stops what would teach the opposite."""
    task, settings, *_ = trained
    monkeypatch.setattr(SumVerifier, "judge", lambda self, problem, text: not self.is_right(problem, text))
    with pytest.raises(RuntimeError, match="chosen must be right and rejected wrong"):
        sphere.train_arm(task, settings, ARMS["stage1"], 0, Run(tmp_path / "arm"))


def test_sabotage_the_request_to_correct_as_training_prompt_is_seen(trained, tmp_path, monkeypatch):
    """Stage 2 would train on prompts that hold the wrong solution, which no test prompt does."""
    task, settings, run, result = trained
    real = sphere.stage_pairs

    def leaking(task, config, arm, stage, seed, data):
        pairs = real(task, config, arm, stage, seed, data)
        asked = [task.correction(row.prompt, row.rejected) for row in pairs.itertuples()]
        return pairs.assign(prompt=asked) if stage == 2 else pairs

    monkeypatch.setattr(sphere, "stage_pairs", leaking)
    broken = Run(tmp_path)
    (tmp_path / "search").mkdir()
    for path in (run.folder / "search").glob("prm-1-stage*.parquet"):
        shutil.copy(path, tmp_path / "search")
    with pytest.raises((AssertionError, ValueError)):
        test_pairs_are_right_against_wrong_on_the_original_problem((task, settings, broken, result))


@pytest.mark.parametrize(("changes", "message"), [({"width": 1}, "width = 1"), ({"reward": "x"}, "reward = 'x'")])
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        sphere.Config.at("tiny", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"prm='': give all of them \(overrides={'prm': ...}\)"),
        ({"prm": "p", "arms": ["coin"]}, r"arms \['coin'\] add noise to a simulated"),
        ({"prm": "p", "arms": ["sphere"]}, r"arms \['sphere'\] need a smaller model: set `small_model`"),
    ],
)
def test_real_text_needs_its_models(changes, message):
    with pytest.raises(ValueError, match=message):
        sphere.open_task(sphere.Config.at("smoke", True, **changes), model="m", dataset="d")


GOOD = {"sphere": 0.5, "stage1": 0.45, "random": 0.35, "exact": 0.5, "noisy": 0.42, "coin": 0.3, "shuffled": 0.2}
GOOD |= {"cross": 0.15, "cross_shuffled": 0.05}
TABLE = [[1, "middle"]] * 60 + [[1, "easy"]] * 20 + [[1, "hard"]] * 20 + [[2, "hard"]] * 40 + [[3, "easy"]] * 40


def told(table=TABLE, wrong=4.0, **quality):
    rng = np.random.default_rng(1)
    counts = {"pairs": 100, "pairs_found": 100, "tokens": 40_000, "problems": {"easy": 1, "middle": 1, "hard": 1}}
    counts |= {"table": table, "routes": {"right/wrong": 1}, "most_of_2ED": 0.9}

    def noise():
        return rng.normal(0, 0.01)

    results = Results()
    for _ in Told.seeds:
        arms = {
            a: [{"quality": 0.05 if "cross" in a else 0.2 + noise()}, {"quality": q + noise()}]
            for a, q in {**GOOD, **quality}.items()
        }
        made = {arm: {**counts, "log10_of_tree": -2.0 + noise(), "wrong_steps": 3 + noise()} for arm in arms}
        made["stage1"] |= {"wrong_steps": wrong + noise(), "tokens": 20_000 + 1_000 * noise()}
        results.append({"arms": arms, "search": made})
    return results


def test_verdicts_of_a_method_that_works():
    verdicts = claims(Told(), told()).verdicts()
    assert {id for id, verdict in verdicts.items() if verdict == "not shown"} == set()
    assert verdicts["C2"] == "needs full scale"


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"sphere": 0.2}, "C1"),  # stage 2 trained on prompts with the wrong chain: nothing moves without it
        ({"sphere": 0.3}, "C5"),
        ({"cross": 0.05}, "C3"),
        ({"stage1": 0.35}, "C4"),
        ({"noisy": 0.3}, "C4 noise"),
        ({"wrong": 3.0}, "C4 errors"),
        ({"table": [[5 - s if s > 1 else s, b] for s, b in TABLE]}, "C5 yield"),  # gates of stages 2 and 3 swapped
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    assert claims(Told(), told(**broken)).verdicts()[lost] == "not shown"


def test_dependence_is_zero_on_average_without_a_link():
    rng = np.random.default_rng(0)
    none = [dependence(rng.integers(3, size=300).tolist(), rng.integers(3, size=300).tolist()) for _ in range(60)]
    assert np.mean(none) == pytest.approx(0, abs=0.005)
    assert dependence([1, 2, 3] * 50, ["a", "b", "c"] * 50) == pytest.approx(2, abs=0.05)


NODES = pd.DataFrame(
    [
        {"number": 0, "depth": t, "chain": side, "step": f"<i>{t}{k}</i>", "score": (k + 1) / 4, "picked": k == picked}
        for t in range(2)
        for side, picked in (("max", 2), ("min", 0))
        for k in range(3)
    ]
)


def test_tree_says_what_was_cut_and_escapes_steps():
    display = tree_of(NODES)
    figure = display.figure()
    said = "One search, 8 of 12 candidates cut: best chain ends at 0.75; worst chain ends at 0.25"
    assert figure.layout.title.text == said
    lines = [trace for trace in figure.data if trace.name in ("best chain", "worst chain")]
    assert list(lines[0].x) == [0.5, 0.75, 0.75]
    assert "<i>" not in figure.to_json().replace("\\u003c", "<")
    assert len(display.frame()) == 12


@pytest.mark.slow
def test_real_problems_end_to_end(shared, tmp_path, runs_root):
    """Grade-school problems, a small Llama that has learned some of their solutions by heart, a process reward model in
    the hub's format, and a few optimiser steps on the pairs that the search finds."""
    from transformers import LlamaConfig, LlamaForTokenClassification

    from workbench.models import Policy, bpe_tokenizer, new_llama
    from workbench.tasks.reasoning.problems import BOXED
    from workbench.tasks.reasoning.process_reward import STEP_TOKEN
    from workbench.training.loop import TrainConfig, train
    from workbench.training.steps import supervised_step

    rows = [json.loads(line) for line in (shared / "data/gsm8k/train.jsonl").read_text().splitlines()]
    rows = sorted(rows, key=lambda row: len(row["question"] + row["answer"]))[:16]
    answers = [re.sub(r"<<.*?>>", "", row["answer"]).replace("\n", "\n\n") for row in rows]
    (tmp_path / "problems.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    tokenizer = bpe_tokenizer([*(row["question"] + BOXED for row in rows), *answers], vocab_size=600)
    policy = Policy(new_llama(tokenizer, width=96, layers=2, heads=4, max_length=256, seed=0), tokenizer)
    groups = [policy.group(row["question"] + BOXED, [answer]) for row, answer in zip(rows, answers, strict=True)]
    train(policy, groups * 8, supervised_step, TrainConfig(learning_rate=3e-3, batch_size=16, epochs=12))
    policy.save(tmp_path / "model")
    tokenizer.add_tokens([STEP_TOKEN])
    given = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    given |= {"num_attention_heads": 2, "num_labels": 2, "max_position_embeddings": 512}
    shape = LlamaConfig(**given)
    LlamaForTokenClassification(shape).save_pretrained(tmp_path / "prm")
    tokenizer.save_pretrained(tmp_path / "prm")

    sizes = {"width": 4, "depth": 5, "max_step_tokens": 60, "max_new_tokens": 120, "test_size": 2, "n_problems": 14}
    sizes |= {"temperature": 1.0, "batch_size": 2, "epochs": 2}
    settings = sphere.Config.at("smoke", True, arms=["stage1"], prm=str(tmp_path / "prm"), **sizes)
    task = sphere.open_task(
        settings, model=str(tmp_path / "model"), dataset=str(tmp_path / "problems.jsonl"), device="cpu"
    )
    run = Run(tmp_path / "run")
    before, after = run_seed(sphere, task, settings, 0, run)["arms"]["stage1"]
    pairs = sphere.make_pairs(task, settings, ARMS["stage1"], 0, run.child("search"))
    steps = Run(tmp_path / "run" / "stage1" / "round-1").metrics()
    assert len(pairs) == before["train_pairs"] == after["train_pairs"] > 0
    assert len(steps) == 2 * math.ceil(len(pairs) / 2)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert all(task.verifier.is_right(row.prompt, row.chosen) for row in pairs.itertuples())
