"""Other ways of keeping the past, each VIST2 with something else in one place.

    what is kept of a finished chunk   `compress`: as many vectors, made without pixels
    who sees whom                      `may_attend`: another rule over layouts (mask.py)
    what training asks for             `Rival.spells`

All have VIST2's decoder and head. Shapes are those of vist2.py; r = n / m.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, reduce

from cache import Session
from common import read_checkpoint, restore
from console import UserError
from experiments.sessions import GistSession, SlowFastSession
from mask import Layout, make_layout, may_attend
from vist2 import READ, START, Aligner, Config, Encoder, Transformer, Vist2, norm

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

    def encode(self, x):
        B, n, _ = x.shape
        r = self.config.ratio
        positions = torch.arange(n, device=x.device)
        positions = torch.cat([positions, positions[r - 1 :: r]])
        x = torch.cat([x, self.query.expand(B, n // r, -1)], dim=1)
        attends = [F.scaled_dot_product_attention] * len(self.encoder.blocks)
        return self.encoder(x, positions, attends)[:, n:]


class Patches(Latent):
    """The same ViT, fed the embeddings of a patch's bytes side by side in place of its pixels: the
    control that is closest to pixels (arXiv 2512.03643). Besides, its encoder and the text share
    embeddings from the first step on, and its patches are runs of bytes at every ratio."""

    def __init__(self, config: Config):
        super().__init__(config)
        c = config
        self.encoder, self.aligner = Encoder(c), Aligner(c)
        self.encoder.embed = nn.Linear(c.ratio // c.merge * c.width, c.encoder_width)

    def encode(self, x):
        r = self.config.ratio // self.config.merge
        x = norm(self.encoder.embed(rearrange(x, "B (patch r) C -> B patch (r C)", r=r)))
        positions = torch.arange(x.shape[1], device=x.device)
        return self.encoder.transformer(x, positions, self.encoder.attends)


class PoolSketch(Vist2):
    """A finer sketch, the mean of every `merge` visual tokens: average pooling, after "Efficient
    Large Multi-modal Models via Visual Context Compression" (arXiv 2406.20092), but before the
    decoder and in one stage."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.aligner = Aligner(replace(config, merge=1))

    def compress(self, chunks):
        k, tokens = self.config.merge, super().compress(chunks)
        return reduce(tokens, "B N (m k) C -> B N m C", "mean", k=k)


class Prune(Vist2):
    """A finer sketch, of which one token in ONE_IN stays, in order: those that the patches attend
    to most in the ViT's last layer. VisionDrop (arXiv 2506.22283) selects so, and also merges.

    Its weights are those of a plain model of the finer sketch. So the tokens that stay stand at
    even distances, not at their own places; text looks back as far as a finer patch; and half of
    the spelling loss is about bytes of which nothing is said.
    """

    ONE_IN = 2

    def __init__(self, config: Config):
        super().__init__(replace(config, merge=1))
        self.encoder.attends[-1] = self.attend

    def attend(self, q, k, v):
        seen = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        self.received = seen.mean(dim=(1, 2))  # (B N, patches)
        return seen @ v

    def compress(self, chunks):
        tokens = super().compress(chunks)
        m = tokens.shape[2] // self.ONE_IN
        kept = self.received.topk(m).indices.sort().values
        self.kept = kept.view(*tokens.shape[:2], m, 1).expand(-1, -1, -1, tokens.shape[-1])
        return tokens.gather(2, self.kept)

    def predict_patch_bytes(self, memory):
        """Of the memory that `compress` has made last."""
        B, N, m, C = memory.shape
        tokens = memory.new_zeros(B, N, m * self.ONE_IN, C).scatter(2, self.kept, memory)
        return super().predict_patch_bytes(tokens)


