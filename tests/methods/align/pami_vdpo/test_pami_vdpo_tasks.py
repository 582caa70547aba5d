"""Videos: real pictures, a real vision-language model in the hub's format, and PaMi-VDPO trained on them end to end."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from workbench import methods
from workbench.kernels import score
from workbench.methods.align.pami_vdpo import method as pami_vdpo
from workbench.methods.align.pami_vdpo.tasks import VideoTask, with_frames
from workbench.methods.align.pami_vdpo.world import Pictures
from workbench.methods.experiment import run_seed
from workbench.runs.run import Run

COLOURS = ["red", "green", "blue", "yellow", "white", "purple"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Twelve videos of five pictures (a square that moves), and a small random Llava with its image processor."""
    from transformers import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for number in range(12):
        (folder / f"clip-{number}").mkdir()
        for t in range(5):
            picture = Image.new("RGB", (40, 30), COLOURS[number % 6])
            ImageDraw.Draw(picture).rectangle([6 * t, 8, 6 * t + 8, 16], fill=COLOURS[(number + 1 + t) % 6])
            picture.save(folder / f"clip-{number}" / f"{t}.png")
        rows.append({"video": f"clip-{number}", "prompt": f"HAS o{number}", "response": "yes"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Pictures(width=16).start(0).save(folder / "model")
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder / "model")
    return folder


def task_of(folder, **options):
    return VideoTask(
        str(folder / "rows.jsonl"), str(folder / "model"), device="cpu", n_frames=3, test_size=4, **options
    )


def test_pictures_are_seen_as_the_models_own_pass_sees_them(videos):
    task = task_of(videos)
    policy, row = task.start(0), task.triples("train", 0)[0]
    group = task.group(policy, row["evidence"], row["prompt"], row["response"])
    image = policy.model.config.image_token_id
    assert group.prompt_ids.count(image) == len(group.features) == 3 * len(task.look(policy, row["evidence"][0]))
    pixels = torch.cat(
        [task._processor[0](images=[Image.open(file)], return_tensors="pt")["pixel_values"] for file in row["evidence"]]
    )
    ids = torch.tensor([group.prompt_ids + group.responses_ids[0]])
    logps = policy.model(input_ids=ids, pixel_values=pixels).logits.log_softmax(-1)[0, :-1]
    expected = logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(group.prompt_ids) - 1 :].sum()
    torch.testing.assert_close(score(policy, [group]).sums[0, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_picture_is_looked_at_once(videos, monkeypatch):
    task = task_of(videos)
    policy, row = task.start(0), task.triples("train", 0)[0]
    task.group(policy, row["evidence"], row["prompt"], row["response"])
    monkeypatch.setattr(policy, "features", lambda pixels: pytest.fail("looked again"))
    task.group(policy, row["evidence"][::-1], row["prompt"], row["response"])


def test_real_videos_end_to_end(videos, runs_root):
    """Some optimiser steps of the method on pictures; vision tower and projector stay as they are."""
    overrides = {"arms": ["pami", "shuffled"], "max_steps": 3, "n_frames": 4, "kinds": ["shuffle", "crop", "mix"]}
    given = {"model": str(videos / "model"), "dataset": str(videos / "rows.jsonl"), "scale": "smoke", "seeds": [0]}
    experiment = methods.Experiment("pami_vdpo", overrides=overrides | {"weighting": "none"}, **given)
    found = run_seed(pami_vdpo, experiment.task, experiment.config, 0, experiment.run.child("seed-0"))
    before, after = found["arms"]["pami"]
    assert after["evidence_nats"] != before["evidence_nats"]
    metrics = Run(experiment.run.folder / "seed-0" / "pami" / "round-1").metrics()
    assert [round(metrics[i]["loss"], 4) == round(math.log(2), 4) for i in (0, -1)] == [True, False]
    assert math.isnan(found["selection"]["pami"]["false_rejections"])
    trains = [name for name, p in experiment.task.start(0).model.named_parameters() if p.requires_grad]
    assert trains
    assert not any("vision_tower" in name or "projector" in name for name in trains)


def test_videos_that_cannot_be_read_are_listed_and_never_filled_up(videos, tmp_path, caplog):
    (tmp_path / "broken").mkdir()
    for t in range(3):
        (tmp_path / "broken" / f"{t}.png").write_bytes(b"no picture")
    rows = [
        {"video": str(videos / "clip-0")},
        {"video": "broken"},
        {"video": "gone"},
        {"video": [str(videos / "clip-1" / "0.png")] * 2},
    ]
    with caplog.at_level(logging.WARNING):
        kept, lost = with_frames(rows, 3, tmp_path)
    assert [len(row["evidence"]) for row in kept] == [1 * 3]
    assert len(lost) == 3
    assert "3 of 4 videos have no 3 readable pictures" in caplog.text
    with pytest.raises(ValueError, match="row 0, column 'video': a folder or a list of picture files is needed"):
        with_frames([{"video": ""}], 3, tmp_path)


def test_equal_pictures_under_two_names_are_one(videos, tmp_path):
    """So a clip of one colour that is shuffled is found to be the original."""
    files = [str(videos / "clip-0" / "0.png"), str(tmp_path / "copy.png")]
    (tmp_path / "copy.png").write_bytes((videos / "clip-0" / "0.png").read_bytes())
    (row,), _ = with_frames([{"video": files}], 2, tmp_path)
    assert len(set(row["evidence"])) == 1


def test_what_does_not_fit_or_spells_a_picture_is_refused(videos):
    task = task_of(videos, max_length=8)
    policy, row = task.start(0), task.triples("train", 0)[0]
    with pytest.raises(ValueError, match=r"3 frames, prompt and response .* tokens, more than 8; take fewer frames"):
        task.group(policy, row["evidence"], row["prompt"], row["response"])
    with pytest.raises(ValueError, match="contains <image>, which stands for a picture; remove it"):
        task.group(policy, row["evidence"], "<image> HAS", row["response"])
    assert np.array_equal(task.embed(policy, ["black"]), task.embed(policy, ["black"]))
