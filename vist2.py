"""VIST2 from scratch: a language model that reads its own past from pictures.

After "Global Context Compression with Interleaved Vision-Text Transformation" (arXiv 2601.10378).
Text is cut into chunks of n bytes. A finished chunk is rendered to a sketch, the sketch is encoded
into m visual tokens, and from then on the decoder sees the chunk through these tokens alone:

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

The last line is the order of reading, in which nothing looks ahead. In the tensors all sketches
come first and all text after them (see `places`). Nothing is frozen: the loss on later text trains
the encoder through the sketch tokens.

Dimensions, everywhere:

    B batch     N chunks          n bytes a chunk     m sketch tokens a chunk     T tokens
    C width     H heads           D head width        S sketched chunks: the leading ones that
                                                        the decoder sees as sketches

Read from top to bottom: config, shared blocks, encoder and aligner, mask, decoder, model, loss.
"""

import math
import os
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange

from render import PAGE, PATCH, patches_per_chunk, render

BYTES = 256  # a token is a byte, ids 0..255; what the model predicts
START, READ = 256, 257  # openings, inputs only: write on, or transcribe the chunk before
HISTORIES = ("sketch", "full", "prompt", "none")
BLOCKS = 16  # of text in attention at most, see block_masks


# ------------------------------------------------------------------------------------ config


