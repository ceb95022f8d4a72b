"""The rolling kv cache: the past is kept as sketches while reading and while writing.

All layers share one preallocated buffer and one write position. Of each layer it holds:

    [ sketch tokens of chunks 0..i-1 | START and bytes of the open chunk ]
                                     ^ mark

When a chunk's last byte arrives it is not fed as text: the chunk is rendered and encoded, the
write position goes back to the mark, the sketch tokens are written over the bytes, the mark moves
past them, and the next opening follows in the same pass. Forgetting is moving a pointer back.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from console import UserError
from mask import offset_keys, sketch_positions
from vist2 import HISTORIES, START, Config, Vist2

GROUP = 64  # chunks that are encoded at a time, which bounds what the encoder needs


# ------------------------------------------------------------------------------- the kv cache


class KVCache:
    """Keys and values of all layers: one buffer, made once, of which `length` entries are held.

    newest: for each layer the key of the newest sketch token and that of the newest text token,
    before key offset, by which half of each goes into the key of the next token of its kind.
    """

    def __init__(self, config: Config, batch: int, capacity: int, weight: Tensor):
        shape = (2, config.layers, batch, config.kv_heads, capacity, config.head_width)
        self.buffer = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.newest = torch.zeros_like(self.buffer[0, ..., :2, :])
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> Tensor:
        """Write (B, KV, T, D) after the entries held; return keys and values of all, with these,
        (2, B, KV, length + T, D). All layers write at one `length`, which their caller moves."""
        end = self.length + k.shape[2]
        held = self.buffer[:, layer, :, :, :end]
        held[0, :, :, self.length :], held[1, :, :, self.length :] = k, v
        return held


class Session:
    """A batch of texts of equal length being read and written.

    history: "sketch" turns every finished chunk into its sketch; "prompt" only the prompt's;
    "full" keeps all text, "none" the open chunk's. capacity: bytes of text the cache is made for,
    by default the shortest training window. When it is reached, the oldest half of the chunks is
    dropped and the rest prefilled anew; "prompt" keeps as text what was text.

    Raises UserError for an unknown history and for too small a capacity.
    """

    def __init__(
        self, model: Vist2, batch: int = 1, history: str = "sketch", capacity: int | None = None
    ):
        n, m = model.config.chunk, model.config.sketch_tokens
        capacity = model.config.chunks * n if capacity is None else capacity
        if history not in HISTORIES:
            raise UserError(f"history is {history!r}, expected one of {', '.join(HISTORIES)}")
        if capacity < 2 * n:
            raise UserError(f"capacity is {capacity} bytes, expected at least two chunks, {2 * n}")
        self.model, self.history, self.capacity = model, history, capacity
        entries = capacity // n * m + n if history == "sketch" else capacity + 1
        self.cache = KVCache(model.config, batch, entries, model.head.weight)
        self.text = torch.zeros(batch, capacity, dtype=torch.long, device=model.device)
        self.count = self.closed = 0  # bytes of text, chunks before the open run of it
        self.mark = 0  # entries of sketch tokens

    @property
    def cache_entries(self) -> int:
        """Entries held per sequence after t bytes: floor(t/n) m + 1 + t mod n; "full": t + 1;
        "none": 1 + t mod n; "prompt", of S sketched chunks: S m + 1 + t - S n."""
        return self.cache.length

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values held, over all layers and the batch."""
        return self.cache.buffer[..., : self.cache.length, :].nbytes

    def attend(self, layer: int, mask: Tensor | None, previous, keep, q, k, v) -> Tensor:
        """Attend to all that the cache holds and to the new entries, of which none looks ahead.

        The rule of `may_attend` is kept by what the cache holds: a finished chunk's text is gone.
        previous: for `offset_keys`, among the two newest keys and the new ones. keep: which two of
        these are the newest from now on.
        """
        k = torch.cat([self.cache.newest[layer], k], dim=2)
        self.cache.newest[layer] = k.index_select(2, keep)
        keys, values = self.cache.append(layer, offset_keys(k, previous), v)
        how = dict(attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, enable_gqa=True)
        return F.scaled_dot_product_attention(q, keys, values, **how)

    def _feed(self, x: Tensor, positions: Tensor, tokens: int = 0, opens=True) -> Tensor:
        """Append x (B, T, C) to the cache, so many sketch tokens and then text; logits (B, 256)
        after its last token. opens: whether text begins a run, or goes on with the newest one."""
        T, mask = x.shape[1], None  # a prefill is causal, and a single token sees all
        # Keys by number: 0 the newest sketch token before, 1 the newest text token, 2 + i x[:, i].
        previous = torch.arange(1, T + 1, device=x.device)
        keep = torch.tensor([tokens + 1 if tokens else 0, T + 1], device=x.device)
        if tokens:
            previous[0] = 0 if self.mark else 2  # a first one stands for itself
            self.mark += tokens
        if opens:
            previous[tokens] = tokens + 2
        if self.cache.length and T > 1:  # `is_causal` would align these to the top left
            mask = torch.ones(T, self.cache.length + T, dtype=torch.bool, device=x.device)
            mask = mask.tril(self.cache.length)
        layers = range(self.model.config.layers)
        attends = [partial(self.attend, i, mask, previous, keep) for i in layers]
        x = self.model.decoder(x, positions, attends)
        self.cache.length += T
        return self.model.head(x[:, -1])

    @torch.inference_mode()
    def _refill(self, text: Tensor, sketched: int, opening: int) -> Tensor:
        """Start anew from text (B, T) of which so many leading chunks are held as sketches."""
        self.text[:, : text.shape[1]] = text
        self.count, self.closed = text.shape[1], sketched
        self.cache.length = self.mark = 0
        self.opening = torch.full((len(text), 1), opening, device=text.device)
        return self._append(0)

    def prefill(self, prompt: Tensor, opening: int = START) -> Tensor:
        """Begin with a prompt: (B, T) bytes, 0 <= T < capacity -> (B, 256) next byte's logits.
        `opening` comes before the first byte that is held as text."""
        length = prompt.shape[1]
        if length >= self.capacity:
            raise UserError(f"the prompt is {length} bytes, expected under {self.capacity}")
        sketched = 0 if self.history == "full" else length // self.model.config.chunk
        return self._refill(prompt.to(self.text.device), sketched, opening)

    @torch.inference_mode()
    def step(self, new: Tensor) -> Tensor:
        """Go on by one byte, after prefill: (B,) bytes -> (B, 256) logits of the byte after."""
        n, ratio = self.model.config.chunk, self.model.config.ratio
        keeps_text = self.history in ("full", "prompt")
        self.text[:, self.count] = new
        self.count += 1
        if self.count == self.capacity:
            dropped = -(-(self.count // n) // 2)  # chunks: the oldest half, rounded up
            kept = self.text[:, dropped * n : self.count].clone()
            sketched = max(0, self.closed - dropped) if keeps_text else kept.shape[1] // n
            return self._refill(kept, sketched, START)
        if not keeps_text and self.count % n == 0:
            return self._finish_chunk()
        run = self.text[:, max(self.closed * n, self.count - ratio) : self.count]
        seen = torch.cat([self.opening, run], 1)[:, -ratio:]  # no input looks back further
        position = torch.tensor([self.count], device=self.text.device)
        x = self.model.embed_text(seen, self.opening, skip=seen.shape[1] - 1)
        return self._feed(x, position, opens=False)

    def _finish_chunk(self) -> Tensor:
        """Put the open chunk's sketch, if any, in place of its text, and open the next chunk."""
        self.cache.length = self.mark
        self.closed += 1
        self.opening = torch.full_like(self.opening, START)
        return self._append(self.closed - 1)

    def _append(self, first: int) -> Tensor:
        """Append the sketches of the closed chunks from `first` on, none under "none", and the open
        run of text, its opening first; the logits after it."""
        begin = self.closed * self.model.config.chunk
        run = torch.cat([self.opening, self.text[:, begin : self.count]], dim=1)
        x = self.model.embed_text(run, self.opening)
        positions = torch.arange(begin, self.count + 1, device=x.device)
        if first == self.closed or self.history == "none":
            return self._feed(x, positions)
        memory, of_sketches = self._sketch(first, self.closed)
        x = torch.cat([memory, x], dim=1)
        return self._feed(x, torch.cat([of_sketches, positions]), len(of_sketches))

    def _sketch(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Sketch tokens (B, k m, C) of the k chunks from `first` to before `end`, and their
        positions (k m,)."""
        n, m = self.model.config.chunk, self.model.config.sketch_tokens
        chunks = self.text[:, first * n : end * n].unflatten(1, (-1, n))
        memory = [self.model.compress(group) for group in chunks.split(GROUP, dim=1)]
        numbers = torch.arange(first, end, device=chunks.device)
        return torch.cat(memory, dim=1).flatten(1, 2), sketch_positions(numbers, n, m).flatten()
