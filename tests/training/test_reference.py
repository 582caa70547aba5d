"""Reference log-probs and their cache: right numbers, computed once a row, never stale, never trusted when damaged."""

import logging
import threading

import numpy as np
import pytest
import torch
from test_loop import SPIN, groups, new_policy

from workbench.kernels import Group, score
from workbench.models import Policy, add_lora
from workbench.training import reference
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import model_key, pair_rows, reference_logps


@pytest.fixture
def scored(runs_root, monkeypatch):
    """The cache in an empty folder, used at any size; returns the responses that reach the model, call by call."""
    monkeypatch.setattr(reference, "WORTH", 0.0)
    monkeypatch.setattr(reference, "MIN_TOKENS", 0)
    seen = []

    def watched(policy, groups, **options):
        seen.extend((tuple(g.prompt_ids), tuple(r)) for g in groups for r in g.responses_ids)
        return score(policy, groups, **options)

    monkeypatch.setattr(reference, "score", watched)
    return seen


def files(runs_root):
    return sorted((runs_root / ".cache" / "reference-logps").glob("*/*.bin"))


def lora_policy(seed=1):
    policy = new_policy()
    torch.manual_seed(seed)
    policy.model = add_lora(policy.model, r=2)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return policy


def test_a_second_call_computes_nothing_and_gives_the_same_bits(scored):
    policy, rows = new_policy(), groups(12)
    first = reference_logps(policy, rows)
    assert len(scored) == 24
    scored.clear()
    np.testing.assert_array_equal(reference_logps(policy.copy(), rows), first)
    assert scored == []
    assert first.dtype == np.float64


def test_a_data_set_that_shares_half_computes_the_other_half(scored):
    """By row, and within a group by response; the numbers are those of computing everything."""
    policy, rows = new_policy(), groups(12)
    reference_logps(policy, rows[:6])
    scored.clear()
    mixed = reference_logps(policy, rows)
    assert len(scored) == 12
    assert {prompt for prompt, _ in scored} == {tuple(group.prompt_ids) for group in rows[6:]}
    np.testing.assert_allclose(mixed, score(policy, rows).sums.detach().numpy(), rtol=1e-5)
    scored.clear()
    new = [2, 3, 1]
    found = reference_logps(policy, [Group(rows[0].prompt_ids, [rows[0].responses_ids[1], new])])
    assert scored == [(tuple(rows[0].prompt_ids), tuple(new))]
    assert found[0, 0] == mixed[0, 1]


def test_training_in_place_changes_the_key(scored):
    """Never stale: the smallest change of one weight is another model."""
    policy, rows = new_policy(), groups(8)
    before, key = reference_logps(policy, rows), model_key(policy)
    train(policy, pair_rows(policy, list("abcdefgh"), rows), SPIN, TrainConfig(learning_rate=1e-2, batch_size=8))
    assert model_key(policy) != key
    scored.clear()
    assert not np.array_equal(reference_logps(policy, rows), before)
    assert len(scored) == 16
    key = model_key(policy)
    with torch.no_grad():
        weight = policy.model.lm_head.weight
        weight[3, 3] = torch.nextafter(weight[3, 3], torch.tensor(1e9))
    assert model_key(policy) != key


def test_what_else_makes_another_model():
    policy = new_policy()
    keys = {model_key(policy)}
    rough = Policy(policy.model, policy.tokenizer, precision="bf16")
    keys.add(model_key(rough))
    other = policy.copy()
    other.model.config.rms_norm_eps *= 2  # same weights, other numbers
    keys.add(model_key(other))
    swapped = policy.copy()  # the same bytes in other places
    q, k = swapped.model.model.layers[0].self_attn.q_proj, swapped.model.model.layers[0].self_attn.k_proj
    q.weight.data, k.weight.data = k.weight.data, q.weight.data
    keys.add(model_key(swapped))
    assert len(keys) == 4
    renamed = policy.copy()
    renamed.name = renamed.model.config._name_or_path = "elsewhere"
    assert model_key(renamed) in keys


