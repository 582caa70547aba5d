"""SimulPL: prefixes that do not leak, confidence, latency in the loss, bad input, real text, verdicts, sabotage."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from small import Told, play, save_policy

from workbench import methods, objectives
from workbench.methods.align.simulpl import method as simulpl
from workbench.methods.align.simulpl import network
from workbench.methods.align.simulpl.experiment import ARMS, claims
from workbench.methods.align.simulpl.network import (
    Reader,
    Translation,
    check_nothing_moved,
    drawn_prefixes,
    expected_lagging,
    prefix_prompts,
    states,
    token_pairs,
    translate,
)
from workbench.methods.align.simulpl.sweep import numbers
from workbench.methods.align.simulpl.view import ReadWritePath, aspect_figure, counted, curve_figure
from workbench.methods.align.simulpl.world import LOWEST_AL, ORACLE_DELAYS, Clauses
from workbench.methods.experiment import Results, run_seed
from workbench.models import Policy, new_llama
from workbench.runs.run import Run


def config(**changes):
    return simulpl.Config.at("micro", **{"arms": ["msft", "simul_dpo"], **changes})


@pytest.fixture(scope="module")
def played(root):
    return play(simulpl, config(), 0, root)


@pytest.fixture(scope="module")
def policy(played):
    task, settings, run, _ = played
    return simulpl.fine_tuned(task, settings, "both", 0, run.child("stages"))


def pairs_of(task, policy, settings, n=4):
    return token_pairs(task, policy, 0, settings.unit)[:n]


# ---------------------------------------------------------------------------------------------------------- no leak
def assert_no_leak(task, policy):
    """Two sentences that agree up to word j have the same states behind their first j words."""
    words = ["s0", "f1", "o2", "v3", "s4", "f0", "o6", "v7"]
    other = [*words[:3], "v9", "s9", "f3", "o9", "v9"]
    targets = [policy.encode_response("s0' o2' v3'")] * 2
    both = [prefix_prompts(policy, task.prompt, sentence) for sentence in (words, other)]
    for j in (0, 1, 2):
        found = states(policy, [prompts[j] for prompts in both], targets)
        torch.testing.assert_close(found.logps[0], found.logps[1], rtol=0, atol=0)
        torch.testing.assert_close(found.confidence[0], found.confidence[1], rtol=0, atol=0)
    assert not torch.equal(*states(policy, [prompts[3] for prompts in both], targets).logps)


def test_later_source_words_change_nothing(played, policy, monkeypatch):
    assert_no_leak(played[0], policy)
    # sabotage: every prompt shows the last word that the sentence will have
    true = prefix_prompts
    leaky = lambda policy, prompter, words: true(policy, lambda read: prompter([*read, words[-1]]), words)  # noqa: E731
    monkeypatch.setitem(globals(), "prefix_prompts", leaky)
    with pytest.raises(AssertionError):
        assert_no_leak(played[0], policy)


def test_states_are_the_models_own_log_probs(played, policy):
    from workbench.kernels import Group, score

    task, settings, *_ = played
    rows = pairs_of(task, policy, settings)
    found = states(policy, [row.prompts[4] for row in rows], [row.chosen for row in rows])
    expected = score(policy, [Group(row.prompts[4], [row.chosen]) for row in rows], route="padded")
    torch.testing.assert_close(found.token_logps, expected.token_logps[:, 0], rtol=1e-5, atol=1e-5)
    whole = states(policy, [row.prompts[4] for row in rows], [row.chosen for row in rows], whole_vocabulary=True)
    torch.testing.assert_close(found.token_logps, whole.token_logps, rtol=1e-5, atol=1e-5)


def test_one_prefix_a_batch_drawn_again_alike(played, policy):
    task, settings, *_ = played
    rows = pairs_of(task, policy, settings, 20)
    drawn = [drawn_prefixes(rows[i : i + 4], 1, 0) for i in range(0, 20, 4)]
    assert all(len(set(batch)) == 1 for batch in drawn)
    assert len({batch[0] for batch in drawn}) > 1
    assert drawn == [drawn_prefixes(rows[i : i + 4], 1, 0) for i in range(0, 20, 4)]
    short = rows[0]._replace(prompts=rows[0].prompts[:2])
    assert drawn_prefixes([short, *rows[1:4]], 6, 0)[0] == 2  # never more than there is


# ------------------------------------------------------------------------------------------------- the expected delay
def test_expected_lagging_is_that_of_the_confidences_by_hand(played, policy):
    """Sources of different lengths side by side give what each gives alone."""
    task, settings, *_ = played
    rows = pairs_of(task, policy, settings, 3)
    rows[1] = rows[1]._replace(prompts=rows[1].prompts[:5])
    side = [row.chosen for row in rows]
    together = expected_lagging(policy, rows, side)
    alone = torch.cat([expected_lagging(policy, [row], [row.chosen]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    row = rows[1]
    c = np.stack([states(policy, [p], [row.chosen]).confidence[0].detach().numpy() for p in row.prompts], 1).astype(
        float
    )
    c[:, -1] = 1.0
    weights = c * np.cumprod(np.concatenate([np.ones((len(c), 1)), 1 - c[:, :-1]], 1), 1)
    delays = np.maximum.accumulate((weights * np.arange(1, 6)).sum(1))
    by_hand = np.maximum(0, delays - np.arange(len(c)) * 5 / len(c)).mean() / 5
    assert together[1].item() == pytest.approx(by_hand, abs=1e-5)
    together.sum().backward()
    assert policy.model.confidence.weight.grad.abs().sum() > 0
    policy.model.zero_grad()


def test_few_prefixes_stand_for_all(played, policy):
    rows = pairs_of(*played[:1], policy, played[1], 2)
    side = [row.chosen for row in rows]
    assert torch.equal(expected_lagging(policy, rows, side, n_prefixes=8), expected_lagging(policy, rows, side))
    assert not torch.equal(expected_lagging(policy, rows, side, n_prefixes=3), expected_lagging(policy, rows, side))
    assert not torch.equal(expected_lagging(policy, rows, side, scrambled=1), expected_lagging(policy, rows, side))


# -------------------------------------------------------------------------------------------------------- read or write
def confident(policy, value):
    """The policy with one confidence everywhere."""
    copy = policy.copy()
    with torch.no_grad():
        copy.model.confidence.weight.zero_()
        copy.model.confidence.bias.fill_(math.log(value / (1 - value)))
    return copy


def test_the_threshold_decides(played, policy):
    task, *_ = played
    prompts = [prefix_prompts(policy, task.prompt, row["source"].split()) for row in task.pairs("test", 0)[:3]]
    options = {"max_new_tokens": 4, "allow_early_stop": True}
    writes = translate(confident(policy, 0.6), prompts, Reader("confidence", 0.5), **options)
    reads = translate(confident(policy, 0.4), prompts, Reader("confidence", 0.5), **options)
    assert all(set(one.delays) == {1} for one in writes)
    assert all(set(one.delays) == {8} and len(one.steps) == 7 + len(one.ids) for one in reads)
    waits = translate(policy, prompts, Reader("wait_k", 3), **options)
    assert all(one.delays == [3, 4, 5, 6][: len(one.delays)] for one in waits)
    chance = translate(confident(policy, 0.6), prompts, Reader("random", 0.5, seed=1), **options)
    assert len({tuple(one.delays) for one in chance}) > 1


def test_alone_or_side_by_side_is_the_same(played, policy):
    task, *_ = played
    prompts = [prefix_prompts(policy, task.prompt, row["source"].split()) for row in task.pairs("test", 0)[:4]]
    reader = Reader("confidence", 0.5)
    together = translate(policy, prompts, reader, max_new_tokens=5)
    alone = [translate(policy, [p], reader, max_new_tokens=5)[0] for p in prompts]
    assert [(one.ids, one.delays) for one in together] == [(one.ids, one.delays) for one in alone]


def test_the_end_before_the_source_is_read_means_read(played, policy):
    task, *_ = played
    ends = confident(policy, 0.9)
    end = policy.tokenizer.eos_token_id
    with torch.no_grad():
        head = ends.model.lm_head.weight
        head.zero_()
    ends.model.lm_head = torch.nn.Linear(head.shape[1], head.shape[0])
    with torch.no_grad():
        ends.model.lm_head.weight.zero_()
        ends.model.lm_head.bias.zero_()
        ends.model.lm_head.bias[end] = 9.0
    prompts = [prefix_prompts(policy, task.prompt, ["s0", "f1", "o2"])]
    (refused,) = translate(ends, prompts, Reader("confidence", 0.5), max_new_tokens=4)
    assert (refused.delays, refused.early_ends, refused.ended) == ([3], 2, True)
    (allowed,) = translate(ends, prompts, Reader("confidence", 0.5), max_new_tokens=4, allow_early_stop=True)
    assert (allowed.delays, allowed.early_ends) == ([1], 1)
    found = numbers(task, ends, task.pairs("test", 0)[:1], [refused._replace(delays=[8])])
    assert (found["AL"], found["quality"], found["early_ends"], found["truncated"]) == (8.0, 0.0, 1.0, 0.0)


def test_confidence_unused_at_decoding_would_be_seen(played, policy, monkeypatch):
    """Sabotage: without the comparison AL no longer depends on tau."""
    task, *_ = played
    prompts = [prefix_prompts(policy, task.prompt, row["source"].split()) for row in task.pairs("test", 0)[:3]]
    spread = confident(policy, 0.5)

    def lags():
        readers = [Reader("confidence", tau) for tau in (0.2, 0.8)]
        return [translate(spread, prompts, reader, max_new_tokens=2)[0].delays[0] for reader in readers]

    assert lags() == [1, 8]
    monkeypatch.setattr(network, "_writes", lambda *a: True)
    assert len(set(lags())) == 1


def test_the_oracle_is_measured_as_the_lowest_possible_lag(played, policy):
    task, *_ = played
    row = task.pairs("test", 0)[0]
    one = Translation(policy.encode_response(row["chosen"]), list(ORACLE_DELAYS), True, 0, [])
    found = numbers(task, policy, [row], [one])
    assert found["AL"] == pytest.approx(LOWEST_AL) == pytest.approx(1.81, abs=0.005)
    assert (found["quality"], found["monotonicity"], found["key_points"], found["length"]) == (1, 1, 1, 7)
    late = one._replace(delays=[d + 1 for d in ORACLE_DELAYS[:-2]] + [8, 8])
    assert numbers(task, policy, [row], [late])["AL"] > LOWEST_AL


# ------------------------------------------------------------------------------------------------------------ the run
def test_both_stages_train_and_leave_their_head(played):
    _, settings, run, result = played
    from safetensors.torch import load_file

    weights = load_file(run.folder / "simul_dpo" / "round-1" / "weights.safetensors")
    assert weights["confidence.weight"].shape == (1, 16)
    (stage,) = (run.folder / "stages").glob("msft-both-*")
    before = load_file(stage / "weights.safetensors")
    assert not torch.equal(before["confidence.weight"], weights["confidence.weight"])
    metrics = Run(run.folder / "simul_dpo" / "round-1").metrics()
    assert len(metrics) == settings.max_steps
    assert {"pair_losses", "delay_penalties", "full_losses", "mixed_losses", "confidence"} <= set(metrics[0])
    assert metrics[0]["pair_losses"] == pytest.approx(math.log(2), abs=1e-4)
    names = "quality AL LAAL AP DAL monotonicity key_points words_per_clause"
    assert set(result["arms"]["simul_dpo"][0]) >= set(names.split())
    curve = pd.DataFrame(result["curves"]["simul_dpo"])
    assert sorted(set(curve["reader"])) == ["confidence", "random"]


def test_a_reference_behind_other_prefixes_is_refused(played, policy, monkeypatch):
    """Sabotage: the reference sees the full source, the policy a prefix; the step-0 check stops the run."""
    task, settings, *_ = played
    rows = pairs_of(task, policy, settings, 8)
    frozen, real = policy.copy(), network.states

    def unlike(which, prompts, responses, **options):
        return real(which, [row.prompts[-1] for row in rows] if which is frozen else prompts, responses, **options)

    step = simulpl.simul_step(settings, ARMS["simul_dpo"], frozen, 0)
    check_nothing_moved(policy, step, rows, "sigmoid")
    monkeypatch.setattr(simulpl, "states", unlike)
    with pytest.raises(RuntimeError, match="reads other prefixes than the policy"):
        check_nothing_moved(policy, step, rows, "sigmoid")


def trained_confidence(task, settings, sign, monkeypatch):
    """Mean confidence after some MSFT steps with the tax's sign as given."""
    if sign < 0:
        monkeypatch.setattr(
            simulpl.objectives,
            "state_confidence",
            lambda *a, f=objectives.state_confidence, **k: wrong_sign(f, *a, **k),
        )
    policy = network.add_confidence(task.start(0), seed=0)
    rows = token_pairs(task, policy, 0, settings.unit)
    training = simulpl.TrainConfig(learning_rate=1e-2, max_steps=25, batch_size=16)
    simulpl.train(policy, rows, simulpl.msft_step(settings, 0), training)
    found = states(policy, [row.prompts[0] for row in rows[:16]], [row.chosen for row in rows[:16]])
    return found.confidence[:, 1:].mean().item()


