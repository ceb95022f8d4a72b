"""Who sees whom: chunks and their sketches in reading order, one rule, and attention by that rule.

A mask is a function of what two tokens are, `may_attend`, and of nothing else. Attention never
scores most of what it forbids: `plan_forward` derives from the rule which keys a block of queries
needs. Shapes are those of vist2.py.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layout(NamedTuple):
    """The decoder's tokens in reading order; each field is (T,)."""

    index: Tensor  # in reading order
    position: Tensor  # in the text, for RoPE
    chunk: Tensor  # of the token; all text without a sketch is one last chunk, S
    is_sketch: Tensor


def interleave(text: Tensor, memory: Tensor, skip: int = 0) -> Tensor:
    """Put text (B, N, n, ..) and the sketch tokens (B, S, m, ..) of its first S chunks into reading
    order, (B, T, ..): each chunk, then its sketch. Of the first `skip` chunks, as far as they have
    sketches, the text is left out."""
    S = memory.shape[1]
    skip = min(skip, S)
    pairs = torch.cat([text[:, skip:S], memory[:, skip:]], dim=2)
    parts = (memory[:, :skip], pairs, text[:, S:])
    return torch.cat([part.flatten(1, 2) for part in parts], dim=1)


def sketch_positions(chunks: Tensor, n: int, m: int) -> Tensor:
    """Chunk indices (S,) -> (S, m): a sketch token stands one place before the input of the last of
    its n / m bytes, so that a chunk's last one is the left neighbour of the next opening."""
    return chunks[:, None] * n + (torch.arange(m, device=chunks.device) + 1) * (n // m) - 1


def make_layout(N: int, n: int, m: int, S: int, skip: int = 0, device=None) -> Layout:
    """What `interleave` makes of N chunks: input k of chunk i stands at position i n + k."""
    text = torch.arange(N * n, device=device).view(1, N, n)
    sketch = sketch_positions(torch.arange(S, device=device), n, m)[None]
    [position] = interleave(text, sketch, skip)
    [is_sketch] = interleave(torch.zeros_like(text), torch.ones_like(sketch), skip)
    index = torch.arange(len(position), device=device)
    return Layout(index, position, (position // n).clamp(max=S), is_sketch.bool())


def may_attend(query: Layout, key: Layout) -> Tensor:
    """Who sees whom: fields (.., Q, 1) and (K,) -> (.., Q, K) bool. The rule:

        nothing looks ahead;  a sketch is seen by all, a byte by the bytes of its own chunk

    Two chunks of two bytes and one sketch token each, then a third chunk:

                  t t s t t s t t      keys: text, sketch
        chunk 0 t x . . . . . . .
                t x x . . . . . .
       sketch 0 s . . x . . . . .      a sketch sees sketches only: what it keeps of its chunk
        chunk 1 t . . x x . . . .      is what the pixels show
                t . . x x x . . .
       sketch 1 s . . x . . x . .
        chunk 2 t . . x . . x x .      the opening of chunk 2: two sketches are all its past
                t . . x . . x x x
    """
    causal = key.index <= query.index
    own_text = ~query.is_sketch & (query.chunk == key.chunk)
    return causal & (key.is_sketch | own_text)


# -------------------------------------------------------------------------------- attention

QUERY_BLOCKS = 16  # at most, of chunks with text


class Plan(NamedTuple):
    """How a sequence of T tokens is read, see `plan_forward`."""

    positions: Tensor  # (T,)
    previous: Tensor  # (T,), for `offset_keys`
    blocks: list[tuple[Tensor, Tensor]] | None  # of queries: keys (s,), mask (t, s); None: causal
    outputs: Tensor  # which tokens predict


def offset_keys(k: Tensor, previous: Tensor) -> Tensor:
    """Key offset: half of the channels, of which RoPE turns none, show the token before instead.
    In `al=12` the key of `1` shows `=`: a query for what follows `=` finds `1` in one layer.
    k (B, KV, K, D); previous (T,) of the last T tokens -> (B, KV, T, D)."""
    quarter, own = k.shape[-1] // 4, k[:, :, -len(previous) :]
    before = k[..., quarter : 3 * quarter].index_select(2, previous)
    return torch.cat([own[..., :quarter], before, own[..., 3 * quarter :]], dim=-1)


def previous_tokens(layout: Layout) -> Tensor:
    """(T,): of a sketch token the sketch token before, of a byte the one before in its chunk; the
    first of each stands for itself."""
    previous = (layout.index - 1).clamp(min=0)
    previous = torch.where(layout.is_sketch[previous], layout.index, previous)  # opens a chunk
    sketches = layout.is_sketch.nonzero().squeeze(1)
    previous[sketches] = torch.cat([sketches[:1], sketches[:-1]])
    return previous


def attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
    """Softmax attention under a mask, without scoring most of what it forbids, with key offset.
    q (B, H, T, D), k and v (B, KV, T, D) -> (B, H, T, D)."""
    k, blocks = offset_keys(k, plan.previous), plan.blocks
    if blocks is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    keys, masks = zip(*blocks, strict=True)
    sizes, seen = zip(*(mask.shape for mask in masks), strict=True)
    keys = torch.cat(keys)
    k, v = (z.index_select(2, keys).split(seen, dim=2) for z in (k, v))
    parts = zip(q.split(sizes, dim=2), k, v, masks, strict=True)
    attend = F.scaled_dot_product_attention
    return torch.cat([attend(*qkv, mask, enable_gqa=True) for *qkv, mask in parts], dim=2)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # an evaluation may make what training uses
def plan_forward(N: int, n: int, m: int, S: int, skip: int, rule: Callable, device) -> Plan:
    """How N chunks are read of which S are sketched, under a rule such as `may_attend`.

    Queries are taken in blocks of a few chunks, each with the keys that some of its queries
    see. Without sketches `may_attend` is what a plain GPT does.
    """
    layout = make_layout(N, n, m, S, skip, device)
    previous = previous_tokens(layout)
    outputs = (~layout.is_sketch & (layout.position >= skip * n)).nonzero().squeeze(1)
    if S == 0 and rule is may_attend:
        return Plan(layout.position, previous, None, outputs)
    chunks = -(-(N - min(skip, S)) // QUERY_BLOCKS)
    alone = min(skip, S) * m  # sketches of chunks without text
    blocks = []
    pieces = layout.index[:alone], *layout.index[alone:].split(chunks * (n + m))
    for queries in filter(len, pieces):
        mask = rule(Layout(*(field[queries, None] for field in layout)), layout)
        keys = mask.any(0).nonzero().squeeze(1)
        blocks.append((keys, mask[:, keys]))
    return Plan(layout.position, previous, blocks, outputs)
