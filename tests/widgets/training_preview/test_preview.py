"""The training preview's faces for scripts, and its bad input. The view itself is driven in tests/browser."""

import json

import numpy as np
import pytest
from preview_rows import HIDDEN, clean, faulty, policy

from workbench.kernels import Group
from workbench.models import Policy
from workbench.training.reference import PairRow
from workbench.widgets import scripted
from workbench.widgets.training_preview import TrainingPreview, preview
from workbench.worlds.language import word_tokenizer


@pytest.fixture(scope="module")
def tiny():
    return policy()


@pytest.fixture(scope="module")
def faults(tiny):
    return TrainingPreview.of_rows(tiny, faulty(), max_length=400, held_out=[{"prompt": faulty()[20]["prompt"]}])


def test_it_shows_exactly_the_tokens_that_policy_group_gives(tiny, faults):
    tiny.counts.clear()
    groups = [tiny.group(row["prompt"], [row["chosen"], row["rejected"]], max_length=400) for row in faulty()]
    assert faults.groups == groups
    cut = {name: faults.summary()[name] for name in ("prompts_cut", "responses_cut")}
    assert cut == dict(tiny.counts) == {"prompts_cut": 1, "responses_cut": 1}
    assert [sum(n) for n in (faults.frame().prompt_cut, faults.frame().responses_cut)] == [
        len(tiny.encode_prompt(faulty()[10]["prompt"])) - 200,
        len(tiny.encode_response(faulty()[4]["chosen"])) - (400 - len(groups[4].prompt_ids)),
    ]


def test_looking_counts_nothing(tiny):
    before = tiny.counts.copy()
    TrainingPreview.of_rows(tiny, faulty(), max_length=400)
    assert tiny.counts == before


def test_warnings_name_their_rows(faults):
    table = faults.warnings().set_index("code")
    first = {"response_cut": [4], "in_held_out": [20], "special_in_prompt": [8], "prompt_cut": [10], "identical": [1]}
    first |= {"near_identical": [13], "conflicting": [3, 6], "duplicates": [2, 5], "template_in_text": [8]}
    first |= {"hidden_characters": [9], "leaked": [8, 12], "empty_other": [7], "starts_with_blank": [11]}
    assert table.first_rows.to_dict() == first | {"special_in_response": [9]}
    assert table.severity.tolist() == ["severe"] * 3 + ["warning"] * 9 + ["note"] * 2
    assert table.rows["leaked"] == 2
    assert table.share["leaked"] == pytest.approx(2 / 30)
    assert faults.frame().warnings[8] == "special_in_prompt, template_in_text, leaked"
    assert faults.frame().warnings[14] == ""


def test_check_stops_on_severe_faults_and_clean_rows_pass(tiny, faults):
    said = r"3 severe faults in 30 rows: response cut: no end token \(response_cut\): row 4\. Raise"
    with pytest.raises(ValueError, match=said):
        faults.check()
    with pytest.raises(ValueError, match="1 severe faults in 30 rows: prompt is held out"):
        faults.check(allow=["response_cut", "special_in_prompt"])
    faults.check(allow=["response_cut", "special_in_prompt", "in_held_out"])
    with pytest.raises(ValueError, match="unknown codes cut; known: response_cut"):
        faults.check(allow=["cut"])
    view = TrainingPreview.of_rows(tiny, clean())
    view.check()
    assert len(view.warnings()) == 0
    assert "no  warnings" in repr(view)


def test_tokens_of_a_row(tiny, faults):
    table = faults.tokens(9)
    prompt, rejected = table[table.part == "prompt"], table[table.part == "rejected"]
    assert prompt.text.tolist()[:2] == ["<s>", "<|user|>"]
    assert prompt.text.iloc[-1] == "<|assistant|>"
    assert not prompt.scored.any()
    assert rejected.scored.all()
    assert rejected.id.tolist() == faults.groups[9].responses_ids[1]
    assert rejected.position.tolist() == [len(prompt) + i for i in range(len(rejected))]
    assert (rejected.text.iloc[-1], rejected.special.iloc[-1], rejected.special.sum()) == ("</s>", True, 1)
    assert rejected.differs.sum() == 1
    assert table[table.part == "chosen"].differs.sum() == 0
    assert faults.words.join(faults.groups[9].responses_ids[1]) == HIDDEN
    with pytest.raises(ValueError, match="row 30: there are rows 0 to 29"):
        faults.tokens(30)


def test_rows_as_the_trainer_takes_them(tiny):
    groups = [tiny.group(row["prompt"], [row["chosen"], row["rejected"]]) for row in clean(4)]
    rows = [PairRow(f"pair {i}", group, (0.0, 0.0)) for i, group in enumerate(groups)]
    view = TrainingPreview(tiny, rows, held_out=[groups[2], clean(4)[3]["prompt"]])
    assert view.frame().name.tolist() == ["pair 0", "pair 1", "pair 2", "pair 3"]
    assert view.frame().prompt_cut.isna().all()
    assert view.warnings().first_rows.tolist() == [[2, 3]]
    assert "what was cut before cannot be seen" in repr(view)
    moved = Group([0, 5, 6], [[7, 1]], prompt_positions=[0, 4, 9])
    assert TrainingPreview(tiny, [moved]).tokens(0).position.tolist() == [0, 4, 9, 10, 11]