def wrong_sign(real, *arguments, confidence_weight, **options):
    losses, logged = real(*arguments, confidence_weight=confidence_weight, **options)
    c, is_token = arguments[2], arguments[4]
    return losses + 2 * confidence_weight * torch.where(is_token, c.log(), 0.0).sum(-1), logged


def test_the_sign_of_the_tax_decides_between_reading_and_writing(played, monkeypatch):
    """Sabotage: with +log c the confidence falls, and every threshold reads the whole source."""
    task, settings, *_ = played
    settings = config(confidence_weight=2.0)
    right = trained_confidence(task, settings, +1, monkeypatch)
    wrong = trained_confidence(task, settings, -1, monkeypatch)
    assert wrong < 0.3 < right


def test_every_arm_of_the_table_can_take_a_step(played, policy):
    task, settings, *_ = played
    rows = pairs_of(task, policy, settings, 4)
    for name, arm in ARMS.items():
        if arm.learns != "nothing":
            losses, _ = simulpl.simul_step(settings, arm, policy.copy(), 0)(policy, rows)
            assert losses.shape == (4,), name
            assert torch.isfinite(losses).all()
    margin = config(form="margin", arms=["simul_dpo"])
    losses, logged = simulpl.simul_step(margin, ARMS["simul_dpo"], policy.copy(), 0)(policy, rows)
    assert not torch.allclose(logged["pair_losses"], torch.full((4,), math.log(2)), atol=1e-4)  # the lags differ
    smooth = config(label_smoothing=0.1)
    assert torch.isfinite(simulpl.simul_step(smooth, ARMS["alpha_0"], policy.copy(), 0)(policy, rows)[0]).all()


