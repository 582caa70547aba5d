"""Partitions from a reader's file and released scores: what is read, what is refused, what is chosen."""

import json
import logging

import pandas as pd
import pytest

from workbench.methods.confidence.time_travel.completions import bleurt, compared_texts
from workbench.methods.confidence.time_travel.partitions import PartitionFile, RecordedScores, choose


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path, **options):
    defaults = {"model": "m", "device": "cpu", "judge": "", "task": "sum", "partition": "test", "text_column": ""}
    return PartitionFile.load(path, **{**defaults, **options})


def test_preference_data_are_a_partition(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {i}?"}], "chosen": "a", "rejected": "b"} for i in range(3)
    ]
    frame = load(write(tmp_path / "mine.jsonl", rows)).rows(0)
    assert frame["text"].tolist() == ["What is 0?", "What is 1?", "What is 2?"]
    assert frame["instance_id"].tolist() == ["mine/test/0", "mine/test/1", "mine/test/2"]
    assert set(frame["task"]) == {"sum"}


def test_columns_of_the_file_come_first(tmp_path):
    rows = [{"text": "a", "body": f"b {i}", "dataset": "news", "split": "dev", "task": "xsum"} for i in range(2)]
    path = write(tmp_path / "x.jsonl", rows)
    assert load(path).rows(0)["text"].tolist() == ["a", "a"]
    frame = load(path, text_column="body").rows(0)
    assert frame["text"].tolist() == ["b 0", "b 1"]
    assert frame["instance_id"].tolist() == ["news/dev/0", "news/dev/1"]
    with pytest.raises(ValueError, match="no column 'missing' for text_column; found text, body"):
        load(path, text_column="missing")
    with pytest.raises(ValueError, match=r"column 'task': \['poem'\] is unknown; use one of cls, nli, sum, xsum"):
        load(write(tmp_path / "y.jsonl", [{**rows[0], "task": "poem"}]))


def test_instances_need_ids_of_their_own(tmp_path):
    rows = [{"text": "a b", "instance_id": "x"}] * 2
    with pytest.raises(ValueError, match="column 'instance_id': 'x' stands in more than one row"):
        load(write(tmp_path / "x.jsonl", rows))


def frame_of(n):
    return pd.DataFrame({"instance_id": [f"i{k}" for k in range(n)]})


def test_ten_instances_are_drawn_by_seed_and_few_are_refused(caplog):
    none = pd.DataFrame({"instance_id": ["i9"], "reason": ["duplicate"]})
    drawn = choose(frame_of(40), none, 10, 1, "a/b")["instance_id"].tolist()
    assert len(set(drawn)) == 10
    assert drawn == sorted(drawn, key=lambda name: int(name[1:]))
    assert drawn == choose(frame_of(40), none, 10, 1, "a/b")["instance_id"].tolist()
    assert drawn != choose(frame_of(40), none, 10, 2, "a/b")["instance_id"].tolist()
    with caplog.at_level(logging.WARNING):
        assert len(choose(frame_of(6), none, 10, 1, "a/b")) == 6
    assert "partition a/b has 6 usable instances" in caplog.text
    said = r"partition a/b has 4 usable instances, 5 are the fewest .*; rejected: i9: duplicate"
    with pytest.raises(ValueError, match=said):
        choose(frame_of(4), none, 10, 1, "a/b")


PART = {"model": "m", "dataset": "d", "split": "s", "icl_label": [0, 2], "human1": [0, 1], "human2": [0, 1]} | {
    f"{metric}_{side}": [0.1, 0.5] for metric in ("rouge", "bleurt") for side in ("general", "guided")
}


def test_released_scores_become_the_tables_of_a_run(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"partitions": [PART]}))
    task = RecordedScores.recognise(str(path))
    assert task is not None
    instances, overlap, matches = task.evidence("m")
    assert task.arms == ("m",)
    assert instances["instance_id"].tolist() == ["d/s/0", "d/s/1"]
    assert set(overlap["metric"]) == {"rougeL", "bleurt"}
    assert matches.loc[matches["judge"] == "judge", "label"].tolist() == ["no", "exact"]


def test_other_json_is_not_released_scores(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[]")
    assert RecordedScores.recognise(str(path)) is None
    assert RecordedScores.recognise("org/name") is None
    path.write_text(json.dumps({"partitions": [{**PART, "human2": [0]}]}))
    with pytest.raises(ValueError, match=r"partition m/d/s: \['human2'\] differ in length"):
        RecordedScores.recognise(str(path))
    path.write_text(json.dumps({"partitions": [{k: v for k, v in PART.items() if k != "icl_label"}]}))
    with pytest.raises(ValueError, match=r"partition m/d/s: no \['icl_label'\]"):
        RecordedScores.recognise(str(path))


# ---- BLEURT, where somebody has it
JOINED = pd.DataFrame(
    {"instance_id": ["a", "b"], "instruction": ["guided", "guided"], "task": ["sum", "nli"]}
    | {"first_piece": ["one", "two"], "second_piece": ["1", "2"], "text": ["x", "y"]}
)


def test_bleurt_reads_the_whole_text_but_of_pairs_the_second_sentence():
    assert compared_texts(JOINED) == (["one 1", "2"], ["one x", "y"])


def test_precomputed_scores(tmp_path):
    path = tmp_path / "bleurt.csv"
    path.write_text("instance_id,instruction,score\na,guided,0.25\nb,guided,0.5\n")
    assert bleurt(JOINED, str(path)).tolist() == [0.25, 0.5]
    path.write_text("instance_id,instruction,score\na,guided,0.25\n")
    with pytest.raises(ValueError, match="has no score for the guided completion of 'b'"):
        bleurt(JOINED, str(path))
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"give a \.csv, \.json or \.parquet file"):
        bleurt(JOINED, str(tmp_path / "x.txt"))


@pytest.mark.slow
def test_a_regressor_of_the_hub_format(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    from workbench.worlds.language import word_tokenizer

    tokenizer = word_tokenizer(["one", "two", "1", "2", "x", "y"])
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    scores = bleurt(JOINED, str(tmp_path))
    assert scores.shape == (2,)
    assert scores.tolist() == pytest.approx(bleurt(JOINED, str(tmp_path)).tolist())