def test_demonstrations_and_rankings(tiny):
    demonstrations = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in clean(5)]
    view = TrainingPreview.of_rows(tiny, demonstrations, "demonstration")
    assert list(view.frame().columns[:3]) == ["name", "prompt_tokens", "response_tokens"]
    assert repr(view).startswith("5 demonstrations, ")
    assert len(view.figure().data[0].x) == 5
    rankings = [
        {"prompt": "why?", "responses": ["a b", "c", "d e f"][: 2 + i], "scores": [1, 2, 3][: 2 + i]} for i in range(2)
    ]
    view = TrainingPreview.of_rows(tiny, rankings, "ranking")
    assert view.data()["scores"] == [[1.0, 2.0], [1.0, 2.0, 3.0]]
    assert view.frame()["response 3_tokens"].isna().tolist() == [True, False]
    assert set(view.tokens(1).part) == {"prompt", "response 1", "response 2", "response 3"}


def test_numbers_of_all_rows(tiny, faults):
    s, frame = faults.summary(), faults.frame()
    assert s["rows"] == 30
    assert s["scored_tokens"] == frame.chosen_tokens.sum() + frame.rejected_tokens.sum()
    assert s["tokens"] == s["scored_tokens"] + frame.prompt_tokens.sum()
    assert s["lengths"]["chosen"][2] == frame.chosen_tokens.max()
    for name, column in (("prompt", "prompt_tokens"), ("chosen", "chosen_tokens"), ("rejected", "rejected_tokens")):
        (spread,) = [part for part in faults.data()["spread"] if part["name"] == name]
        assert sum(spread["counts"]) == 30
        assert spread["counts"][0] == (frame[column] < spread["width"]).sum()
        assert len(spread["counts"]) <= 24
    (points,) = faults.figure().data
    assert sum(points.customdata) == 30
    assert set(zip(points.x, points.y, strict=True)) == set(
        zip(frame.rejected_tokens, frame.chosen_tokens, strict=True)
    )


def test_the_bundle_is_plain_json_and_holds_what_fits(tiny, faults, monkeypatch):
    bundle = faults._repr_mimebundle_()
    view = json.loads(json.dumps(bundle[scripted.VIEW_MIME], allow_nan=False))
    assert view["state"]["chosen"] == 1
    data = view["state"]["data"]
    assert len(data["ids"]) == len(data["listed"]) == 30
    assert data["ids"]["0"] == [faults.groups[0].prompt_ids, *faults.groups[0].responses_ids]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"].startswith("30 pairs, ")
    monkeypatch.setattr(preview, "CARRIED", 6_000)
    monkeypatch.setattr(preview, "LISTED", 20)
    small = TrainingPreview.of_rows(tiny, faulty(), max_length=400).data()
    assert (small["total"], len(small["listed"])) == (30, 20)
    assert 0 < len(small["ids"]) < 20
    assert {1, 2, 3} < set(map(int, small["ids"]))  # rows with warnings come first
    assert all(set(finding["rows"]) <= set(small["listed"]) for finding in small["findings"])


def test_tokens_on_request(tiny, faults, monkeypatch):
    widget, sent = faults.widget(), []
    monkeypatch.setattr(widget, "send", sent.append)
    faults._on_message(widget, {"kind": "tokens", "row": 9})
    assert sent[0]["ids"][2] == faults.groups[9].responses_ids[1]
    assert sent[0]["vocabulary"][str(tiny.tokenizer.eos_token_id)] == "</s>"
    for bad in (-1, 30, "9", None):
        faults._on_message(widget, {"kind": "tokens", "row": bad})
    assert len(sent) == 1


def test_bad_rows_are_named(tiny):
    ok = tiny.group("why?", ["so"])
    for rows, message in (
        ([], "no rows to preview"),
        ([ok, {"prompt": "x"}], "row 1 is a dict without a group of tokens; for raw rows use TrainingPreview.of_rows"),
        ([ok, Group([], [[1]])], "row 1 has an empty prompt"),
        ([ok, Group([0], [[1], []])], "row 1, response 1 has no tokens"),
        ([ok, Group([0], [[9_999, 1]])], "row 1: token 9999 is none of the model's 352"),
        ([ok, Group([0, -3], [[1]])], "row 1: token -3 is none of the model's 352"),
        ([Group([0], [])], "row 0 has no responses"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainingPreview(tiny, rows)


def test_bad_raw_rows_are_named(tiny):
    row = clean(1)[0]
    for rows, more, message in (
        ([row], {"kind": "rating"}, "kind must be one of preference, ranking, demonstration; got 'rating'"),
        ([row], {"max_length": -1}, "lengths are 0 or more; got max_length=-1"),
        ([row, {"prompt": "x"}], {}, "row 1: column 'chosen' is missing"),
        ([row, {**row, "chosen": np.nan}], {}, "row 1, column 'chosen': text is needed; got float"),
        (
            [{"prompt": "x", "responses": ["a", "b"], "scores": [1, np.nan]}],
            {"kind": "ranking"},
            "row 0, column 'scores': finite numbers",
        ),
        ([row, row], {"max_length": 4, "max_prompt_length": 4}, "row 0: max_length=4 leaves no room"),
        (
            [{**row, "prompt": [{"role": "user", "content": "x"}]}],
            {},
            "row 0, column 'prompt': .* has no chat template",
        ),
        ([{**row, "chosen": "zzz"}], {}, "row 0, column 'chosen or rejected': the tokenizer cannot write it"),
    ):
        subject = tiny
        if "chat template" in message or "cannot write" in message:
            words = word_tokenizer([*row["prompt"].split(), *row["chosen"].split(), *row["rejected"].split(), "x"])
            words.chat_template = None
            subject = Policy(tiny.model, words)
        with pytest.raises(ValueError, match=message):
            TrainingPreview.of_rows(subject, rows, **more)