def test_labels_and_roles(played, monkeypatch):
    """What each arm hands to the step: swapped swaps all, shuffled about a half."""
    task, settings, run, _ = played
    seen = {}
    monkeypatch.setattr(
        simulpl,
        "iterate",
        lambda policy, n, make_round, *a, **k: seen.setdefault(name, make_round(policy, 0)) and [{}, {}],
    )
    monkeypatch.setattr(network, "check_nothing_moved", lambda *a: None)
    for name in ("simul_dpo", "swapped", "shuffled"):
        simulpl.train_arm(task, settings, ARMS[name], 0, run.child("x"))
    lengths = {name: np.mean([len(row.chosen) == 7 for row in round_.rows]) for name, round_ in seen.items()}
    assert lengths["simul_dpo"] == 1.0
    assert lengths["swapped"] == 0.0
    assert 0.25 < lengths["shuffled"] < 0.75


# ---------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taus": [0.7, 1.5]}, r"taus \[1.5\] are outside \[0, 1\]"),
        ({"tau": 0.55}, "tau=0.55 must be one of taus"),
        ({"form": "margin", "arms": ["ipo"]}, 'form="margin" is that of loss_type="sigmoid"'),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        simulpl.Config.at("tiny", **changes)


def test_a_checkpoint_without_its_head_is_refused(policy, tmp_path):
    network.save(policy, tmp_path / "whole")
    again = network.load(tmp_path / "whole", device="cpu")
    assert torch.equal(again.model.confidence.weight, policy.model.confidence.weight)
    assert hasattr(policy.model, "confidence")
    (tmp_path / "whole" / network.HEAD_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="this checkpoint has no confidence head"):
        network.load(tmp_path / "whole")
    bare = Policy(new_llama(policy.tokenizer, width=16, layers=1, heads=2, max_length=32, seed=0), policy.tokenizer)
    with pytest.raises(ValueError, match="has no confidence head; give it one"):
        states(bare, [[0]], [[1]])