def test_an_adapter_counts_when_it_is_on_and_not_when_it_is_off(scored):
    """With the adapter off two adapters over one base share their numbers, which are the base model's."""
    one, other, base, rows = lora_policy(1), lora_policy(2), new_policy(), groups(6)
    assert model_key(one) != model_key(other)
    with one.without_adapter() as off:
        off_key, numbers = model_key(off), reference_logps(off, rows)
    with other.without_adapter() as off:
        assert model_key(off) == off_key
    assert off_key != model_key(one)
    np.testing.assert_allclose(numbers, reference_logps(base, rows), rtol=1e-5)
    assert abs(reference_logps(one, rows) - numbers).max() > 1e-2
    key = model_key(one)
    for module in one.model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 2
    assert model_key(one) != key


@pytest.mark.parametrize("harm", ["bit", "cut", "empty", "noise"])
def test_a_damaged_file_is_computed_again(scored, runs_root, caplog, harm):
    policy, rows = new_policy(), groups(6)
    right = reference_logps(policy, rows)
    (path,) = files(runs_root)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes({"bit": bytes(raw), "cut": bytes(raw[:100]), "empty": b"", "noise": b"x" * 500}[harm])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(reference_logps(policy, rows), right)
    assert "is damaged: deleted, its log-probs are computed again" in caplog.text
    (again,) = files(runs_root)
    assert again != path


def test_numbers_that_are_not_finite_are_not_kept(scored, runs_root):
    policy, rows = new_policy(), groups(6)
    with torch.no_grad():
        policy.model.lm_head.weight[1] = torch.nan
    assert not np.isfinite(reference_logps(policy, rows)).any()
    scored.clear()
    reference_logps(policy, rows)
    assert set(scored) == {(tuple(g.prompt_ids), tuple(r)) for g in rows for r in g.responses_ids}


def test_many_at_once(scored, runs_root):
    """Eight callers over overlapping rows: same numbers as one, and every file is whole."""
    policy, rows, results = new_policy(), groups(16), {}
    right = score(policy, rows).sums.detach().numpy()

    def call(number):
        results[number] = reference_logps(policy, rows[number : number + 8])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        np.testing.assert_allclose(results[number], right[number : number + 8], rtol=1e-5)
    scored.clear()
    reference_logps(policy, rows[:15])
    assert scored == []


def test_the_folder_stays_small(scored, runs_root, monkeypatch):
    """Least recently used files leave first."""
    monkeypatch.setattr(reference, "LIMIT", 1_200)
    policies = [new_policy(seed) for seed in range(4)]
    for policy in policies:
        reference_logps(policy, groups(8))  # 64 + 16 x 24 = 448 bytes
    assert sum(path.stat().st_size for path in files(runs_root)) <= 1_200
    scored.clear()
    reference_logps(policies[3], groups(8))
    assert scored == []
    reference_logps(policies[0], groups(8))
    assert len(scored) == 16


def test_an_unwritable_cache_costs_time_only(scored, runs_root, caplog):
    (runs_root / ".cache").mkdir(parents=True)
    (runs_root / ".cache" / "reference-logps").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert np.isfinite(reference_logps(new_policy(), groups(3))).all()
    assert "reference log-probs are not kept" in caplog.text


def test_a_small_model_leaves_no_file(runs_root):
    reference_logps(new_policy(), groups(6))
    assert files(runs_root) == []
    assert reference_logps(new_policy(), []).shape == (0, 0)


def test_half_precision_weights_have_a_key():
    policy = new_policy()
    key = model_key(policy)
    policy.model.to(torch.bfloat16)
    assert model_key(policy) != key


def test_cutting_by_tokens_changes_nothing(monkeypatch):
    policy, rows = new_policy(), groups(9, k=3)
    whole = reference_logps(policy, rows)
    monkeypatch.setattr("workbench.training.reference.tokens_per_microbatch", lambda device: 40)
    np.testing.assert_allclose(reference_logps(policy, rows), whole, rtol=1e-6)
