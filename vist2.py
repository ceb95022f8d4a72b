"""VIST2 from scratch: a language model that reads its own past from pictures.

After "Global Context Compression with Interleaved Vision-Text Transformation" (arXiv 2601.10378).
Text is cut into chunks of n bytes. A finished chunk is rendered to an image, its sketch; a ViT and
a projector, the aligner, turn the sketch into m visual tokens; from then on these are all that the
decoder sees of the chunk:

    text      [ chunk 0 ]        [ chunk 1 ]        [ chunk 2 ]
                  |                  |
    render     sketch 0           sketch 1              bytes -> pixels, no parameters
                  |                  |
    ViT        m tokens           m tokens              bidirectional inside one sketch
                  |                  |
    aligner   tanh(v W + b)      tanh(v W + b)
                  |                  |
    decoder   START c0 c1 .. | s s s s | START c0 c1 .. | s s s s | START c0 ..
                 chunk 0      sketch 0     chunk 1       sketch 1    chunk 2

The last line is what the decoder reads, in this order. Nothing is frozen: the loss on later text
trains the encoder through the sketch tokens.

Notable, and where it comes from:

    sketches see sketches only     this project: what is kept of a chunk is what its pixels show
    QK-norm                        Qwen3: RMSNorm on queries and keys; and so is grouped-query
                                   attention, `kv_heads`, of which neither preset makes use
    a learned gain on the query    this project: QK-norm alone caps how sharp attention can get
    a quarter turns under RoPE     GPT-NeoX, Black et al. 2022: content is compared at any distance
    key offset                     modded-nanogpt: half of a key is the token before's, so that
                                   what matches it returns what follows (mask.py)
    one code for text and sketch   this project: `embed_text`; recall needs it, and key offset
    its opening in every input     this project: after READ the next byte is found by its place in
                                   the sketch, after START by what the text says
    squared ReLU                   Primer, So et al. 2021
    RMSNorm without a gain         Zhang and Sennrich 2019; the matrix that follows can hold one
    zero-initialised head          the first prediction is uniform over the bytes

Shapes: B batch, N chunks, n bytes a chunk, m sketch tokens a chunk, S leading chunks that are
sketched, T decoder tokens, C width, H heads, D head width.
"""

from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from console import UserError
from mask import attention, interleave, may_attend, plan_forward
from render import PAGE, PATCH, patches_per_chunk, render

BYTES = 256  # a token is a byte, ids 0..255; what the model predicts
START, READ = 256, 257  # openings, inputs only: write on, or transcribe the chunk before
# What is seen of finished chunks: their sketches; their text; sketches of the prompt's chunks and
# text of all others; nothing.
HISTORIES = ("sketch", "full", "prompt", "none")


# ------------------------------------------------------------------------------------ config


@dataclass(frozen=True)
class Config:
    """Sizes of one model. Raises UserError, a ValueError, for sizes that do not fit each other."""

    chunk: int = 64  # n, bytes
    cell: tuple[int, int] = (16, 4)  # pixels of one byte (height, width): a compression dial
    merge: int = 1  # neighbouring patches in one sketch token: a second dial
    chunks: int = 8  # N, chunks in a training window
    width: int = 128  # C of the decoder
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4  # fewer than heads: grouped-query attention
    head_width: int = 64  # D
    mlp: int = 512
    encoder_width: int = 128
    encoder_layers: int = 2
    encoder_heads: int = 4
    rope_base: float = 1000.0

    def __post_init__(self):
        for field in fields(self):
            value, most = getattr(self, field.name), 2**10 if "layers" in field.name else 2**20
            known = type(value) in (int, field.type) and 1 <= value <= most
            if field.name != "cell" and not known:
                expected = f"{field.type.__name__} from 1 to {most:,}"
                raise UserError(f"{field.name} is {value!r}, expected {expected}")
        patches = patches_per_chunk(self.chunk, self.cell)
        if self.merge & (self.merge - 1) or patches % self.merge:  # joins parts of a line, or lines
            expected = f"a power of two that divides a chunk's {patches} patches"
            raise UserError(f"merge is {self.merge}, expected {expected}")
        # A quarter of a head turns, in pairs.
        steps = {"heads": self.kv_heads, "head_width": 8, "encoder_width": 8 * self.encoder_heads}
        for name, step in steps.items():
            if (value := getattr(self, name)) % step:
                raise UserError(f"{name} is {value}, expected a multiple of {step}")

    @property
    def ratio(self) -> int:
        """Bytes in one sketch token, n / m."""
        return self.chunk // self.sketch_tokens

    @property
    def sketch_tokens(self) -> int:
        """m, of a chunk of full length."""
        return patches_per_chunk(self.chunk, self.cell) // self.merge

    @classmethod
    def preset(cls, name: str, **changes) -> "Config":
        """A named size: 'tiny' for a CPU, 'small' for one GPU."""
        if name not in PRESETS:
            raise UserError(f"preset {name!r} is unknown, expected one of {', '.join(PRESETS)}")
        return cls(**(PRESETS[name] | changes))


