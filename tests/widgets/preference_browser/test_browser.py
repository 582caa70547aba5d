"""The preference browser's faces for scripts, its filters, labels, exports, log-ratios, and its bad input."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.models import Policy, add_lora, bpe_tokenizer, new_llama
from workbench.widgets import scripted
from workbench.widgets.preference_browser import PreferenceBrowser, labels, token_ratios
from workbench.widgets.preference_browser import browser as preference_browser
from workbench.widgets.preference_browser import rows as preference_rows
from workbench.worlds.language import word_tokenizer


@pytest.fixture(autouse=True)
def _fresh_session(monkeypatch):
    monkeypatch.setattr(preference_browser, "_session", {})


def pairs():
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "When?"}]
    rewards = {"chosen_rewards": 1.5, "rejected_rewards": 0.5, "source_chosen": "human", "source_rejected": "model"}
    noted = {**rewards, "iteration": 0, "note": {"a": [1, math.nan]}}
    said = {"margin": 0.25, "p_chosen": 0.9, "source": "chats", "iteration": 10}
    return [
        {"prompt": "why?", "chosen": "Because so.", "rejected": "no", **noted},
        {"prompt": "who?", "chosen": "x", "rejected": "x", "margin": math.nan, "iteration": 1},
        {"prompt": "who?", "chosen": "me", "rejected": "", "margin": -2.0, "p_chosen": 0.5, "iteration": 1},
        {"prompt": chat, "chosen": "Now", "rejected": "LATER", **said},
    ]


def ranking():
    return {"prompt": "best?", "responses": ["a", "bb", "ccc"], "scores": [1.0, 3.0, 2.5], "names": ["p", "q", "r"]}


def rated():
    return {"prompt": "how?", "completion": "so", "score": 4}


# -------------------------------------------------------------------------------------------------- rows and filters
def test_three_kinds_in_one_view():
    light = PreferenceBrowser([*pairs(), ranking(), rated()]).rows.light
    assert light["kind"].tolist() == ["pair"] * 4 + ["ranking", "rated"]
    np.testing.assert_equal(light["margin"].tolist(), [1.0, np.nan, -2.0, 0.25, 0.5, np.nan])
    np.testing.assert_equal(light["length"].tolist(), [9, 0, 2, -2, 1, np.nan])
    assert light["identical"].tolist() == [False, True, False, False, False, False]
    assert light["tie"].tolist() == [False, False, True, False, False, False]
    assert light["empty"].tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, [0, 1, 2, 3]),
        ({"down": True}, [3, 2, 1, 0]),
        ({"sort": "margin"}, [2, 3, 0, 1]),
        ({"sort": "margin", "down": True}, [0, 3, 2, 1]),
        ({"sort": "length", "down": True}, [0, 2, 1, 3]),
        ({"sort": "iteration"}, [0, 1, 2, 3]),
        ({"text": " LATER "}, [3]),
        ({"text": "user: when"}, [3]),
        ({"text": "who"}, [1, 2]),
        ({"low": 0.25}, [0, 3]),
        ({"low": -2, "high": 0.25}, [2, 3]),
        ({"source": "model"}, [0]),
        ({"source": "chats"}, [3]),
        ({"iteration": 1}, [1, 2]),
        ({"state": "identical"}, [1]),
        ({"state": "tie"}, [2]),
        ({"state": "margin unknown"}, [1]),
        ({"text": "nowhere"}, []),
    ],
)
def test_filters(changes, shown):
    assert PreferenceBrowser(pairs()).filter(**changes).order.tolist() == shown


def test_search_keeps_to_rows_whatever_their_alphabet():
    rows = [
        {"prompt": p, "chosen": c, "rejected": "z"}
        for p, c in [("ÄÖ ß", "İstanbul"), ("日本", "\U0001f600"), ("ab", "cd")]
    ]
    browser = PreferenceBrowser(rows)
    found = {
        text: browser.filter(text=text).order.tolist() for text in ("äö", "ß", "本", "😀", "z", "İST", "zab", "b\ncd")
    }
    assert found == {"äö": [0], "ß": [0], "本": [1], "😀": [1], "z": [0, 1, 2], "İST": [0], "zab": [], "b\ncd": [2]}


def test_facets_are_in_natural_order_and_one_value_is_none():
    facets = PreferenceBrowser([{**row, "seed": 0} for row in pairs()]).rows.facets
    assert facets == {"iteration": ["0", "1", "10"], "arm": [], "seed": [], "source": ["chats", "human", "model"]}


def test_repeated_rows_are_counted():
    browser = PreferenceBrowser([rated(), rated(), {**rated(), "completion": "thus"}])
    assert browser.rows.light["copies"].tolist() == [2, 2, 1]
    assert browser.filter(state="duplicate").order.tolist() == [0, 1]


def test_one_chosen_answer_and_several_rejected_ones_are_a_ranking():
    # scores of chunks, not of answers
    rows = [{"question": "q", "chosen": "a", "rejected": ["b", "c"], "scores": [0.5] * 6}]
    browser = PreferenceBrowser(rows)
    assert browser.rows.kinds == ["ranking"]
    row = browser.rows.raw[0]
    assert (row["responses"], row["ranks"], row["scores given"]) == (["a", "b", "c"], [1, 2, 2], [0.5] * 6)
    browser.relabel(0, 2)
    assert browser.frame()["ranks"][0] == [2, 1, 2]


def test_an_empty_set_is_drawn_as_one():
    browser = PreferenceBrowser([])
    assert len(browser.frame()) == 0
    assert browser.data()["total"] == 0
    assert browser.figure().data == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "text": "b"}], "row 0 is no pair, ranking or rated row: .*; found prompt, text"),
        ([pairs()[0], {"prompt": "a", "chosen": "b"}], "row 1 is no pair.*; found prompt, chosen"),
        ([{**pairs()[0], "rejected": 3}], "row 0, column 'rejected': text or a chat list is needed; got int 3"),
        ([{**pairs()[0], "chosen": math.nan}], "row 0, column 'chosen': text or a chat list is needed; got float nan"),
        ([{**pairs()[1], "margin": "big"}], "row 0, column 'margin': a number is needed; got 'big'"),
        ([{**pairs()[0], "prompt": [{"role": "user"}]}], "row 0, column 'prompt': turn 0 needs a role and content"),
        ([{**ranking(), "scores": [1.0]}], "row 0, column 'scores': 3 responses need as many values; got 1"),
        ([{**ranking(), "scores": None}], "row 0: a ranking needs scores or ranks; found prompt, responses"),
        ([{**ranking(), "scores": [1, "2", 3]}], "row 0, column 'scores': numbers are needed; value 1 is '2'"),
        (
            [{**ranking(), "responses": ["a", None, "c"]}],
            "row 0, column 'responses': text is needed; response 1 is NoneType",
        ),
        (
            [{**pairs()[0], "rejected": None}],
            "row 0, column 'rejected': it is missing \\(null\\); an empty response is",
        ),
        (["text"], "row 0: a row is a dict with named columns; got str"),
        ([{**rated(), "score": "good"}], "row 0, column 'score': a number is needed; got 'good'"),
    ],
)
def test_bad_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        PreferenceBrowser(rows)


def test_bad_filters():
    browser = PreferenceBrowser(pairs())
    for changes, message in (
        ({"colour": 1}, "no filter 'colour'; known: text, low"),
        ({"state": "odd"}, "state must be one of all, relabelled.*; got 'odd'"),
        ({"sort": "size"}, "sort must be one of order, margin.*; got 'size'"),
        ({"low": "1"}, "low is a number or None; got '1'"),
        ({"high": math.nan}, "high is a number or None; got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            browser.filter(**changes)


def test_nan_scores_come_last_and_unknown():
    row = {**ranking(), "scores": [math.nan, 1.0, 2.0]}
    browser = PreferenceBrowser([row, {"prompt": "p", "responses": ["a", "b"], "ranks": [2, 1]}])
    assert preference_rows.responses(browser.rows.raw[0]) == ["ccc", "bb", "a"]
    assert preference_rows.responses(browser.rows.raw[1]) == ["b", "a"]
    assert browser.rows.light["margin"].tolist()[0] == 1.0
    assert math.isnan(browser.rows.light["margin"][1])  # ranks have no distance


# -------------------------------------------------------------------------------------------------------- sources
def test_other_projects_names_and_chats(tmp_path):
    rows = [
        {"question": "q", "real": "human", "generated": "model"},
        {
            "chosen": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "bad"}],
        },
        {"prompt": "p", "response_a": "A", "response_b": "B", "p_b_preferred": 0.8},
        {"prompt": "p", "response_a": "A", "response_b": "B", "p_b_preferred": 0.5},
        {"prompt": "p", "m1": {"solution": "s", "is_correct": True}, "m2": {"solution": "t", "is_correct": False}},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    browser = PreferenceBrowser.of_dataset(str(path))
    raw = browser.rows.raw
    assert (raw[0]["prompt"], raw[0]["chosen"], raw[0]["rejected"]) == ("q", "human", "model")
    assert raw[1]["prompt"] == [{"role": "user", "content": "u"}]
    assert (raw[1]["chosen"], raw[1]["rejected"]) == ("good", "bad")
    assert (raw[2]["chosen"], raw[2]["p_chosen"]) == ("B", 0.8)
    assert browser.filter(state="tie").order.tolist() == [3]
    assert raw[4]["names"] == ["m1", "m2"]
    browser.relabel(0, "right")
    assert browser.labels()[["source", "row"]].values.tolist() == [["rows.jsonl", 0]]


def test_of_run_reads_every_table_with_its_place(tmp_path):
    run = tmp_path / "tiny-12"
    for seed, arm, t in ((0, "spin", 1), (0, "spin", 2), (1, "long", 1)):
        home = run / f"seed-{seed}" / arm / f"round-{t}"
        home.mkdir(parents=True)
        table = pd.DataFrame(
            [{"prompt": json.dumps([{"role": "user", "content": f"{arm}{t}"}]), "chosen": "a", "rejected": "b"}]
        )
        table.assign(rejected_ids=[[1, 2]]).to_parquet(home / "held_out.parquet")
        table.assign(chosen_rewards=1.0, rejected_rewards=0.25).to_parquet(home / "held_out_rewards.parquet")
        table.to_parquet(home / "generated.parquet")
        table.to_parquet(home / "generated-0.parquet")  # a shard of the one above
        pd.DataFrame({"x": [1]}).to_parquet(home / "policy.parquet")
        unjudged = pd.DataFrame({"prompt": ["p"], "responses": [["u", "v"]]})
        unjudged.to_parquet(home / "samples.parquet")
        (home / "probe").mkdir()
        table.to_parquet(home / "probe" / "rows.parquet")  # what a probe looked at, which the monitor shows
    lists = pd.DataFrame(
        {"list": [0, 0, 1], "prompt": "p", "response": ["u", "v", "w"], "score": [0.0, 1.0, 2.0], "before": 0.0}
    )
    lists.to_parquet(run / "seed-0" / "held_out_lists.parquet")
    browser = PreferenceBrowser.of_run(run, tables=["held_out", "held_out_rewards", "held_out_lists"])
    table = browser.rows.light
    assert table[["seed", "arm", "iteration", "source"]].drop_duplicates().values.tolist() == [
        ["0", "", "", "held_out_lists"],
        ["0", "spin", "1", "held_out + held_out_rewards"],
        ["0", "spin", "2", "held_out + held_out_rewards"],
        ["1", "long", "1", "held_out + held_out_rewards"],
    ]
    assert table["margin"].dropna().tolist() == [1.0, 0.75, 0.75, 0.75]  # a list of one answer has none
    assert browser.rows.raw[0]["responses"] == ["u", "v"]
    assert browser.rows.raw[-1]["prompt"] == [{"role": "user", "content": "long1"}]
    assert browser.rows.raw[-1]["rejected_ids"] == [1, 2]
    origin = browser.rows.origins[browser.rows.origin_of[-1]]
    assert (origin.source, origin.table) == ("tiny-12/seed-1/long/round-1", "held_out + held_out_rewards")
    part = PreferenceBrowser.of_run(run / "seed-1" / "long")
    assert part.rows.light["arm"].unique().tolist() == ["long"]
    assert len(part.rows) == 1  # three tables hold the very same pair
    with pytest.raises(ValueError, match="tiny-12 holds no pairs, rankings or rated rows; found "):
        PreferenceBrowser.of_run(run, tables=["policy"])
    with pytest.raises(FileNotFoundError, match="no run folder"):
        PreferenceBrowser.of_run(tmp_path / "none")


# --------------------------------------------------------------------------------------------------------- labels
def test_a_swapped_pair_takes_everything_with_it_and_the_input_stays():
    given = pairs()
    browser = PreferenceBrowser(given)
    browser.relabel(0, "right")
    browser.relabel(3, "right")
    browser.relabel(1, "tie")
    rows = {row["row"]: row for row in browser.frame().to_dict("records")}
    assert (rows[0]["chosen"], rows[0]["rejected"], rows[0]["source_chosen"]) == ("no", "Because so.", "model")
    assert (rows[0]["chosen_rewards"], rows[0]["rejected_rewards"]) == (0.5, 1.5)
    assert (rows[3]["chosen"], rows[3]["margin"], rows[3]["p_chosen"]) == ("LATER", -0.25, 1.0)
    assert rows[1]["p_chosen"] == 0.5
    assert rows[0]["label"] == "rejected"
    np.testing.assert_equal(given, pairs())
    assert browser.relabels == {0: "right", 3: "right", 1: "tie"}
    assert browser.filter(state="relabelled").order.tolist() == [0, 1, 3]
    assert browser.filter(state="tie").order.tolist() == [1, 2]
    browser.relabel(2, "left")
    assert browser.filter(state="tie").order.tolist() == [1]
    browser.undo()
    assert browser.order.tolist() == [1, 2]


def test_a_ranking_deals_its_scores_anew():
    row = PreferenceBrowser([ranking()]).rows.raw[0]  # in order: bb 3, ccc 2.5, a 1
    assert labels.relabelled(row, "3")["scores"] == [3.0, 2.5, 1.0]  # a first, then bb, then ccc
    assert labels.relabelled(row, "1")["scores"] == row["scores"]
    assert labels.relabelled(row, "0")["scores"] == [6.5 / 3] * 3
    ranked = PreferenceBrowser([{"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}]).rows.raw[0]
    assert labels.relabelled(ranked, "2")["ranks"] == [2, 1]
    assert labels.preferred(row, "3") == "response 1"


def test_undo_goes_back_label_by_label():
    browser = PreferenceBrowser(pairs())
    browser.relabel(0, "right")
    browser.relabel(0, "out")
    browser.relabel(1, "tie")
    assert [browser.undo() for _ in range(4)] == [1, 0, 0, -1]
    assert browser.relabels == {}


def test_export_is_jsonl_with_provenance(tmp_path):
    browser = PreferenceBrowser([*pairs(), ranking()], name="mine")
    for row, label in ((0, "right"), (1, "out"), (4, 3)):
        browser.relabel(row, label)
    rows = [json.loads(line) for line in browser.export(tmp_path / "all.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    about = rows[0].pop("relabelled")
    assert about.pop("when").endswith("+00:00")
    place = {"source": "mine", "table": "", "row": 0, "fingerprint": labels.fingerprint(browser.rows.raw[0])}
    assert about == {"from": "chosen", "to": "rejected", "view": "PreferenceBrowser", **place}
    assert rows[0]["note"] == {"a": [1, None]}  # JSON has no NaN
    assert rows[1] == pairs()[2]
    assert rows[3]["relabelled"]["from"] == "response 2"
    assert rows[3]["relabelled"]["to"] == "response 1"
    changed = browser.export(tmp_path / "changed.jsonl", changed_only=True, left_out=True).read_text().splitlines()
    assert [json.loads(line)["relabelled"]["to"] for line in changed] == ["rejected", "left out", "response 1"]
    assert len(PreferenceBrowser.of_dataset(str(tmp_path / "all.jsonl")).rows) == 4  # it is a data set again
    with pytest.raises(ValueError, match=r"must end in .jsonl; got 'x.csv'"):
        browser.export(tmp_path / "x.csv")


def test_labels_go_to_a_file_and_back_even_if_rows_moved(tmp_path):
    browser = PreferenceBrowser(pairs())
    browser.relabel(0, "right")
    browser.relabel(3, "out")
    path = browser.save_labels(tmp_path / "labels.jsonl")
    moved = PreferenceBrowser(pairs()[::-1]).load_labels(path)
    assert moved.relabels == {3: "right", 0: "out"}
    assert moved.labels()["when"].tolist() == browser.labels()["when"].tolist()
    with pytest.raises(ValueError, match=r"line 1: its row \(rows given in Python, row 0\) is not among these 1 rows"):
        PreferenceBrowser([rated()]).load_labels(path)
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1: no label; the file must be one that save_labels wrote"):
        browser.load_labels(path)


def test_labels_that_a_row_cannot_have():
    browser = PreferenceBrowser([pairs()[0], ranking(), rated()])
    for row, label, message in (
        (0, "best", "row 0 is a pair row; its label can be left, right, tie, out; got 'best'"),
        (1, 4, "row 1 is a ranking row; its label can be 0, 1, 2, 3, x; got '4'"),
        (2, "left", "row 2 is a rated row; its label can be x; got '1'"),
    ):
        with pytest.raises(ValueError, match=message):
            browser.relabel(row, label)
    with pytest.raises(IndexError, match="row 9 of 3: rows are numbered from 0 to 2"):
        browser.relabel(9, "left")


# --------------------------------------------------------------------------------------------- both drawn faces
def test_the_bundle_is_plain_json_and_says_what_it_leaves_out():
    rows = [{**pairs()[0], "prompt": f"{i} half \ud83d"} for i in range(200)]
    browser = PreferenceBrowser(rows, page_limit=20_000).filter(down=True)
    bundle = browser._repr_mimebundle_()
    view = json.loads(json.dumps(bundle[scripted.VIEW_MIME], allow_nan=False, ensure_ascii=False).encode())
    data = view["state"]["data"]
    assert data["total"] == 200
    assert 20 < len(data["rows"]) < 80
    assert data["rows"][-1]["i"] == 199  # in the order of the view: the last ones
    assert data["columns"]["margin"] == [1.0] * len(data["rows"])
    assert len(json.dumps(data)) < 25_000
    assert "application/vnd.jupyter.widget-view+json" in bundle


def talk(browser, monkeypatch):
    widget, sent = browser.widget(), []
    monkeypatch.setattr(type(widget), "send", lambda self, content: sent.append(content))

    def ask(**content):
        sent.clear()
        browser._on_message(widget, content)
        return sent

    return widget, ask


def test_what_the_script_asks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    browser = PreferenceBrowser(pairs(), name="mine")
    widget, ask = talk(browser, monkeypatch)
    assert len(json.dumps(widget.data)) < 1_000  # no rows travel before they are asked for
    (answer,) = ask(kind="query", query=7, view={"text": "who", "sort": "margin"}, chosen=1)
    assert (answer["query"], answer["count"], answer["at"], answer["unknown"]) == (7, 2, 1, 1)
    assert [row[0] for row in answer["rows"]] == [2, 1]
    assert answer["rows"][0][4] == ["tie", "empty"]
    (row,) = ask(kind="open", place=0)
    assert row["row"]["i"] == 2
    (window,) = ask(kind="window", query=7, first=1, last=5)
    assert [row[0] for row in window["rows"]] == [1]
    (news,) = ask(kind="label", row=2, label="1")
    assert (news["changes"], news["n"], news["undo"]) == ({2: "1"}, 1, 1)
    assert browser.relabels == {2: "left"}
    assert PreferenceBrowser(pairs()).relabels == {2: "left"}  # the display cell was run again
    assert PreferenceBrowser(pairs()[:2]).relabels == {}
    for name in ("mine-relabelled.jsonl", "mine-relabelled-2.jsonl"):
        (said,) = ask(kind="export", changed_only=False)
        assert said["text"].endswith(f"4 rows are in {tmp_path / name}")
    other = browser.widget()
    browser._on_message(other, {"kind": "query", "query": 1, "view": {"text": "", "sort": "order"}})
    (row,) = ask(kind="open", place=0)
    assert row["row"]["i"] == 2  # two views of the same rows, each with its own filter
    news, undone = ask(kind="undo")
    assert (news["n"], undone["row"]) == (0, 2)
    assert PreferenceBrowser(pairs()).relabels == {}
    (problem,) = ask(kind="query", query=8, view={"low": "x"})
    assert problem["kind"] == "problem"
    assert "low is a number or None" in problem["text"]
    browser.filter(text="why", sort="order")
    assert json.loads(widget.state)["text"] == "why"  # the view follows Python


def test_figure_and_frame_show_what_the_filter_shows():
    browser = PreferenceBrowser([{**row, "source": "<b>"} for row in pairs()])
    figure = browser.figure()
    assert figure.layout.title.text == "67% of 3 margins are above 0; in 67% the better response is longer (1 unknown)"
    assert sum(len(trace.y) for trace in figure.data if trace.type == "box") == 3
    assert "<b>" not in [trace.name for trace in figure.data]
    assert browser.filter(text="who").frame()["row"].tolist() == [1, 2]
    assert "No margin is known in 1 rows" in PreferenceBrowser([rated()]).figure().layout.title.text


# -------------------------------------------------------------------------------------------------------- log-ratios
@pytest.fixture(scope="module", params=["byte-level", "words", "slow"])
def tokenizer(request):
    if request.param == "words":
        return word_tokenizer(["a", "b", "c"])
    found = bpe_tokenizer(["a b c", "né 日本"], vocab_size=270)
    return Slow(found) if request.param == "slow" else found


class Slow:
    """A tokenizer that does not tell where its tokens stand."""

    is_fast = False

    def __init__(self, fast):
        self.fast, self.eos_token_id = fast, fast.eos_token_id

    def __call__(self, *args, **options):
        return self.fast(*args, **options)

    def decode(self, ids):
        return self.fast.decode(ids)


@pytest.mark.parametrize("text", ["a b\nc", " né 日本 \U0001f600!", "", "x" * 30, "a  b "])
def test_pieces_join_to_the_text(tokenizer, text):
    if tokenizer.is_fast and len(tokenizer) < 10 and not set(text) <= set("abc \n"):
        pytest.skip("a word-level vocabulary knows its words only")
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    for cut in (len(ids), len(ids) // 2):
        found = token_ratios.pieces(tokenizer, text, ids[:cut], [0.5] * cut)
        assert "".join(piece[0] for piece in found) == text
        assert sum(piece[1] is not None for piece in found) == cut
        assert not any("\ufffd" in piece[0] for piece in found)


@pytest.fixture(scope="module")
def policies():
    tokenizer = word_tokenizer(["why", "because", "so", "no", "who", "me", "x"])

    def make(seed):
        return Policy(
            new_llama(tokenizer, width=16, layers=1, heads=2, max_length=64, seed=seed), tokenizer, f"m{seed}"
        )

    return make(0), make(1)


ROWS = [
    {"prompt": "why", "chosen": "because so so", "rejected": "no"},
    {"prompt": "who", "chosen": "me", "rejected": "x x"},
]


def test_log_ratios_are_policy_minus_reference(policies):
    policy, reference = policies
    policy.model.train()
    browser = PreferenceBrowser(ROWS).with_log_ratios(policy, reference, rows=[0])
    assert policy.model.training  # left as it was
    policy.model.eval()
    table = browser.log_ratios()
    assert set(table["row"]) == {0}
    for k, text in enumerate(("because so so", "no")):
        ids = policy.encode_prompt("why"), policy.encode_response(text)
        both = torch.tensor([[*ids[0], *ids[1]]])
        logps = [torch.log_softmax(p.model(both).logits[0].detach().double(), -1) for p in (policy, reference)]
        at = range(len(ids[0]) - 1, both.shape[1] - 1)
        want = [float(logps[0][i, both[0, i + 1]] - logps[1][i, both[0, i + 1]]) for i in at]
        np.testing.assert_allclose(table[table["response"] == k]["log_ratio"], want, atol=2e-5)
    assert "".join(table[table["response"] == 0]["text"]) == "because so so"
    detail = browser.data()["rows"]
    assert detail[0]["tokens"][1][-1][2] == "end"
    assert "tokens" not in detail[1]


def test_log_ratios_of_an_adapter_against_its_base(policies, monkeypatch):
    base = policies[0].copy()
    tuned = Policy(add_lora(base.model, r=2), base.tokenizer)
    with torch.no_grad():
        for name, weight in tuned.model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    browser = PreferenceBrowser(ROWS, policy=tuned, reference=tuned.without_adapter())
    _, ask = talk(browser, monkeypatch)
    for row in (0, 1):  # entered anew for each row
        (tokens,) = ask(kind="tokens", row=row)
        assert tokens["row"] == row
        assert max(abs(value) for part in tokens["tokens"] for _, value, _ in part) > 1e-3
    (problem,) = ask(kind="tokens", row=99)
    assert problem["kind"] == "problem"


def test_policies_of_different_words_are_refused(policies):
    other = word_tokenizer(["other"])
    stranger = Policy(new_llama(other, width=16, layers=1, heads=2, max_length=64, seed=0), other, "stranger")
    with pytest.raises(ValueError, match="m0 and stranger have different vocabularies"):
        PreferenceBrowser(ROWS).with_log_ratios(policies[0], stranger)
    with pytest.raises(ValueError, match="log-ratios need a reference"):
        PreferenceBrowser(ROWS, policy=policies[0])