def test_bad_readers():
    with pytest.raises(ValueError, match="tau is compared with probabilities"):
        Reader("confidence", 1.2)
    with pytest.raises(ValueError, match="wait-k needs a whole number"):
        Reader("wait_k", 0)


# ------------------------------------------------------------------------------------------------------------ verdicts
TOLD = Told(config=simulpl.Config.at("tiny"))


def point(reader, value, lag, quality):
    return {"reader": reader, "value": value, "AL": lag, "quality": quality}


def told(rng, **changes):
    """What a run looks like in which every claim holds."""
    ends = {"msft": (0.6, 2.0), "simul_dpo": (1.0, 1.81), "alpha_0": (1.0, 1.82), "alpha_5": (0.1, 1.47)}
    ends |= {"scrambled": (1.0, 1.85), "dpo": (0.8, 3.2), "swapped": (0.0, 1.0), "shuffled": (0.6, 2.0)}
    ends |= {"dpo_shuffled": (0.6, 2.0), "preferred": (1.0, 1.81), "offline": (0.0, 3.0), "ipo": (1.0, 1.9)}
    ends |= {"ipo_text": (0.9, 3.0), "ipo_shuffled": (0.6, 2.0), "ipo_text_shuffled": (0.6, 2.0)} | changes
    jitter = lambda: float(rng.normal(0, 0.01))  # noqa: E731
    arms, curves = {}, {}
    for name, (quality, lag) in ends.items():
        quality = quality if quality in (0.0, 1.0) else quality + jitter()
        lag = lag + abs(jitter())
        preferred = name in ("simul_dpo", "alpha_0")
        arms[name] = [
            {"quality": quality, "AL": lag, "monotonicity": 1.0 if preferred else 0.95 + jitter()}
            | {"key_points": 1.0 if preferred else 0.97 + jitter()}
            | {"length": 7.0 if preferred else 7.8 + jitter()}
        ]
        curves[name] = [point("confidence", 0.5, lag - 1, quality / 2), point("confidence", 0.7, lag, quality)]
        curves[name] += [point("random", 0.5, 2.0, 0.3 + jitter())] if name == "simul_dpo" else []
        curves[name] += [point("wait_k", 2, 1.6, 0.0), point("wait_k", 3, 2.64, 1.0)] if name == "preferred" else []
    return {"arms": arms, "curves": curves}


