"""Follow-up likelihoods, sum and mean, and the raw-logit statistic of the released script, from given logits."""

import numpy as np
import pytest
import torch
from torch import nn

from workbench.kernels import token_logps
from workbench.methods.reward.flr.follow_ups import FollowUps, raw_logits
from workbench.methods.reward.flr.method import Scored


def test_both_statistics(golden):
    for case in golden("flr.json")["cases"]:
        given, expected = case["inputs"], case["outputs"]
        polarity, start = given["polarity"], given["followup_start"]
        sums, means, raw = [], [], []
        for row, ids, length in zip(given["logits"], given["input_ids"], given["followup_lengths"], strict=True):
            logits, tokens = torch.tensor(row, dtype=torch.float64), torch.tensor(ids)
            assert tokens[start + length] == given["end_of_turn_id"]
            vocab = logits.shape[-1]
            head = nn.Linear(vocab, vocab, bias=False, dtype=torch.float64)
            head.weight.data = torch.eye(vocab, dtype=torch.float64)
            words = tokens[start : start + length]
            logps = token_logps(logits[start - 1 : start + length - 1], words, head)
            sums.append(logps.sum().item())
            means.append(logps.mean().item())
            raw.append(raw_logits(logits[start], [given["bos_id"], *words.tolist()]).item())
        np.testing.assert_allclose(sums, expected["followup_sum_logp"], rtol=1e-6)
        np.testing.assert_allclose(means, expected["followup_mean_logp"], rtol=1e-6)
        np.testing.assert_allclose(raw, expected["official_raw_logit"], rtol=1e-6)
        sides = {p: [str(i) for i, side in enumerate(polarity) if side == p] for p in ("positive", "negative")}
        phrases = FollowUps.of({"d": sides})
        order = [int(phrase) for phrase in phrases.phrases]
        for values, name in ((means, "flr_mean_logp"), (raw, "flr_official_raw")):
            scored = Scored(phrases, np.array([values])[:, order], "")
            assert scored.flr[0] == pytest.approx(expected[name], rel=1e-6)
