"""The probe measures what `score` and `sample` say, changes nothing, and writes no step twice."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench import objectives
from workbench.kernels import Group, sample, score
from workbench.models import Policy, new_llama
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.training import probes
from workbench.training.loop import TrainConfig, train
from workbench.training.probes import Probe
from workbench.training.reference import pair_rows
from workbench.training.steps import preference_step
from workbench.worlds.language import word_tokenizer

STEP = preference_step(objectives.dpo, beta=0.1)
CONFIG = TrainConfig(batch_size=4, learning_rate=1e-3)


def new_policy():
    tokenizer = word_tokenizer([f"s{i}" for i in range(20)])
    return Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=32, seed=0), tokenizer)


def groups(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Group(
            [0, *rng.integers(2, 22, 3).tolist()],
            [[*rng.integers(2, 22, rng.integers(1, 6)).tolist(), 1] for _ in "cr"],
        )
        for _ in range(n)
    ]


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


def trained(run, probe=None, policy=None, n=24, **changes):
    """A training of six steps; the probe, where there is one, watches it."""
    policy = policy or new_policy()
    rows = pair_rows(policy, [f"row {i}" for i in range(n)], groups(n))
    if probe:
        probe.start(policy)
    config = TrainConfig(**{**{"batch_size": 4, "learning_rate": 1e-3}, **changes})
    train(policy, rows, STEP, config, run, watch=probe)
    if probe:
        probe.finish(policy)
    return policy


def opened(run, policy=None, pairs=None, **options):
    options = {"prompts": ["s1", "s2 s3"], "every": 4, "n_samples": 2, "max_new_tokens": 5, **options}
    return Probe(policy or new_policy(), groups(5, seed=9) if pairs is None else pairs, run, **options)


def test_a_training_is_bit_for_bit_the_same_with_and_without(tmp_path):
    plain = trained(Run(tmp_path / "plain"))
    watched = trained(Run(tmp_path / "watched"), opened(Run(tmp_path / "watched"), quality=lambda p, t: [0.0] * len(t)))
    assert torch.equal(weights(plain), weights(watched))
    assert Run(tmp_path / "plain").metrics() == Run(tmp_path / "watched").metrics()
    probe = opened(Run(tmp_path / "alone"))
    torch.rand(3)  # a state that no seed of ours gives
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    probe.start(plain)
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


def test_numbers_are_those_of_score_and_sample(tmp_path):
    pairs = groups(5, seed=9)
    policy = trained(
        Run(tmp_path), opened(Run(tmp_path), quality=lambda prompts, texts: [len(t) for t in texts], seed=7)
    )
    rows, scores, samples, about = probes.read(tmp_path)
    assert sorted(scores["step"].unique()) == [0, 4, 6]  # the start, every four, and the end
    last = scores[scores["step"] == 6].sort_values("row")[["chosen_logp", "rejected_logp"]].to_numpy()
    with torch.no_grad():
        np.testing.assert_allclose(last, score(policy, pairs, route="padded").sums.numpy(), atol=1e-4)
    drawn = sample(policy, ["s1", "s2 s3"], n=2, max_new_tokens=5, seed=7)
    own = samples[samples["step"] == 6]
    assert own["text"].tolist() == [text for line in drawn.texts for text in line]
    assert own["length"].tolist() == [len(ids) for line in drawn.tokens for ids in line]
    assert own["quality"].tolist() == own["text"].str.len().tolist()
    assert own["prompt_text"].tolist() == ["s1", "s1", "s2 s3", "s2 s3"]
    assert rows["chosen_length"].tolist() == [len(g.responses_ids[0]) for g in pairs]
    assert rows["chosen"][0] == policy.decode(pairs[0].responses_ids[0])
    assert 0 < about["share"] < 1


def test_a_killed_training_goes_on_without_doubling_a_step(tmp_path):
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    trained(whole, opened(whole, every=1), checkpoint_every=2)

    class Killed(Exception):
        pass

    probe = opened(cut, every=1)

    def watch(policy, step):
        probe(policy, step)
        if step == 5:  # behind the checkpoint of step 4
            raise Killed

    policy = new_policy()
    rows = pair_rows(policy, [f"row {i}" for i in range(24)], groups(24))
    probe.start(policy)
    with pytest.raises(Killed):
        train(policy, rows, STEP, TrainConfig(batch_size=4, learning_rate=1e-3, checkpoint_every=2), cut, watch=watch)
    assert probes.read(cut.folder)[1]["step"].max() == 5
    trained(cut, opened(cut, every=1), checkpoint_every=2)
    for one, other in zip(probes.read(whole.folder)[:3], probes.read(cut.folder)[:3], strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert not probes.read(cut.folder)[1].duplicated(["step", "row"]).any()


def test_a_training_from_the_start_again_forgets_the_steps_of_the_killed_one(tmp_path):
    run = Run(tmp_path)
    trained(run, opened(run, every=2))
    probe = opened(run, every=2)
    probe.start(new_policy())
    probe(new_policy(), 1)
    assert probes.read(tmp_path)[1]["step"].unique().tolist() == [0]


def test_other_pairs_in_the_same_folder_start_anew(tmp_path):
    run = Run(tmp_path)
    trained(run, opened(run))
    opened(run, pairs=groups(3, seed=1)).start(new_policy())
    rows, scores, _, _ = probes.read(tmp_path)
    assert (len(rows), sorted(scores["step"].unique())) == (3, [0])


def test_a_step_that_was_not_written_whole_is_not_there(tmp_path):
    """Killed between its tables and the list of steps: the reader does not see the step."""
    run = Run(tmp_path)
    trained(run, opened(run))
    about = read_json(tmp_path / "probe" / "about.json")
    del about["seconds_at"]["6"]
    (tmp_path / "probe" / "about.json").write_text(__import__("json").dumps(about))
    assert sorted(probes.read(tmp_path)[1]["step"].unique()) == [0, 4]
    assert sorted(probes.read(tmp_path)[2]["step"].unique()) == [0, 4]


def test_without_a_start_the_first_step_is_the_beginning(tmp_path):
    probe = opened(Run(tmp_path))
    for step in (1, 2, 4):
        probe(new_policy(), step)
    assert probes.read(tmp_path)[1]["step"].unique().tolist() == [1, 4]


def test_bounds_and_nothing_to_measure(tmp_path):
    run = Run(tmp_path)
    trained(run, opened(run, pairs=[], prompts=[]))
    assert probes.read(tmp_path) is None
    trained(run, opened(run, pairs=[]))
    assert len(probes.read(tmp_path)[1]) == 0
    many = opened(run, pairs=groups(20), n_rows=3, prompts=[f"s{i % 9}" for i in range(30)], n_prompts=4)
    many.start(new_policy())
    rows, scores, samples, _ = probes.read(tmp_path)
    assert (len(rows), len(scores), len(samples)) == (3, 3, 8)
    assert samples["prompt_text"].unique().tolist() == ["s0", "s1", "s2", "s3"]


def test_a_row_with_nan_is_kept_as_one_and_spoils_no_other(tmp_path, monkeypatch):
    """As where rows are packed together: one NaN makes the whole batch NaN."""

    def packed(policy, batch, **options):
        scores = score(policy, batch, **options)
        spoiled = len(batch) > 1 and bool(scores.sums.isnan().any())
        return replace(scores, token_logps=scores.token_logps * float("nan")) if spoiled else scores

    monkeypatch.setattr(probes, "score", packed)
    policy, pairs = new_policy(), groups(4)
    bad = pairs[2].responses_ids[0][0]
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[bad] = float("nan")
    fine = [i for i, g in enumerate(pairs) if bad not in [*g.prompt_ids, *g.responses_ids[0], *g.responses_ids[1]]]
    opened(Run(tmp_path), policy, pairs, prompts=()).start(policy)
    scores = probes.read(tmp_path)[1].set_index("row")
    assert np.isnan(scores.loc[2, "chosen_logp"])
    assert fine
    assert scores.loc[fine].notna().all(axis=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "every must be at least 1; got 0; to measure nothing give no probe"),
        ({"n_samples": 0}, "n_samples must be at least 1"),
        ({"pairs": [Group([0], [[1]])]}, "pairs, row 0: chosen and rejected are needed; got 1 responses"),
    ],
)
def test_bad_input(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        opened(Run(tmp_path), **changes)


def test_a_scorer_that_forgets_responses_is_told(tmp_path):
    with pytest.raises(ValueError, match="quality gave 1 scores for 4 responses; it must give one each"):
        opened(Run(tmp_path), quality=lambda prompts, texts: [1.0]).start(new_policy())