def verdicts(**changes):
    return claims(TOLD, Results(told(np.random.default_rng(seed), **changes) for seed in range(5))).verdicts()


def test_claims_that_hold_are_shown():
    found = verdicts()
    assert found.pop("C5") == "needs full scale"
    assert set(found.values()) == {"shown in small"}, found
    tested = "C1,C2,C2 alpha,C3,C4,C4 fixed AL,C4 order,C4 key points,C4 length,C6"
    assert set(found) == set(tested.split(","))


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"dpo": (1.0, 1.7)}, "C2"),
        ({"dpo": (0.8, 1.9)}, "C3"),
        ({"swapped": (0.2, 1.8)}, "C4"),
        ({"simul_dpo": (0.6, 2.0)}, "C1"),
        ({"alpha_5": (0.9, 1.83)}, "C2 alpha"),
        ({"alpha_5": (1.0, 1.47)}, "C2 alpha"),  # a free lunch is a bug
        ({"ipo": (0.9, 3.1)}, "C6"),
    ],
)
def test_claims_that_fail_are_not_shown(changes, claim):
    assert verdicts(**changes)[claim] == "not shown"


# ---------------------------------------------------------------------------------------------------------------- view
def decisions():
    rows = []
    for value, lag in ((0.3, 1.0), (0.7, 2.5)):
        for sentence in (0, 1):
            shared = {"sentence": sentence, "source": "<b>s1</b> f0", "chosen": "x", "reader": "confidence"}
            shared |= {"value": value, "AL": lag, "written": 0, "token": 5}
            rows += [
                {**shared, "read": 1, "action": "READ", "confidence": 0.2, "text": "a"},
                {**shared, "read": 2, "action": "WRITE", "confidence": 0.9, "text": "<script>x</script>"},
            ]
    return pd.DataFrame(rows)


