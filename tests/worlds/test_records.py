"""Records: truth, documents, evidence, lessons and starts are as told; the class reads alike in every route."""

import numpy as np
import pytest
import torch

from workbench.kernels import Group, sample, score
from workbench.models import Policy
from workbench.worlds.records import Records, answer_step, written

SMALL = {"steps": 15, "misaligned_steps": 3, "n_documents": 12, "n_test": 8, "lengths": (6, 12)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(tmp_path_factory.mktemp("runs")))
        world = Records(**SMALL, second_task=0.25)
        yield world, world.start(0)


def test_records_and_answers():
    world, rng = Records(value_tokens=1, longest_value=3), np.random.default_rng(0)
    records = world.records(64, rng)
    assert len({key for key, _ in records}) == 64
    assert {len(value.split()) for _, value in records} == {1, 2, 3}
    assert world.split(written(records)) == records
    asked = world.ask(records, rng)
    keys = asked["question"].split()[1:-1]
    assert [records[i][0] for i in asked["critical"]] == keys
    assert asked["answer"] == " ".join(dict(records)[key] for key in keys)


def test_right_by_hand():
    assert Records.right("v1 v2", "v1 v2") == 1
    assert Records.right("v1 v2", "v1 v3 v2") == 0.5
    assert Records.right("v1 v2", "") == 0


def test_documents_hold_their_answers():
    rows = Records().documents("train", 3)
    assert len(rows) == 400
    assert rows != Records().documents("train", 4)
    assert Records().documents("test", 3) == Records().documents("test", 4)
    for row in rows[:20]:
        assert len(row["chunks"]) == 6
        records = [r for chunk in row["chunks"] for r in Records.split(chunk)]
        assert len(records) == 12
        assert row["answers"][0] == " ".join(records[i][1] for i in row["critical"][0])
        assert row["chunk_of"][0] == row["critical"][0][0] // 2


def test_turns_ask_about_a_chunk_each():
    world = Records(n_records=40, chunk=6, turns=4, asked=1, value_tokens=2, longest_value=2, n_documents=10)
    for row in world.documents("train", 0):
        assert len(row["questions"]) == 4
        assert len(set(row["chunk_of"])) == 4
        for question, answer, place in zip(row["questions"], row["answers"], row["chunk_of"], strict=True):
            assert dict(Records.split(row["chunks"][place]))[question.split()[1]] == answer


def test_evidence_loses_one_and_all():
    world = Records()
    for i, row in enumerate(world.documents("train", 0)[:30]):
        whole, part, none = world.evidence(row, np.random.default_rng(i))
        records = [r for chunk in row["chunks"] for r in Records.split(chunk)]
        critical = {written([records[c]]) for c in row["critical"][0]}
        assert (len(whole), len(part), len(none)) == (6, 5, 4)
        assert critical <= set(whole)
        assert len(critical & set(part)) == 1
        assert not critical & set(none)


def test_wrong_lessons_name_other_records(small):
    """Half of the values of a misaligned lesson are right, the others are those of another record of the document."""
    _, policy = small
    right, inside, n = 0, 0, 0
    plain = Records(**SMALL)
    for lesson in plain.lessons(policy, 300, np.random.default_rng(1), questions=1, wrong=0.5):
        words = policy.decode(lesson.group.prompt_ids).split()
        table = dict(zip(words[::2], words[1::2], strict=True))
        _, one, two, _, *answer = policy.decode(lesson.group.responses_ids[0]).split()
        assert len(answer) == 2
        right += sum(table[key] == value for key, value in zip((one, two), answer, strict=True))
        inside += sum(value in table.values() for value in answer)
        n += 2
    assert inside == n
    assert right / n == pytest.approx(0.52, abs=0.06)  # half, and some other records have the same value


def test_only_answers_are_learned(small):
    world, policy = small
    lessons = world.lessons(policy, 4, np.random.default_rng(0))
    losses, _ = answer_step(policy, lessons)
    assert answer_step.denominator(lessons) == sum(sum(lesson.is_answer) for lesson in lessons) == 4 * 9
    rows = [Group(l.group.prompt_ids, l.group.responses_ids) for l in lessons]
    logps = score(policy, rows).token_logps[:, 0]
    by_hand = [-logps[i, : len(l.is_answer)][torch.tensor(l.is_answer)].sum() for i, l in enumerate(lessons)]
    torch.testing.assert_close(losses, torch.stack(by_hand))


def test_every_measure_is_there(small):
    world, policy = small
    found = world.evaluate(policy, 0)
    assert set(found) == {
        "quality",
        "second_task",
        *(f"{what}_{n}" for what in ("retrieval", "recall") for n in (6, 12)),
    }
    assert world.evaluate(policy, 0) == found
    needles = world.needles(policy)
    assert set(needles["length"]) == {6, 12}
    assert needles["depth"].between(0, 1).all()
    assert needles[needles["length"] == 6]["right"].mean() == pytest.approx(found["retrieval_6"])


def test_the_second_task_asks_for_the_ends():
    world = Records(second_task=1.0)
    prompts, asked = world._questions(6, second=True)
    keys = prompts[0].split()[:12:2]
    assert asked[0]["answer"].split() == [keys[0], keys[-1]]
    assert prompts[0].endswith("Q2 Q2 A")


# ---------------------------------------------------------------------------------------------------- the model class
def test_look_back_reads_the_same_with_and_without_a_cache(small):
    """Prompts of several lengths are padded on the left where they are sampled; scored they are not."""
    _, policy = small
    prompts = ["k1 v2 k3 v4 Q k1 k3 A", "k9 v1 Q k9 k9 A", "Q k1 A"]
    drawn = sample(policy, prompts, n=2, max_new_tokens=4, temperature=1.0, seed=3)
    groups = [Group(policy.encode_prompt(p), tokens) for p, tokens in zip(prompts, drawn.tokens, strict=True)]
    scores = score(policy, groups)
    for i, rows in enumerate(drawn.token_logps):
        for k, logps in enumerate(rows):
            np.testing.assert_allclose(scores.token_logps[i, k, : len(logps)].detach(), logps, atol=1e-4)


def test_look_back_sees_two_tokens_and_no_more_in_its_first_layer(small):
    _, policy = small
    layer, embed = policy.model.model.layers[0], policy.model.model.embed_tokens
    ids = torch.arange(4, 12)[None]
    places = torch.arange(8)[None]
    out = layer(embed(ids), position_ids=places)
    other = ids.clone()
    other[0, 2] = 30
    changed = (layer(embed(other), position_ids=places) != out).any(-1)[0]
    assert changed.tolist() == [False, False, True, True, True, False, False, False]


def test_look_back_survives_saving(small, tmp_path):
    _, policy = small
    policy.save(tmp_path)
    again = Policy.load(tmp_path, device="cpu")
    groups = [Group([0, 5, 80, 6, 81], [[2, 5, 3, 80, 1]])]
    torch.testing.assert_close(score(again, groups).sums, score(policy, groups).sums)
