"""Packed rows and their attention: what sees what, and that nothing else is computed."""

import numpy as np
import pytest
import torch

from workbench.kernels import Group
from workbench.kernels.trees import Blocks, Flex, Segments, block_mask, pack

GROUPS = [Group([5, 6, 7], [[8, 9], [10], [11, 12, 13]]), Group([3], [[4]]), Group([2, 2], [[2, 2], [2, 2]])]


def test_a_group_is_laid_out_once():
    packed = pack(GROUPS[:2])
    assert packed.input_ids.tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13, 3, 4]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5, 0, 1]  # every branch goes on from its prompt
    assert packed.targets.tolist() == [8, 9, 10, 11, 12, 13, 4]
    assert packed.predictors.tolist() == [2, 3, 2, 2, 6, 7, 9]  # the prompt's last token predicts all first tokens
    assert packed.longest == 6


def test_block_mask_in_full():
    """Prompt of two, branches of two and one, one padded place."""
    assert block_mask(np.array([[0, 0, 1, 1, 2, -1]]))[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0],
    ]


def dense(packed):
    """Which packed token sees which, from first principles."""
    tokens = len(packed.input_ids)
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for span in packed.spans:
        begins = (span.prompt_end, *span.branch_ends)
        for query in range(span.start, span.end):
            own = next((b for b, e in zip(begins, span.branch_ends, strict=False) if b <= query < e), span.start)
            seen[query, span.start : min(query + 1, span.prompt_end)] = True
            seen[query, own : query + 1] = True
    return seen


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_layout_is_attention_under_the_dense_mask():
    """Outputs and, where the layout trains on a CPU, gradients; grouped keys (4 query heads on 2)."""
    torch.manual_seed(0)
    packed = pack(GROUPS)
    tokens = len(packed.input_ids)
    query = torch.randn(1, 4, tokens, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(1, 2, tokens, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=dense(packed), scale=0.3
    )
    upstream = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, [query, key, value], upstream)
    module = torch.nn.Module()
    for layout in (Segments(packed), Blocks(packed, query.dtype, query.device)):
        out = layout.attend(module, query, key, value, 0.3)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        for a, b in zip(torch.autograd.grad(out, [query, key, value], upstream), expected_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert layout.calls == 1
    with torch.no_grad():  # FlexAttention trains on GPUs alone
        out = Flex(packed, query.device).attend(module, query, key, value, 0.3)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_segments_multiply_only_what_is_seen(monkeypatch):
    """Pairs of tokens in the calls: causal squares count half and their diagonal."""
    from workbench.kernels import trees

    pairs, real = [], trees.flash_forward

    def counted(query, key, value, dropout, causal, **options):
        rows, columns = query.shape[2], key.shape[2]
        pairs.append(rows * (rows + 1) // 2 if causal else rows * columns)
        return real(query, key, value, dropout, causal, **options)

    monkeypatch.setattr(trees, "flash_forward", counted)
    packed = pack(GROUPS)
    x = torch.randn(1, 2, len(packed.input_ids), 4)
    Segments(packed).attend(torch.nn.Module(), x, x, x, 1.0)
    assert sum(pairs) == int(dense(packed).sum())


def test_prompts_without_responses_and_single_responses():
    packed = pack([Group([3, 4], []), Group([5], [[6, 7]])])
    x = torch.randn(1, 1, 5, 4, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=dense(packed), scale=1.0)
    for layout in (Segments(packed), Blocks(packed, x.dtype, x.device)):
        torch.testing.assert_close(layout.attend(torch.nn.Module(), x, x, x, 1.0), expected)
    assert packed.targets.tolist() == [6, 7]
