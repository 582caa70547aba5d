"""Clips: the oracle by hand and on altered clips, questions and habit, pictures, a start that looks and leans."""

import numpy as np
import pytest
import torch

from workbench.kernels import score
from workbench.methods.align.pami_vdpo.alterations import ALTERATIONS
from workbench.methods.align.pami_vdpo.world import BLANK, GROUNDED, OBJECTS, Clips, Pictures, picture

WORLD = Clips(n_triples=40, n_test=30, grounded_steps=3, habit_steps=2, width=16)
CLIP = ["o1", "o9", "o3", "o4", "o12", "o0"]


def test_truth_by_hand():
    assert WORLD.truth(CLIP, "HAS o4") == "yes"
    assert WORLD.truth(CLIP, "HAS o5") == "no"
    assert WORLD.truth(CLIP, "EARLY o3") == "yes"
    assert WORLD.truth(CLIP, "EARLY o4") == "no"
    assert WORLD.truth([BLANK] * 6, "HAS o4") == "no"


def test_which_alterations_change_which_answer():
    rng = np.random.default_rng(0)
    for row in WORLD.questions(50, rng):
        for kind in ("shuffle", "reverse"):
            other = ALTERATIONS[kind](row["evidence"], rng, CLIP, BLANK)
            if row["kind"] == "HAS":
                assert WORLD.truth(other, row["prompt"]) == row["response"]
            elif kind == "reverse" and WORLD.truth(row["evidence"], row["prompt"].replace("EARLY", "HAS")) == "yes":
                assert WORLD.truth(other, row["prompt"]) != row["response"]


def test_questions_follow_truth_and_habit():
    rng = np.random.default_rng(1)
    for habit in (True, False):
        rows = WORLD.questions(60, rng, question="EARLY", habit=habit)
        assert all(WORLD.truth(row["evidence"], row["prompt"]) == row["response"] for row in rows)
        assert all((WORLD.habit(row["prompt"]) == row["response"]) == habit for row in rows)
        assert all(len(set(row["evidence"])) == 6 for row in rows)
        assert 0.3 < np.mean([row["response"] == "yes" for row in rows]) < 0.7
    assert all(WORLD.habit(row["prompt"]) == row["response"] for row in WORLD.triples("train", 0))
    assert WORLD.triples("train", 0) == WORLD.triples("train", 0) != WORLD.triples("train", 1)


def test_measurements_of_a_model_that_always_says_yes(runs_root, monkeypatch):
    monkeypatch.setattr(Clips, "answers", lambda self, policy, rows: ["yes"] * len(rows))
    found = WORLD.evaluate(None, 0)
    # plain accuracy would say one half
    assert [found[name] for name in ("basic", "hallucinated", "paired")] == [1.0, 0.0, 0.0]
    assert 0.35 < found["yes_bias"] < 0.65


def test_starts_are_cached_and_say_how_well_they_see(runs_root):
    policy = WORLD.start(0)
    assert 0 <= WORLD.grounded(0) <= 1
    group = WORLD.group(policy, CLIP, "HAS o4", "yes")
    assert len(group.responses_ids[0]) == 1
    assert group.responses_ids == WORLD.group(policy, CLIP[::-1], "HAS o4", "yes").responses_ids
    (folder,) = (runs_root / ".cache").glob("clips-start-*")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    WORLD.start(0)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_pictures_tell_all_objects_apart_and_are_seen_once(monkeypatch):
    shown = {picture(f"o{i}").tobytes() for i in range(OBJECTS)} | {picture(BLANK).tobytes()}
    assert len(shown) == OBJECTS + 1
    task = Pictures(width=16)
    policy = task.start(0)
    calls, real = [], type(policy).features
    monkeypatch.setattr(type(policy), "features", lambda self, pixels: (calls.append(1), real(self, pixels))[1])
    first = task.group(policy, CLIP, "HAS o4", "yes")
    turned = task.group(policy, CLIP[::-1], "HAS o4", "yes")
    assert len(calls) == 6  # an altered clip is another order of known frames
    assert torch.equal(turned.features[:4], first.features[-4:])
    logps = score(policy, [first, turned], route="padded").sums
    assert logps[0] != logps[1]
    assert task.embed(policy, CLIP).shape == (6, 16)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_start_sees_and_leans_on_its_habit(runs_root):
    world = Clips(n_test=200)
    found = world.evaluate(world.start(100), 0)
    assert world.grounded(100) >= GROUNDED
    assert found["with"] > 0.97
    assert found["HAS against"] < 0.8
