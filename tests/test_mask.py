import itertools
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import mask
from mask import (
    attention,
    interleave,
    make_layout,
    may_attend,
    offset_keys,
    plan_forward,
    previous_tokens,
    sketch_positions,
)

# (N, n, m): what users run, odd windows, and mini sizes; with more chunks than blocks, too
WINDOWS = [(8, 64, 16), (8, 64, 4), (7, 64, 16), (31, 16, 4), (40, 4, 1), (2, 4, 1), (1, 16, 4)]


def whole_mask(layout):
    return may_attend(mask.Layout(*(field[:, None] for field in layout)), layout)


def test_the_rule_is_the_one_drawn_in_its_docstring():
    rows = re.findall(r" [ts] ((?:[x.] ){7}[x.])(?=  |\n)", may_attend.__doc__)
    drawn = torch.tensor([[mark == "x" for mark in row.split()] for row in rows])
    layout = make_layout(3, 2, 1, 2)
    kinds = re.search(r"([ts] ){7}[ts](?= +keys)", may_attend.__doc__)[0].split()
    assert [kind == "s" for kind in kinds] == layout.is_sketch.tolist()
    assert drawn.shape == (8, 8) and torch.equal(whole_mask(layout), drawn)


def test_tokens_come_in_reading_order_at_their_places_in_the_text():
    layout = make_layout(3, 4, 2, 2)
    assert layout.index.tolist() == list(range(3 * 4 + 2 * 2))
    assert layout.position.tolist() == [0, 1, 2, 3, 1, 3, 4, 5, 6, 7, 5, 7, 8, 9, 10, 11]
    assert layout.chunk.tolist() == [0] * 6 + [1] * 6 + [2] * 4
    assert layout.is_sketch.int().tolist() == [0, 0, 0, 0, 1, 1] * 2 + [0] * 4
    # what stays text is one last chunk; what is skipped is a sketch alone
    assert make_layout(3, 4, 2, 1).chunk.tolist() == [0] * 6 + [1] * 8
    assert make_layout(3, 4, 2, 2, skip=2).position.tolist() == [1, 3, 5, 7, 8, 9, 10, 11]


def test_a_sketch_token_stands_where_the_last_of_its_bytes_does():
    positions = sketch_positions(torch.tensor([0, 5]), 64, 16)
    assert positions.tolist() == [list(range(3, 64, 4)), list(range(323, 384, 4))]


@pytest.mark.parametrize("N, n, m", WINDOWS)
def test_interleaved_values_stand_where_the_layout_says(N, n, m):
    for S, skip in itertools.product({0, 1, N // 2, N - 1} - {N}, {0, 1, N - 1}):
        layout = make_layout(N, n, m, S, skip)
        text = torch.arange(N * n).view(1, N, n, 1)
        sketches = sketch_positions(torch.arange(S), n, m)[None, :, :, None]
        values = interleave(text, sketches + 10**6, skip)[0, :, 0]
        assert torch.equal(values, layout.position + 10**6 * layout.is_sketch)
        left_out = min(skip, S) * n  # a byte that somebody sees is never left out
        assert sorted(values[~layout.is_sketch].tolist()) == list(range(left_out, N * n))


@pytest.mark.parametrize("N, n, m", WINDOWS)
def test_attention_in_blocks_is_attention_under_the_whole_mask(N, n, m):
    for S, skip in {(N - 1, 0), (N - 1, N - 1), (N // 2, 0), (N // 2, 1), (0, 0)}:
        layout = make_layout(N, n, m, S, skip)
        plan = plan_forward(N, n, m, S, skip, may_attend, torch.device("cpu"))
        T = len(layout.index)
        q, k, v = torch.randn(1, 4, T, 8), torch.randn(1, 2, T, 8), torch.randn(1, 2, T, 8)
        whole = partial(F.scaled_dot_product_attention, enable_gqa=True)
        expected = whole(q, offset_keys(k, plan.previous), v, attn_mask=whole_mask(layout))
        torch.testing.assert_close(attention(q, k, v, plan), expected)
        assert torch.equal(plan.positions, layout.position)
        predicted = layout.position[plan.outputs]  # every byte once, in the order of the text
        assert predicted.tolist() == list(range(skip * n, N * n))
        assert not layout.is_sketch[plan.outputs].any()


@pytest.mark.parametrize("N, n, m", WINDOWS[:-1])  # of one chunk nothing is sketched
def test_a_block_has_no_key_that_none_of_its_queries_sees(N, n, m):
    blocks = plan_forward(N, n, m, N - 1, 0, may_attend, torch.device("cpu")).blocks
    assert len(blocks) <= mask.QUERY_BLOCKS
    assert all(seen.any(0).all() and len(keys) == seen.shape[1] for keys, seen in blocks)
    together = -(-N // mask.QUERY_BLOCKS)  # chunks in a block
    most = max(len(keys) for keys, _ in blocks)
    assert most <= together * n + (N - 1) * m  # the block's own text and the sketches


def test_a_plan_that_was_made_in_inference_mode_serves_training():
    """Plans are cached: evaluating makes some that training meets later."""
    plan_forward.cache_clear()
    with torch.inference_mode():
        plan = plan_forward(3, 4, 1, 2, 0, may_attend, torch.device("cpu"))
    q = torch.randn(1, 1, 14, 8, requires_grad=True)
    attention(q, q, q, plan).index_select(2, plan.outputs).sum().backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("N, n, m", WINDOWS)
def test_the_token_before_is_of_the_same_kind_and_text_never_leaves_its_chunk(N, n, m):
    for S, skip in {(N - 1, 0), (N - 1, N - 1), (N // 2, 1), (0, 0)}:
        layout = make_layout(N, n, m, S, skip)
        previous = previous_tokens(layout)
        assert torch.equal(layout.is_sketch[previous], layout.is_sketch)
        text = ~layout.is_sketch
        assert torch.equal(layout.chunk[previous][text], layout.chunk[text])
        first = previous == layout.index
        assert first.sum() == len(layout.chunk[text].unique()) + (S > 0)
        steps = (layout.position - layout.position[previous])[~first]
        assert torch.equal(steps, torch.where(layout.is_sketch[~first], n // m, 1))


def test_key_offset_moves_the_middle_half_of_the_channels_and_nothing_else():
    k = torch.arange(5.0)[None, None, :, None] + torch.arange(8.0) / 10
    moved = offset_keys(k, torch.tensor([1, 1, 2]))[0, 0]  # of the last three
    assert torch.equal(moved[:, [0, 1, 6, 7]], k[0, 0, 2:, [0, 1, 6, 7]])
    assert torch.equal(moved[:, 2:6], k[0, 0, [1, 1, 2], 2:6])
