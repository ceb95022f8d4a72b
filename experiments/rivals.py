"""Other ways of keeping the past, each a Vist2 with something else in one place.

    what is kept of a finished chunk   `compress`: as many vectors, made without pixels
    who sees whom                      `may_attend`: another rule over layouts (mask.py)

All have VIST2's decoder, head and speller. Shapes are those of vist2.py; r = n / m.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange

from experiments.report import flops
from mask import Layout, may_attend
from vist2 import READ, START, Aligner, Config, Transformer, Vist2, norm

# --------------------------------------------------------------------------- another encoder


class Latent(Vist2):
    """Base of those without pixels: `encode` turns the embeddings of (B, n) bytes into (B, m, C),
    which the aligner takes. Token k stands for the bytes from k r on, in the order of the text."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.encoder = nn.ModuleList()
        self.aligner = Aligner(replace(config, encoder_width=config.width, merge=1))

    def compress(self, chunks):
        tokens = norm(self.encode(self.embed(chunks.flatten(0, 1))))
        return self.aligner(tokens).unflatten(0, chunks.shape[:2])

    def patch_to_text(self, patches):
        return rearrange(patches, "B N m (byte C) -> B N (m byte) C", C=self.config.width)


class MeanPool(Latent):
    """The mean of r bytes' embeddings: the plainest memory of arXiv 2512.03643."""

    def encode(self, x):
        return rearrange(x, "B (m r) C -> B m r C", r=self.config.ratio).mean(dim=2)


class Conv(Latent):
    """Residual convolutions, each of which halves the length: the other memory of arXiv
    2512.03643."""

    def __init__(self, config: Config):
        super().__init__(config)
        C = config.width
        for _ in range(int(math.log2(config.ratio))):
            self.encoder.append(nn.Conv1d(C, C, kernel_size=4, stride=2, padding=1))

    def encode(self, x):
        x = rearrange(x, "B n C -> B C n")
        for layer in self.encoder:
            x = F.avg_pool1d(x, 2) + F.relu(layer(x))
        return rearrange(x, "B C m -> B m C")