def test_text_is_escaped_and_the_slider_moves_the_path():
    shown = [trace.visible for trace in ReadWritePath(decisions()).figure().data]
    assert shown == [False, True]  # the threshold nearest to 0.7
    figure = ReadWritePath(decisions(), tau=0.3).figure()
    raw = figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
    assert "<script>" not in raw
    assert "<b>" not in raw
    assert [trace.visible for trace in figure.data] == [True, False]
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0.3", "0.7"]
    assert slider.steps[1].args[0]["visible"] == [False, True]
    assert "AL 2.50" in slider.steps[1].args[1]["title.text"]
    assert "AL 1.00" in figure.layout.title.text
    assert list(figure.data[0].marker.color) == [0.2, 0.9]


def test_static_face_and_live_face():
    view = ReadWritePath(decisions())
    assert "application/vnd.plotly.v1+json" in view._repr_mimebundle_()
    assert view.widget().children[0].options == (0, 1)
    assert len(view.frame()) == 8
    with pytest.raises(ValueError, match=r"sentence 7 was not kept; kept are \[0, 1\]"):
        view.figure(7)
    with pytest.raises(ValueError, match="no decisions of a confidence policy"):
        ReadWritePath(decisions().assign(reader="wait_k"))


def test_figures_state_their_finding():
    text = {"LAAL": 2.0, "AP": 0.5, "DAL": 2.0, "length": 7, "truncated": 0, "early_ends": 0}
    text |= {"monotonicity": 1.0, "key_points": 1.0, "words_per_clause": 3.0}

    def curve(quality):
        return [{"reader": "confidence", "value": v, "AL": 1 + v, "quality": quality, **text} for v in (0.3, 0.7)]

    results = Results([{"curves": {"simul_dpo": curve(1.0), "msft": curve(0.5)}}] * 5)
    figure = curve_figure(TOLD, results).figure()
    assert figure.layout.title.text.startswith("Quality against latency: SimulDPO reaches 100%")
    assert set(aspect_figure(TOLD, results).frame()["measure"]) >= {"quality", "AL", "monotonicity"}
    assert len(counted(TOLD, results)) == 2


# ----------------------------------------------------------------------------------------------------------- real text
@pytest.fixture(scope="module")
def real_model(tmp_path_factory):
    said = "Translate simultaneously. Source so far: a letter was found."
    return save_policy(tmp_path_factory.mktemp("model"), said, max_length=512)