# fmt: off
PRESETS = {
    "tiny": {},
    "small": dict(chunks=32, width=512, layers=10, heads=8, kv_heads=8, mlp=2048,
                  encoder_width=384, encoder_layers=4, encoder_heads=6),
}
# fmt: on


# ----------------------------------------------------------------------------- shared blocks


def norm(x: Tensor) -> Tensor:
    """RMSNorm without a gain."""
    return F.rms_norm(x, (x.shape[-1],))


def rope_angles(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE (Su et al. 2021) for the quarter of the channels that turns, from one
    radian a position down towards 1 / base: (T,) positions -> two of (T, width / 8), float32."""
    turned = width // 4
    frequencies = base ** (-torch.arange(0, turned, 2, device=positions.device) / turned)
    angles = positions[:, None] * frequencies
    return angles.cos(), angles.sin()


def rope(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs in the first quarter of the channels of (B, H, T, D) by their position's angle."""
    cos, sin = angles
    turned, still = x.tensor_split([2 * cos.shape[-1]], dim=-1)
    a, b = turned.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, still], dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with RoPE, QK-norm and a learned gain on the normalised query."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int):
        super().__init__()
        self.head_width = head_width
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(width, kv_heads * head_width, bias=False)
        self.value = nn.Linear(width, kv_heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.query_gain = nn.Parameter(torch.full((heads, 1, head_width), 2.0))

    def project(self, x, angles):
        """x (B, T, C) -> q (B, H, T, D), k and v (B, KV, T, D)."""
        q, k, v = (
            rearrange(linear(x), "B T (H D) -> B H T D", D=self.head_width)
            for linear in (self.query, self.key, self.value)
        )
        q = rope(norm(q) * self.query_gain, angles).type_as(v)
        return q, rope(norm(k), angles).type_as(v), v

    def forward(self, x, angles, attend):
        """x (B, T, C) -> (B, T, C).

        attend: q, k and v -> (B, H, T, D); an argument, since who sees whom differs. In the ViT it
        is `F.scaled_dot_product_attention` as it is, in training that under the interleave mask,
        while writing over a kv cache.
        """
        attended = attend(*self.project(x, angles))
        return self.out(rearrange(attended, "B H T D -> B T (H D)"))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, mlp: int):
        super().__init__()
        self.attention = Attention(width, heads, kv_heads, head_width)
        self.up = nn.Linear(width, mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def feed_forward(self, x):
        hidden = F.relu(self.up(norm(x)))
        return x + self.down(hidden * hidden)  # .square() makes three more tensors going back

    def forward(self, x, angles, attend):
        return self.feed_forward(x + self.attention(norm(x), angles, attend))


class Transformer(nn.Module):
    """Blocks under RoPE: the ViT and the decoder are one of these each."""

    def __init__(self, layers, width, heads, kv_heads, head_width, mlp, rope_base):
        super().__init__()
        self.head_width, self.rope_base = head_width, rope_base
        self.blocks = nn.ModuleList(
            Block(width, heads, kv_heads, head_width, mlp) for _ in range(layers)
        )

    def forward(self, x, positions, attends):
        """x (B, T, C) at `positions` (T,) -> (B, T, C), normalised. attends: one a layer."""
        angles = rope_angles(positions, self.head_width, self.rope_base)
        for block, attend in zip(self.blocks, attends, strict=True):
            x = block(x, angles, attend)
        return norm(x)


# ----------------------------------------------------------------------- encoder and aligner


class Encoder(nn.Module):
    """A ViT (Dosovitskiy et al. 2020) over the patches of one sketch, bidirectional.

    RoPE over reading order, not a table of positions: a sketch may have any number of lines.
    """

    def __init__(self, config: Config):
        super().__init__()
        c, width, heads = config, config.encoder_width, config.encoder_heads
        self.embed = nn.Linear(PATCH * PATCH, width)
        self.transformer = Transformer(
            c.encoder_layers, width, heads, heads, width // heads, 4 * width, c.rope_base
        )
        self.attends = [F.scaled_dot_product_attention] * c.encoder_layers

    def forward(self, sketches):
        """(B, H, W) pixels in [0, 1] -> (B, patches, encoder width)."""
        patches = rearrange(sketches, "B (row h) (col w) -> B (row col) (h w)", h=PATCH, w=PATCH)
        patches = 3 * patches - 0.6  # a fifth is ink: mean about 0, spread about 1
        x = norm(self.embed(patches.type_as(self.embed.weight)))
        return self.transformer(x, torch.arange(x.shape[1], device=x.device), self.attends)


class Aligner(nn.Module):
    """The modal aligner of the paper, tanh(v W + b): encoder width -> decoder width. Neighbouring
    patches enter side by side, in the channels: InternVL and nanoVLM do so with squares of them."""

    def __init__(self, config: Config):
        super().__init__()
        self.merge = config.merge
        self.project = nn.Linear(config.merge * config.encoder_width, config.width)

    def forward(self, v):
        return self.project(rearrange(v, "B (m k) C -> B m (k C)", k=self.merge)).tanh()


# ------------------------------------------------------------------------------------- model


class Vist2(nn.Module):
    """Encoder, aligner and decoder: the whole of VIST2."""

    may_attend = staticmethod(may_attend)

    def __init__(self, config: Config):
        super().__init__()
        self.config = c = config
        self.encoder = Encoder(c)
        self.aligner = Aligner(c)
        self.embedding = nn.Embedding(READ + 1, c.width)
        self.decoder = Transformer(  # a GPT in the style of Qwen3
            c.layers, c.width, c.heads, c.kv_heads, c.head_width, c.mlp, c.rope_base
        )
        self.head = nn.Linear(c.width, BYTES, bias=False)
        nn.init.zeros_(self.head.weight)
        self.speller = nn.Linear(c.width, c.ratio * c.width, bias=False)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """Bytes and openings, (..) ids -> (.., C)."""
        return norm(self.embedding(ids))

    def embed_text(self, ids: Tensor, openings: Tensor, skip: int = 0) -> Tensor:
        """The decoder's inputs of runs of text: (.., T) ids -> (.., T - skip, C).

        openings: (.., 1), of each run. skip: none are wanted of so many first ids. An input is a
        sum of three: the embedding of its byte, that of its run's opening, and a causal convolution
        over its byte and the ones before. `speller` takes a sketch token to a code for each byte it
        shows; the kernel, its transpose, takes the last K bytes, as many as the last line of a
        token's print shows (4 by default), to nearly that token.
        """
        x, c = self.embed(ids), self.config
        how = dict(k=c.merge, byte=PATCH // c.cell[1], out=c.width)
        code = rearrange(self.speller.weight, "(k line byte out) C -> line (k byte) out C", **how)
        kernel = code[-1, -PAGE // c.cell[1] :]  # (K, C, C), a view by default: no copy
        K, T = len(kernel), x.shape[-2]
        padded = F.pad(x, (0, 0, K - 1, 0))
        windows = torch.cat([padded[..., skip + k : k + T, :] for k in range(K)], dim=-1)
        looked_back = windows @ kernel.flatten(0, 1)  # (.., T - skip, K C) @ (K C, C)
        # an opening that is a byte, as `SlowFast` of experiments/rivals.py has it, counts as START
        return norm(x[..., skip:, :] + self.embed(openings.clamp(min=START)) + looked_back)

    def compress(self, chunks: Tensor) -> Tensor:
        """All that is kept of finished chunks: (B, N, n) bytes -> (B, N, m, C) sketch tokens."""
        sketches = rearrange(render(chunks, self.config.cell), "B N H W -> (B N) H W")
        tokens = self.aligner(self.encoder(sketches))
        return rearrange(tokens, "(B N) m C -> B N m C", N=chunks.shape[1])

    def forward(
        self, text, openings=None, history="sketch", memory=None, prompt_chunks=0, skip=0
    ):
        """Logits of every byte of a text, given what its history policy lets it see.

        text: (B, N, n) bytes. openings: (B, N) ids, all START if None; where the byte before is
        visible as text it opens the chunk itself. history: one of HISTORIES; for "prompt", the
        first `prompt_chunks` are the prompt. memory: sketch tokens (B, N - 1, m, C) to use in place
        of compress(text); of the last chunk nobody sees them. skip: no logits are wanted of so many
        first chunks; where nobody sees their text they enter the decoder as sketches alone.
        Returns (B, N - skip, n, 256) logits, of which [:, i, k] predicts text[:, skip + i, k].
        """
        B, N, n = text.shape
        if history not in HISTORIES:
            raise UserError(f"history is {history!r}, expected one of {', '.join(HISTORIES)}")
        if openings is None:
            openings = torch.full((B, N), START, device=text.device)
        if history == "none":  # every chunk is a text of its own
            text, openings = text[:, skip:].reshape(-1, 1, n), openings[:, skip:].reshape(-1, 1)
            return self(text, openings, "full").view(B, N - skip, n, BYTES)
        S = min({"sketch": N, "full": 0, "prompt": prompt_chunks}[history], N - 1)

        # A chunk's inputs are its opening and all its bytes but the last. Each sketched chunk is a
        # run of text of its own; those after them are one, where the byte before opens a chunk.
        opening = torch.cat([openings[:, : S + 1], text[:, S:-1, -1]], dim=1)[:, :, None]
        inputs = torch.cat([opening, text[:, :, :-1]], dim=2)  # (B, N, n)
        last = self.embed_text(inputs[:, S:].flatten(1), opening[:, S])  # (B, (N - S) n, C)
        if S == 0:  # a plain GPT
            x, m = last, 1
        else:
            memory = self.compress(text[:, :S]) if memory is None else memory[:, :S]
            own = self.embed_text(inputs[:, :S], opening[:, :S])  # (B, S, n, C)
            x = torch.cat([own, last.unflatten(1, (N - S, n))], dim=1)
            x, m = interleave(x, memory.to(x.dtype), skip), memory.shape[2]  # (B, T, C)
        plan = plan_forward(N, n, m, S, skip, self.may_attend, text.device)
        x = self.decoder(x, plan.positions, [partial(attention, plan=plan)] * self.config.layers)
        return self.head(x.index_select(1, plan.outputs)).unflatten(1, (N - skip, n))

    def predict_patch_bytes(self, memory: Tensor) -> Tensor:
        """What each sketch token says of its patches: (B, N, m, C) -> (B, N, n, 256) logits, ten
        times the cosine of a linear map for each byte of a patch with the bytes' embeddings.

        For training only, and not in the paper: it gives sketches and bytes a common code, so that
        attention, which compares linearly too, can look up text in sketches by its content.
        """
        predicted = norm(self.patch_to_text(self.speller(memory)))
        alphabet = self.embed(torch.arange(BYTES, device=memory.device))
        return 10 / self.config.width * predicted @ alphabet.T

    def patch_to_text(self, tokens: Tensor) -> Tensor:
        """From the order of patches to that of the text: (B, N, m, ratio C) -> (B, N, n, C)."""
        h, w = self.config.cell
        patches = rearrange(tokens, "B N m (k C) -> B N (m k) C", k=self.config.merge)
        how = dict(col=min(PAGE // PATCH, patches.shape[2]), line=PATCH // h, byte=PATCH // w)
        return rearrange(patches, "B N (row col) (line byte C) -> B N (row line col byte) C", **how)


def byte_losses(logits: Tensor, text: Tensor) -> Tensor:
    """Cross-entropy of each byte in nats, float32: logits (.., 256), text (..) bytes -> (..)."""
    logits, target = logits.float().flatten(0, -2), text.flatten().long()
    return F.cross_entropy(logits, target, reduction="none").view(text.shape)


def loss(logits: Tensor, text: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy, nats per byte: logits (.., 256), text (..) bytes, weights (..) or 1."""
    losses = byte_losses(logits, text)
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum()