class Contrast(Vist2):
    """VIST2 and, where sketch tokens are given, as in training, a contrastive loss: the decoder's
    state before a chunk picks this chunk's mean token among those of the batch. After LCL (arXiv
    2406.07543), which trains a vision model so on interleaved text."""

    WEIGHT = 0.1  # of this loss, which each batch with sketches adds

    def __init__(self, config: Config):
        super().__init__(config)
        self.match = nn.Linear(config.width, config.width, bias=False)
        self.decoder.register_forward_hook(lambda *call: setattr(self, "states", call[-1]))

    def forward(self, text, openings=None, history="sketch", memory=None, prompt_chunks=0, skip=0):
        logits = super().forward(text, openings, history, memory, prompt_chunks, skip)
        N, n = text.shape[1:]
        if memory is None or N < 3:
            return logits
        m = memory.shape[2]
        last = make_layout(N, n, m, N - 1, skip, text.device).is_sketch.nonzero()[m - 1 :: m, 0]
        states, self.states = self.states, None  # they hold the graph
        state = norm(self.match(states[:, last[:-1]])).flatten(0, 1)  # after chunks 0 to N - 3
        shown = norm(memory[:, 1 : N - 1].mean(dim=2)).flatten(0, 1)  # each one's next chunk
        scores = 10 / self.config.width * state @ shown.T  # ten times the cosine
        loss = F.cross_entropy(scores.float(), torch.arange(len(scores), device=text.device))
        return AddLoss.apply(logits, self.WEIGHT * loss)


class AddLoss(torch.autograd.Function):
    """Logits as they are; what trains on them trains on a loss besides, whatever it weighs them by.
    Megatron-LM adds its losses of mixtures of experts so."""

    @staticmethod
    def forward(ctx, logits, loss):
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, torch.ones((), device=gradient.device)


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


def see_newest_chunk(query: Layout, key: Layout):
    """A byte sees the newest finished chunk as text, and of older ones the sketches alone."""
    causal = key.index <= query.index
    near = query.chunk - key.chunk <= 1
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
    learns to read it. writing: makes a Session of a model, a batch size and a capacity, None where
    none keeps the rival's cache. merge: patches for each of its tokens, of a sketch that is finer
    in turn. trained: the rival whose weights, at that finer ratio, it takes as they are. spells:
    whether its curriculum has spelling.
    """

    model: type[Vist2]
    history: str = "sketch"
    writing: Callable | None = None
    spells: bool = True
    merge: int = 1
    trained: str | None = None


REFERENCES = ("none", "full")  # they have no memory, and so no ratio
RIVALS = {
    "none": Rival(Vist2, "none", partial(Session, history="none")),  # the lower reference
    "full": Rival(Vist2, "full", partial(Session, history="full")),  # the upper one: a plain GPT
    "sketch": Rival(Vist2, writing=Session),  # VIST2
    "merge": Rival(Vist2, writing=Session, merge=2),
    "poolsketch": Rival(PoolSketch, writing=Session, merge=2),
    "prune": Rival(Prune, merge=Prune.ONE_IN),
    "pruned": Rival(Prune, merge=Prune.ONE_IN, trained="sketch"),
    "contrast": Rival(Contrast, writing=Session),
    "recent": Rival(Recent, "recent"),
    "patches": Rival(Patches, writing=Session),
    "meanpool": Rival(MeanPool, writing=Session),
    "conv": Rival(Conv, writing=Session),
    "queries": Rival(Queries, writing=Session),
    "gist": Rival(Gist, writing=GistSession, spells=False),
    "slowfast": Rival(SlowFast, writing=SlowFastSession),
    "prompt": Rival(PromptOnly),
    "leak": Rival(Leak, writing=GistSession),
    "frozen": Rival(Frozen, writing=Session),
}


def label_of(info: dict) -> str:
    """What names a model beside others: its rival, and its seed if that is not 0."""
    return info["rival"] + (f", seed {info['seed']}" if info.get("seed") else "")


def load_rival(path: str | Path, device="cpu") -> tuple[Vist2, dict]:
    """`load_checkpoint` for what train.py or compare has written; info["rival"] names it."""
    content = read_checkpoint(path, device)
    name = str(content.get("settings", {}).get("rival", content["info"]["history"]))
    if name not in RIVALS:
        raise UserError(f"{path} is of {name}, expected one of {', '.join(RIVALS)}")
    model = restore(content, path, RIVALS[name].model).to(device).eval()
    return model, content["info"] | {"rival": name}