def real_pairs(shared, path, **changes):
    """Real sentences as sources, their words in order and in another order as the two sides."""
    rows = []
    for line in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()[:20]:
        words = json.loads(line)["question"].split()[:7]
        rows.append(
            {"source": " ".join(words), "chosen": " ".join(words[:5]), "rejected": " ".join(words[::-1])}
            | {"lang": "en-en", "key_items": words[:1], "alignment": [[i, i] for i in range(5)], **changes}
        )
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_real_rows_train_both_stages_and_are_decoded_in_words(shared, real_model, tmp_path, runs_root):
    dataset = real_pairs(shared, tmp_path / "pairs.jsonl")
    given = {"scale": "smoke", "model": str(real_model), "dataset": dataset, "seeds": [0, 1, 2]}
    given |= {"overrides": {"arms": ["simul_dpo"], "n_pairs": 8, "test_size": 3, "max_new_tokens": 6}}
    experiment = methods.Experiment("simulpl", **given)
    seed = experiment.run.child("seed-0")
    results = Results([run_seed(simulpl, experiment.task, experiment.config, 0, seed)] * 3)
    metrics = Run(experiment.run.folder / "seed-0/simul_dpo/round-1").metrics()
    assert len(metrics) == 2
    numbers = results[0]["arms"]["simul_dpo"][0]
    assert numbers["AP"] > 0
    assert np.isfinite([numbers[name] for name in ("quality", "AL", "LAAL", "DAL", "chrf")]).all()
    steps = pd.read_parquet(experiment.run.folder / "seed-0/simul_dpo/steps.parquet")
    assert steps["read"].max() == 7  # words, not tokens
    assert {"C5"} <= set(claims(experiment, results).verdicts())


def test_real_rows_that_cannot_be_used(shared, real_model, tmp_path):
    settings = simulpl.Config.at("smoke", True, lang="de-en", test_size=3)
    task = simulpl.open_task(settings, model=str(real_model), dataset=real_pairs(shared, tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="row 0, column 'lang': 'en-en' is not the direction 'de-en'"):
        task.pairs("train", 0)
    bad = real_pairs(shared, tmp_path / "b.jsonl", chosen=None)
    task = simulpl.open_task(simulpl.Config.at("smoke", True, test_size=3), model=str(real_model), dataset=bad)
    with pytest.raises(ValueError, match="row 0, column 'chosen': text is needed; got None"):
        task.pairs("train", 0)


def test_a_rewriter_writes_the_preferred_side(shared, real_model, tmp_path, runs_root):
    """A random model writes nothing usable: every reply is counted, none is guessed at."""
    dataset = real_pairs(shared, tmp_path / "c.jsonl")
    settings = simulpl.Config.at("smoke", True, rewriter=str(real_model), test_size=3)
    task = simulpl.open_task(settings, model=str(real_model), dataset=dataset)
    with pytest.raises(ValueError, match="test_size must be between"):
        task.pairs("train", 0)
    assert list((runs_root / ".cache").glob("rewrites-*.jsonl"))


def test_nothing_to_train_on(policy):
    class Same(Clauses):
        def pairs(self, split, seed):
            return [
                {"source": "s0 f0", "chosen": "s0'", "rejected": "s0'"},
                {"source": "s0", "chosen": "a", "rejected": "b"},
            ]

    with pytest.raises(ValueError, match="no pair is left to train on"):
        token_pairs(Same(), policy, 0, "word")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_world_teaches_the_policy_to_wait(tmp_path, monkeypatch):
    """MSFT on preferred translations reaches nearly the lowest possible AL; wait-k needs more."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    settings = simulpl.Config.at(
        "tiny", arms=["preferred"], msft_steps=200, test_size=40, taus=[0.7], waits=[1, 3], world={"start_steps": 150}
    )
    curve = {}
    task = simulpl.open_task(settings)
    run = Run(tmp_path / "seed" / "preferred")
    (at,) = simulpl.train_arm(task, settings, ARMS["preferred"], 100, run)
    for row in pd.read_parquet(run.folder / "curve.parquet").itertuples():
        curve[row.reader, row.value] = (row.AL, row.quality)
    assert at["quality"] > 0.9
    assert at["AL"] == pytest.approx(LOWEST_AL, abs=0.1)
    assert curve["wait_k", 1.0][1] < 0.05
    assert curve["wait_k", 3.0][0] == pytest.approx(2.64, abs=0.05)