@dataclass(frozen=True)
class Config:
    """Sizes of one model. Raises ValueError for sizes that do not fit each other."""

    chunk: int = 64  # n, bytes
    cell: tuple[int, int] = (16, 4)  # pixels of one byte (height, width): the compression dial
    chunks: int = 8  # N, chunks in a training window
    width: int = 128  # C of the decoder
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4  # fewer than heads: grouped-query attention, as in Qwen3
    head_width: int = 64  # D
    mlp: int = 512
    encoder_width: int = 128
    encoder_layers: int = 2
    encoder_heads: int = 4
    rope_base: float = 1000.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "cell" and not (type(value) in (int, field.type) and value > 0):
                raise ValueError(f"{field.name} is {value!r}, expected a positive number")
        patches_per_chunk(self.chunk, self.cell)
        for name, whole, part in (
            ("kv_heads", self.heads, self.kv_heads),
            ("encoder_heads", self.encoder_width, self.encoder_heads),
        ):
            if whole % part:
                raise ValueError(f"{name} is {part}, expected a divisor of {whole}")
        for name, width in (
            ("head_width", self.head_width),
            ("encoder_width / encoder_heads", self.encoder_width // self.encoder_heads),
        ):
            if width % 4:
                raise ValueError(f"{name} is {width}, expected a multiple of 4, for rope")

    @property
    def ratio(self) -> int:
        """Bytes in one patch, n / m."""
        return self.chunk // patches_per_chunk(self.chunk, self.cell)

    @classmethod
    def preset(cls, name: str, **changes) -> "Config":
        """A named size: 'tiny' for a CPU, 'small' for one GPU, 'bench' to be timed, or one of the
        paper's decoders.

        The paper's have Qwen3's shapes and an encoder the size of ViT-L/16. Build them under
        `torch.device("meta")` to count them.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown, expected one of {', '.join(PRESETS)}")
        return cls(**(PRESETS[name] | changes))


# `mlp` has two matrices where Qwen3's SwiGLU has three: 3/2 of its width holds as many weights.
_PAPER = dict(
    kv_heads=8,
    head_width=128,
    encoder_width=1024,
    encoder_layers=24,
    encoder_heads=16,
    rope_base=1e6,
    chunks=64,
)
PRESETS = {
    "tiny": {},
    "small": dict(
        chunks=32,
        width=512,
        layers=10,
        heads=8,
        kv_heads=8,
        head_width=64,
        mlp=2048,
        encoder_width=384,
        encoder_layers=4,
        encoder_heads=6,
    ),
    "bench": dict(  # to be timed on two cores: an encoder of 7 % of the decoder; the 4B's is 8 %
        width=512,
        layers=8,
        heads=8,
        kv_heads=8,
        head_width=64,
        mlp=2048,
        encoder_width=192,
        encoder_layers=4,
    ),
    "0.6B": dict(width=1024, layers=28, heads=16, mlp=3072 * 3 // 2, **_PAPER),
    "1.7B": dict(width=2048, layers=28, heads=16, mlp=6144 * 3 // 2, **_PAPER),
    "4B": dict(width=2560, layers=36, heads=32, mlp=9728 * 3 // 2, **_PAPER),
    "8B": dict(width=4096, layers=36, heads=32, mlp=12288 * 3 // 2, **_PAPER),
}


# ----------------------------------------------------------------------------- shared blocks


def norm(x: torch.Tensor) -> torch.Tensor:
    """RMSNorm without a gain (Zhang and Sennrich 2019): the matrix that follows can hold one."""
    return F.rms_norm(x, (x.shape[-1],))


def rope_angles(
    positions: torch.Tensor, width: int, base: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of RoPE (Su et al. 2021): (T,) positions -> two of (T, width / 2), float32.

    The slower half of the pairs does not turn (p-RoPE, Barbero et al. 2024): what they hold can be
    compared at any distance alike, which is what looking up by content takes.
    """
    frequencies = base ** (-torch.arange(0, width, 2, device=positions.device) / width)
    frequencies[width // 4 :] = 0
    angles = positions[:, None] * frequencies
    return angles.cos(), angles.sin()


def rope(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn each pair of channels of (B, H, T, D) by its position's angle."""
    cos, sin = angles
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).type_as(x)


class Attention(nn.Module):
    """Grouped-query attention with RoPE and QK-norm, as in Qwen3.

    A learned gain on the normalised query, 2 at the start: without it QK-norm caps how sharply one
    sketch token can be picked out of hundreds.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int):
        super().__init__()
        self.head_width = head_width
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(width, kv_heads * head_width, bias=False)
        self.value = nn.Linear(width, kv_heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.gain = nn.Parameter(torch.full((heads, 1, head_width), 2.0))

    def forward(self, x, angles, attend):
        """x (B, T, C). `attend` turns q (B, H, T, D), k and v into (B, H, T, D): it knows who sees
        whom, and whether keys and values of earlier calls come from a cache."""
        q, k, v = (
            rearrange(project(x), "B T (H D) -> B H T D", D=self.head_width)
            for project in (self.query, self.key, self.value)
        )
        q = rope(norm(q) * self.gain, angles).type_as(v)
        k = rope(norm(k), angles).type_as(v)
        return self.out(rearrange(attend(q, k, v), "B H T D -> B T (H D)"))


class Block(nn.Module):
    """A pre-norm transformer block; the MLP has a squared ReLU (So et al. 2021)."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, mlp: int):
        super().__init__()
        self.attention = Attention(width, heads, kv_heads, head_width)
        self.up = nn.Linear(width, mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def forward(self, x, angles, attend):
        x = x + self.attention(norm(x), angles, attend)
        hidden = F.relu(self.up(norm(x)))
        return x + self.down(hidden * hidden)  # .square() makes three more tensors going back


# ----------------------------------------------------------------------- encoder and aligner


class Encoder(nn.Module):
    """A ViT (Dosovitskiy et al. 2020) over one sketch: the patches of a page, in reading order.

    Bidirectional. RoPE over the patch order instead of a table of positions, so that a sketch may
    have any number of lines.
    """

    def __init__(self, config: Config):
        super().__init__()
        width, heads = config.encoder_width, config.encoder_heads
        self.config = config
        self.embed = nn.Linear(PATCH * PATCH, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, heads, width // heads, 4 * width)
            for _ in range(config.encoder_layers)
        )

    def forward(self, sketches):
        """(B, H, W) pixels -> (B, m, encoder width)."""
        patches = rearrange(sketches, "B (row h) (col w) -> B (row col) (h w)", h=PATCH, w=PATCH)
        positions = torch.arange(patches.shape[1], device=patches.device)
        head_width = self.config.encoder_width // self.config.encoder_heads
        angles = rope_angles(positions, head_width, self.config.rope_base)
        # about zero mean and unit spread: reading is learned sooner than from raw ink in [0, 1]
        x = norm(self.embed((3 * patches - 0.6).type_as(self.embed.weight)))
        for block in self.blocks:
            x = block(x, angles, F.scaled_dot_product_attention)
        return norm(x)


class Aligner(nn.Module):
    """The modal aligner of the paper, tanh(v W + b): encoder width -> decoder width."""

    def __init__(self, config: Config):
        super().__init__()
        self.project = nn.Linear(config.encoder_width, config.width)

    def forward(self, v):
        return self.project(v).tanh()


# -------------------------------------------------------------------------------------- mask


def sketch_positions(chunks: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Places in the text of the sketch tokens of some chunks, for RoPE: (S,) -> (S m,).

    Token k of chunk i stands where its share of the bytes ends, at i n + (k + 1) n / m - 1: the
    last one is the left neighbour of the next opening.
    """
    ends = (torch.arange(m, device=chunks.device) + 1) * (n // m) - 1
    return rearrange(chunks[:, None] * n + ends, "S m -> (S m)")


def places(
    N: int, n: int, m: int, S: int, device=None, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where everything stands: N chunks of text, of which the S leading ones have a sketch; the
    text of chunks before `first` is left out.

    The order of the tokens is all sketches, then all text, T = S m + (N - first) n. Returns `ids`
    (3, T) for `visible`, with the rows chunk, kind (0 text, 1 sketch) and index within the kind,
    and `positions` (T,) for RoPE: input k of chunk i, of which 0 is the opening, stands at i n + k.
    Text from chunk S on has no sketch to stand for it: it is one long chunk, S. So one rule serves
    all histories of N = 4 chunks: "sketch" has S = 3, chunk 3 being the open one; "prompt" after a
    prompt of two chunks S = 2, chunks 2 and 3 being one; "full" S = 0, one chunk of all text.
    """
    text = torch.arange(first * n, N * n, device=device)
    sketch = torch.arange(S * m, device=device)
    text_ids = torch.stack([(text // n).clamp(max=S), torch.zeros_like(text), text])
    sketch_ids = torch.stack([sketch // m, torch.ones_like(sketch), sketch])
    positions = torch.cat([sketch_positions(torch.arange(S, device=device), n, m), text])
    return torch.cat([sketch_ids, text_ids], dim=1), positions


def visible(query: torch.Tensor, key: torch.Tensor, window=0, leak=False) -> torch.Tensor:
    """Who sees whom: ids (3, .., Q) and (3, .., K) -> (.., Q, K) bool. Two rules:

        nothing looks ahead;  a sketch is visible to all, a byte to the bytes of its own chunk

    Two chunks of two bytes and one sketch token each, then a third chunk, in the order of reading:

                  t t s t t s t t      keys: text, sketch
        chunk 0 t x . . . . . . .
                t x x . . . . . .
       sketch 0 s . . x . . . . .      a sketch sees sketches only: what it keeps of its chunk
        chunk 1 t . . x x . . . .      is what the pixels show
                t . . x x x . . .
       sketch 1 s . . x . . x . .
        chunk 2 t . . x . . x x .      the opening of chunk 2: two sketches are all its past
                t . . x . . x x x

    Two dials, for the rivals in compare.py. window: a byte sees so many finished chunks before its
    own as text, and the sketches of older ones only. leak: a sketch sees its own chunk's text.
    """
    q_chunk, q_kind, q_index = query.unsqueeze(-1)
    k_chunk, k_kind, k_index = key.unsqueeze(-2)
    same_chunk = k_chunk == q_chunk
    same_part = same_chunk & (k_kind == q_kind)
    causal = (
        (k_chunk < q_chunk) | same_part & (k_index <= q_index) | same_chunk & (k_kind < q_kind)
    )
    near = q_chunk - k_chunk <= window
    sketch_seen = (q_kind == 1) | ~near
    text_seen = (q_kind == 0) & near | same_chunk & leak
    return causal & torch.where(k_kind == 1, sketch_seen, text_seen)


def block_masks(
    ids: torch.Tensor, S: int, m: int, blocks: int, first: int = 0
) -> list[torch.Tensor]:
    """`visible`, without most of what nobody sees: for each block of t bytes, whole chunks, a mask
    (t, s + t) over the s sketches before the block's last chunk and the block itself.

    first: the chunk with which the text of `ids` begins.
    """
    sketch_ids, text_ids = ids.split([S * m, ids.shape[1] - S * m], dim=1)
    masks = []
    for block, own in enumerate(text_ids.chunk(blocks, dim=1), start=1):
        last = first + block * (S + 1 - first) // blocks - 1  # the block's last chunk
        before = sketch_ids[:, : last * m]
        masks.append(visible(own, torch.cat([before, own], dim=1)))
    return masks


def interleaved_attention(q, k, v, sketched: int, masks: list[torch.Tensor]):
    """Softmax attention under `visible`, in blocks of text (see block_masks).

    The first `sketched` tokens are sketches, which see only each other.
    q (B, H, T, D), k and v (B, KV, T, D) -> (B, H, T, D)
    """
    attention = partial(F.scaled_dot_product_attention, enable_gqa=True)
    sizes = [sketched, q.shape[2] - sketched]
    (q_sketch, q_text), (k_sketch, k_text), (v_sketch, v_text) = (
        z.split(sizes, dim=2) for z in (q, k, v)
    )
    attended = [attention(q_sketch, k_sketch, v_sketch, is_causal=True)]
    blocks = zip(*(z.chunk(len(masks), dim=2) for z in (q_text, k_text, v_text)), masks)
    for q_own, k_own, v_own, mask in blocks:
        before = mask.shape[1] - mask.shape[0]
        keys = torch.cat([k_sketch[:, :, :before], k_own], dim=2)
        values = torch.cat([v_sketch[:, :, :before], v_own], dim=2)
        attended.append(attention(q_own, keys, values, attn_mask=mask))
    return torch.cat(attended, dim=2)


# ----------------------------------------------------------------------------------- decoder


class Decoder(nn.Module):
    """A GPT in the style of Qwen3 over sketch tokens and bytes."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(READ + 1, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.kv_heads, config.head_width, config.mlp)
            for _ in range(config.layers)
        )
        self.head = nn.Linear(config.width, BYTES, bias=False)

    def forward(self, x, positions, attends):
        """x (B, T, C) at `positions` (T,), one `attend` a layer (see Attention) -> (B, T, C)."""
        angles = rope_angles(positions, self.config.head_width, self.config.rope_base)
        for block, attend in zip(self.blocks, attends):
            x = block(x, angles, attend)
        return norm(x)


# ------------------------------------------------------------------------------------- model


class Vist2(nn.Module):
    """Encoder, aligner and decoder: the whole of VIST2; and a speller, for training only."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.aligner = Aligner(config)
        self.decoder = Decoder(config)
        nn.init.zeros_(self.decoder.head.weight)
        self.speller = nn.Linear(config.width, config.ratio * config.width, bias=False)

    def remember(self, chunks: torch.Tensor) -> torch.Tensor:
        """All that is kept of finished chunks: (B, N, n) bytes -> (B, N, m, C) sketch tokens."""
        sketches = rearrange(render(chunks, self.config.cell), "B N H W -> (B N) H W")
        memory = self.aligner(self.encoder(sketches))
        return rearrange(memory, "(B N) m C -> B N m C", N=chunks.shape[1])

    def attend_text(self, N: int, n: int):
        """How N chunks of text see each other where there are no sketches: as in a plain GPT."""
        return partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Bytes and openings, (..) ids -> (.., C)."""
        return norm(self.decoder.embed(ids))

    def spell(self, memory: torch.Tensor) -> torch.Tensor:
        """What each sketch token says of its own patch: (B, N, m, C) -> (B, N, n, 256) logits.

        A linear map for each place in a patch, compared with the embeddings of the bytes (ten
        times the cosine). For training only, and not in the paper: it gives sketches and bytes a
        common code. Attention compares linearly too, so it can look up text by its content where
        there is one; learning to read alone did not bring it about.
        """
        spelled = self.in_reading_order(self.speller(memory))
        alphabet = self.embed(torch.arange(BYTES, device=memory.device))
        return 10 / self.config.width * norm(spelled) @ alphabet.T

    def in_reading_order(self, spelled: torch.Tensor) -> torch.Tensor:
        """From patches to bytes: (B, N, m, ratio C) -> (B, N, n, C)."""
        h, w = self.config.cell
        return rearrange(
            spelled,
            "B N (row col) (line byte C) -> B N (row line col byte) C",
            col=min(PAGE // PATCH, spelled.shape[2]),
            line=PATCH // h,
            byte=PATCH // w,
        )

    def forward(
        self,
        text,
        openings=None,
        history="sketch",
        memory=None,
        prompt_chunks=0,
        window=0,
        leak=False,
        first=0,
    ):
        """Logits of every byte of a text, given what its history policy lets it see.

        text: (B, N, n) bytes. openings: (B, N) ids, all START if None; unused where the byte
        before is visible as text and opens the chunk itself. history: one of HISTORIES; for
        "prompt", `prompt_chunks` leading chunks are the prompt. memory: sketch tokens (B, N, m, C)
        to use instead of remember(text); the last chunk's are seen by nobody and may be left out.
        window, leak: see `visible`, for "sketch".
        first: no logits are wanted of the chunks before it. Where nobody sees their text, they
        enter the decoder as sketches alone.
        Returns (B, N - first, n, 256) logits, of which [:, i, k] predicts text[:, first + i, k].
        """
        B, N, n = text.shape
        if openings is None:
            openings = torch.full((B, N), START, device=text.device)
        if history == "none":  # every chunk is a row of its own
            rows = self(
                rearrange(text[:, first:], "B N n -> (B N) 1 n"),
                rearrange(openings[:, first:], "B N -> (B N) 1"),
                "full",
            )
            return rearrange(rows, "(B N) 1 n V -> B N n V", B=B)
        if history not in HISTORIES:
            raise ValueError(f"history is {history!r}, expected one of {', '.join(HISTORIES)}")
        S = min({"sketch": N, "full": 0, "prompt": prompt_chunks}[history], N - 1)

        opened = 1 if window else S + 1  # chunks whose opening is not the byte before
        before = torch.cat([openings[:, :opened], text[:, opened - 1 : -1, -1]], dim=1)  # (B, N)
        inputs = torch.cat([before[:, :, None], text[:, :, :-1]], dim=2)  # (B, N, n)
        own_only = 0 < S == N - 1 and not window and not leak  # bytes see their own chunk's alone
        left_out = first if own_only else 0
        x = rearrange(self.embed(inputs[:, left_out:]), "B N n C -> B (N n) C")
        if S == 0:
            attend = self.attend_text(N, n)
            x = self.decoder(
                x, torch.arange(N * n, device=x.device), [attend] * self.config.layers
            )
        else:
            memory = (self.remember(text[:, :S]) if memory is None else memory[:, :S]).to(x.dtype)
            m = memory.shape[2]
            ids, positions = places(N, n, m, S, text.device, left_out)
            if own_only:
                blocks = math.gcd(N - left_out, BLOCKS)
                masks = block_masks(ids, S, m, blocks, left_out)
                attend = partial(interleaved_attention, sketched=S * m, masks=masks)
            else:
                mask = visible(ids, ids, window, leak)
                attend = partial(F.scaled_dot_product_attention, attn_mask=mask, enable_gqa=True)
            x = torch.cat([rearrange(memory, "B S m C -> B (S m) C"), x], dim=1)
            x = self.decoder(x, positions, [attend] * self.config.layers)[:, S * m :]
        x = rearrange(x, "B (N n) C -> B N n C", n=n)
        return self.decoder.head(x[:, first - left_out :])


def byte_losses(logits: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each byte in nats: logits (.., 256), text (..) bytes -> (..)."""
    losses = F.cross_entropy(
        logits.float().flatten(0, -2), text.flatten().long(), reduction="none"
    )
    return losses.view(text.shape)


def loss(
    logits: torch.Tensor, text: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy, nats per byte: logits (.., 256), text (..) bytes, weights (..) or 1."""
    losses = byte_losses(logits, text)
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum()


# -------------------------------------------------------------------------------- checkpoint

FORMAT = "vist2 checkpoint 3"


def save_checkpoint(path: str | Path, model: Vist2, info: dict, **more) -> None:
    """Write a whole checkpoint or none: to a temporary file, to the disk, then over the old one.

    info: plain types, see load_checkpoint. more: what a resume needs besides, such as optimizers.
    Raises OSError, and leaves the old file as it was.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    content = {
        "format": FORMAT,
        "config": asdict(model.config),
        "model": model.state_dict(),
        "info": info,
    }
    try:
        with open(temporary, "wb") as file:
            torch.save(content | more, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write the checkpoint {path}: {error}") from error


def read_checkpoint(path: str | Path, device="cpu") -> dict:
    """The content of a checkpoint: plain types and tensors, never pickled code.

    Raises ValueError for a file that is missing, truncated or not a checkpoint of this project,
    and OSError for one that cannot be opened.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is not there, expected a checkpoint that train.py has written")
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location=device, weights_only=True)
            known = content["format"] == FORMAT
        except torch.OutOfMemoryError:  # nothing is wrong with the file
            raise
        except Exception:  # torch raises a dozen kinds, OSError too, by where a file is broken
            raise ValueError(f"{path} is damaged or not a checkpoint of this project") from None
    if not known:
        raise ValueError(f"{path} is a {content['format']!r}, expected a {FORMAT!r}")
    return content


def restore(content: dict, path: str | Path, kind: type[Vist2] = Vist2) -> Vist2:
    """The model in a checkpoint's content. Raises ValueError if it does not fit this code."""
    try:
        model = kind(Config(**content["config"]))
        model.load_state_dict(content["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not fit this code's config: {reason}") from None
    return model


def load_checkpoint(path: str | Path, device="cpu") -> tuple[Vist2, dict]:
    """(model, info) from a file. info: step, stage, history, chunks, seed, data digest and more.

    Raises ValueError for a file that is missing, damaged, or does not fit this code's config.
    """
    content = read_checkpoint(path, device)
    return restore(content, path).to(device).eval(), content["info"]