class Queries(Latent):
    """A learned query at m positions, which attends to the chunk's bytes in as many blocks as the
    ViT has: SweetTok (arXiv 2412.10443), and latent compressors such as ICAE (arXiv 2307.06945).
    """

    def __init__(self, config: Config):
        super().__init__(config)
        c, C, heads = config, config.width, config.encoder_heads
        self.query = nn.Parameter(torch.randn(C))
        self.encoder = Transformer(
            c.encoder_layers, C, heads, heads, C // heads, 4 * C, c.rope_base
        )
        self.init_weights()  # of the new blocks

    def encode(self, x):
        B, n, _ = x.shape
        r = self.config.ratio
        positions = torch.arange(n, device=x.device)
        positions = torch.cat([positions, positions[r - 1 :: r]])
        x = torch.cat([x, self.query.expand(B, n // r, -1)], dim=1)
        attends = [F.scaled_dot_product_attention] * len(self.encoder.blocks)
        return self.encoder(x, positions, attends)[:, n:]


class Frozen(Vist2):
    """No rival but a control: the encoder stays as it was drawn at random, the rest learns."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.encoder.requires_grad_(False)


# ------------------------------------------------------------------------------ another mask


class Recent(Vist2):
    """Truncation at equal cache: no memory, but i m of the newest bytes before chunk i, as many as
    there would be sketch tokens. Layers hand on what they saw, and inputs and keys look back at
    up to four bytes, so this sliding window looks further back than a text that is cut off. For
    chunks of the config's length."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.may_attend = partial(see_newest_bytes, n=config.chunk, m=config.sketch_tokens)

    def forward(self, text, openings=None, history="recent", *inputs, **more):
        return super().forward(text, openings, "full", *inputs, **more)


def see_newest_bytes(query: Layout, key: Layout, n: int, m: int):
    causal = key.index <= query.index
    return causal & (key.position >= query.position // n * (n - m))


class PromptOnly(Vist2):
    """The first half as sketches, the rest as text: Glyph (arXiv 2510.17800); "Text or Pixels?"
    (arXiv 2510.18279)."""

    def forward(self, text, openings=None, history="sketch", memory=None, **more):
        history = "prompt" if history == "sketch" else history
        return super().forward(text, openings, history, memory, text.shape[1] // 2, **more)


class WithText(Vist2):
    """Base of those that see text of earlier chunks, so that none of it can be left out."""

    def forward(self, *inputs, skip=0, **more):
        return super().forward(*inputs, **more)[:, skip:]


class SlowFast(WithText):
    """The newest finished chunk as text, older ones as sketches: the slow and fast paths of Vist
    (arXiv 2502.00791). As under any window, text hands on what it saw, layer by layer."""

    def forward(self, text, openings=None, history="sketch", *inputs, **more):
        if openings is None:
            openings = torch.full(text.shape[:2], START, device=text.device)
        window = history == "sketch" and not (openings == READ).any()  # READ has the sketch alone
        if window:  # a chunk's last byte must be an input to be seen as text
            openings = torch.cat([openings[:, :1], text[:, :-1, -1]], dim=1)
        self.may_attend = see_newest_chunk if window else may_attend
        return super().forward(text, openings, history, *inputs, **more)


def see_newest_chunk(query: Layout, key: Layout, window: int = 1):
    """A byte sees so many finished chunks as text, and of older ones the sketches alone."""
    causal = key.index <= query.index
    near = query.chunk - key.chunk <= window
    return causal & torch.where(key.is_sketch, query.is_sketch | ~near, ~query.is_sketch & near)


class Leak(WithText):
    """No rival but an ablation: a sketch sees its own chunk's text too, in the decoder."""

    @staticmethod
    def may_attend(query: Layout, key: Layout):
        causal = key.index <= query.index
        return causal & (key.is_sketch | (query.chunk == key.chunk))


class Gist(Leak):
    """The decoder's own states, in every layer, at m slots after reading the chunk: Fwd2Bot (arXiv
    2503.21757); Activation Beacon (arXiv 2401.03462).

    One learned slot, told apart by its position; the last is the chunk's last byte, which is no
    input otherwise. Before the decoder reads a chunk nothing is known of it, so there is nothing
    to spell.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        del self.encoder, self.aligner
        self.slot = nn.Parameter(torch.randn(config.width))

    def compress(self, chunks):
        B, N, n = chunks.shape
        slots = self.slot.tanh().expand(B, N, n // self.config.ratio - 1, -1)
        return torch.cat([slots, self.embed(chunks[..., -1:])], dim=2)

    def predict_patch_bytes(self, memory):
        return 0 * super().predict_patch_bytes(memory)


# --------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Rival:
    """A model, and the history that it is trained and evaluated under: "sketch" has a memory, and
    learns to read it. writing: the history of a Session, None where none keeps the rival's cache.
    """

    model: type[Vist2]
    history: str = "sketch"
    writing: str | None = None
    spells: bool = True


REFERENCES = ("none", "full")  # they have no memory, and so no ratio
RIVALS = {
    "none": Rival(Vist2, "none"),  # the lower reference
    "full": Rival(Vist2, "full", "full"),  # the upper one: a plain GPT
    "sketch": Rival(Vist2, writing="sketch"),  # VIST2
    "recent": Rival(Recent, "recent"),
    "meanpool": Rival(MeanPool, writing="sketch"),
    "conv": Rival(Conv, writing="sketch"),
    "queries": Rival(Queries, writing="sketch"),
    "gist": Rival(Gist, spells=False),
    "slowfast": Rival(SlowFast),
    "prompt": Rival(PromptOnly),
    "leak": Rival(Leak),
    "frozen": Rival(Frozen),
}


def costs(name: str, config: Config) -> dict:
    """What a rival keeps of a finished chunk, and what it takes to make it.

    entries: in the decoder's cache. text: entries of text that it keeps on top. KiB: the least of
    its memory that can be stored: m vectors, which the decoder can read again, or keys and values
    of all layers where these have read text.
    """
    rival, n, m = RIVALS[name], config.chunk, config.sketch_tokens
    has_memory = rival.history == "sketch"
    entries = {"none": 0, "full": n}.get(name, m)
    numbers = entries * 2 * config.layers * config.kv_heads * config.head_width
    if has_memory and not issubclass(rival.model, Leak):
        numbers = m * config.width
    weights, work = 0, 0
    if has_memory:
        with torch.device("meta"):
            model, chunk = rival.model(config), torch.zeros(1, 1, n, dtype=torch.long)
        work = flops(lambda: model.compress(chunk))[0]
        shared = ("decoder", "speller", "embedding", "head")
        own = [p for key, p in model.named_parameters() if not key.startswith(shared)]
        weights = sum(p.numel() for p in own)
    return {
        "encoder weights": weights,
        "encoder MFLOP": work / 1e6,
        "entries": entries,
        "text": {"slowfast": n, "prompt": "all after the prompt"}.get(name, 0),
        "KiB": 4 * numbers / 1024,
    }
