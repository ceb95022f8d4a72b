"""Where a model looks while it writes, answers or completes a name: attention on its sketches.

`figures trace` and `figures name` draw it; demo shows a part of it in the terminal.
"""

import argparse
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont

from cache import Session
from common import open_model
from console import UserError, check_range, one_line, read_file
from data import Corpus
from experiments.kinds import BEGUN, name_places
from experiments.report import load_test_corpus
from generate import as_row, fit_context, fit_prompt, write
from questions import STOP, question_prompt
from render import PATCH, enlarge, glyphs, render
from vist2 import Config, Vist2

TEXT, SKETCH = (0.40, 0.65, 0.90), (1.00, 0.62, 0.15)  # red, green, blue of what is looked at
WIDTH = 960  # pixels of a picture
GAP, LINE = 8, 26  # pixels between sketches, and of a line of words
GLYPH = (12, 24)  # pixels, width and height, of a byte of the open chunk


class Watched(Session):
    """A session that keeps what came of its last input: `logits`, and where it looked, `seen`, a
    (entries,) tensor a layer, the mean over heads of what the softmax gives to each entry of the
    cache."""

    def _feed(self, *inputs, **how):
        self.seen: list[torch.Tensor] = []
        self.logits = super()._feed(*inputs, **how)
        return self.logits

    def attend(self, layer, mask, previous, keep, q, k, v):
        attended = super().attend(layer, mask, previous, keep, q, k, v)
        keys = self.cache.buffer[0, layer, :, :, : self.cache.length + q.shape[2]]
        keys = repeat(keys, "B KV T D -> B (KV G) T D", G=q.shape[1] // keys.shape[1])
        scores = q[:, :, -1:] @ keys.mT / q.shape[-1] ** 0.5
        self.seen.append(scores.softmax(-1).mean(dim=1)[0, 0])
        return attended


@dataclass
class Moment:
    """All that the model has when it writes a byte."""

    finished: torch.Tensor  # (S, n) bytes, held as sketches
    open: bytes  # of the chunk that is being written
    seen: list[torch.Tensor]  # by layer, (S m + 1 + open bytes,)
    probabilities: torch.Tensor  # (256,) of the byte to come
    caption: str = ""  # said beside it

    @property
    def likeliest(self) -> int:
        return self.probabilities.argmax().item()

    def shares(self, m: int) -> Iterator[tuple[range, tuple[torch.Tensor, ...]]]:
        """For the earlier and the later half of the layers: the layers, and how much they look at
        each sketch token (S m,), at the opening (1,) and at each open byte."""
        half, parts = len(self.seen) // 2, [len(self.finished) * m, 1, len(self.open)]
        for layers in filter(len, (range(half), range(half, len(self.seen)))):
            yield layers, torch.stack([self.seen[i] for i in layers]).mean(0).split(parts)


def moments(
    model: Vist2, prompt: bytes, count: int, capacity: int, stop: int | None = None
) -> Iterator[Moment]:
    """The next `count` bytes, the likeliest each time, up to `stop`."""
    n = model.config.chunk
    session = Watched(model, 1, "sketch", capacity)
    session.prefill(as_row(prompt))
    for new in write(session, session.logits, count):
        text = session.text[0, : session.count].clone()
        S, probabilities = session.closed, session.logits[0].softmax(-1)
        finished, rest = text[: S * n].view(S, n), bytes(text[S * n :].tolist())
        yield Moment(finished, rest, session.seen, probabilities)
        if new.item() == stop:
            break


# ----------------------------------------------------------------------------------- pictures


def tinted(ink: torch.Tensor, share: torch.Tensor, colour) -> Image.Image:
    """Black ink (H, W) on paper that is the more coloured the larger its share (H, W), 0..1.

    In eight steps, so that a picture stays a small file."""
    share = (8 * share).round()[..., None] / 8
    paper = 1 - share * (1 - torch.tensor(colour))
    pixels = paper * (1 - (4 * ink).round()[..., None] / 4)
    return Image.fromarray((255 * pixels).byte().numpy())


def bytes_picture(text: bytes, share: torch.Tensor) -> Image.Image:
    """A row of glyphs, each on its own share (T,) of colour."""
    ink = rearrange(glyphs((16, 8))[list(text)], "T h w -> h (T w)")
    row = tinted(ink, repeat(share, "T -> h (T w)", h=16, w=8), TEXT)
    return row.resize((GLYPH[0] * len(text), GLYPH[1]))


def share_of_pixels(share: torch.Tensor, ink: torch.Tensor, config: Config) -> torch.Tensor:
    """What each token of a sketch has, (m,), on all pixels of its patches, (H, W) as `ink`."""
    share = share.repeat_interleave(config.merge)
    share = share.view(ink.shape[0] // PATCH, ink.shape[1] // PATCH)
    return repeat(share, "row col -> (row h) (col w)", h=PATCH, w=PATCH)


def sketch_picture(chunk: torch.Tensor, share: torch.Tensor, config: Config, zoom: int):
    """A sketch of (n,) bytes, the patches of each token on its share (m,) of colour, framed."""
    ink = render(chunk, config.cell)
    sketch = enlarge(tinted(ink, share_of_pixels(share, ink, config), SKETCH), zoom)
    ImageDraw.Draw(sketch).rectangle((0, 0, sketch.width - 1, sketch.height - 1), outline="gray")
    return sketch


def most_seen(seen: list[Moment], m: int) -> tuple[float, float]:
    """The largest share that one sketch token has at any of some moments, and that one byte has."""
    parts = [parts for moment in seen for _, parts in moment.shares(m)]
    sketches, _, on_bytes = (torch.cat(part) for part in zip(*parts, strict=True))
    return tuple(max(part.tolist(), default=0) or 1 for part in (sketches, on_bytes))


def moment_picture(
    moment: Moment, config: Config, slots: int, most: tuple[float, float]
) -> Image.Image:
    """A strip for each half of the layers: the sketches of the past, token by token the more
    orange the more they are looked at, and the newest bytes of the open chunk, in blue on a scale
    of their own. Below, both scales and what is likely to come.

    slots: sketches there is room for. most: the shares that the deepest orange and blue stand for.
    """
    m = config.sketch_tokens
    columns, zoom = min(slots, 7), 2 if slots > 4 else 3
    _, height, width = render(moment.finished, config.cell).shape
    height, width = zoom * height + GAP, zoom * width + GAP
    strip = LINE + -(-slots // columns) * height + GLYPH[1] + 2 * GAP
    halves = list(moment.shares(m))
    page = Image.new("RGB", (WIDTH, strip * len(halves) + 6 * LINE), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)

    def say(x: float, y: float, words: str) -> None:
        draw.text((x, y), words, fill="black", font=font)

    for number, (layers, (on_sketches, start, on_bytes)) in enumerate(halves):
        top = number * strip
        words = f"layers {layers[0] + 1} to {layers[-1] + 1}:  attention, mean of layers and heads,"
        words += f" {on_sketches.sum():.0%} on sketches, {start.item():.0%} on START,"
        say(4, top + 4, f"{words} {on_bytes.sum():.0%} on the bytes below")
        for i, seen in enumerate(on_sketches.view(-1, m)):
            corner = 4 + i % columns * width, top + LINE + i // columns * height
            page.paste(sketch_picture(moment.finished[i], seen / most[0], config, zoom), corner)
        newest = moment.open[-64:]
        x, y = 4 + GLYPH[0] * len(newest), top + strip - GLYPH[1] - GAP
        if newest:
            page.paste(bytes_picture(newest, on_bytes[-64:] / most[1]), (4, y))
        draw.rectangle((x, y, x + GLYPH[0] - 1, y + GLYPH[1] - 1), outline="black", width=2)
    top = strip * len(halves)
    scale = torch.arange(9).repeat_interleave(GLYPH[0]).expand(16, -1) / 8
    legend = (4, WIDTH // 2), (SKETCH, TEXT), most, ("token", "byte")
    for x, colour, share, what in zip(*legend, strict=True):
        page.paste(tinted(torch.zeros_like(scale), scale, colour), (x, top + 1))
        say(x + 9 * GLYPH[0] + 8, top, f"0 to {share:.1%} of attention on one {what}")
    top += LINE
    say(4, top, f"The byte to come (the empty box).  {moment.caption}")
    for number, byte in enumerate(moment.probabilities.topk(4).indices.tolist()):
        y, share = top + (number + 1) * LINE, moment.probabilities[byte].item()
        page.paste(bytes_picture(bytes([byte]), torch.zeros(1)), (4, y))
        draw.rectangle((24, y + 4, 24 + 300 * share, y + 19), fill="gray")
        say(30 + 300 * share, y + 3, f"{share:.1%}" + " space" * (byte == ord(" ")))
    return page


# ------------------------------------------------------------------- of figures' command line


def open_sketch_model(given: str | None, device="cpu") -> tuple[Vist2, dict]:
    """`open_model` for what looks at sketches. Raises UserError for another history."""
    model, info = open_model(given, device)
    if info["history"] != "sketch":
        trained = f"{info['path']} was trained under {info['history']!r}"
        raise UserError(f"{trained}, expected 'sketch'")
    return model, info


def draw_moments(seen: list[Moment], config: Config, out: str) -> None:
    """The last of some moments, or, as .gif, all of them on one scale, with a rest after the last
    of each caption."""
    slots = max(1, *(len(moment.finished) for moment in seen))
    moving = out.lower().endswith(".gif")
    most = most_seen(seen, config.sketch_tokens)
    shown = seen if moving else seen[-1:]
    pages = [moment_picture(moment, config, slots, most) for moment in shown]
    film = Image.fromarray(np.concatenate([np.array(page) for page in pages]))
    colours = film.quantize(128)  # the same for all, so that a frame stores only what changes
    first, *rest = (page.quantize(palette=colours, dither=Image.Dither.NONE) for page in pages)
    captions = [*(moment.caption for moment in seen), None]
    times = [600 if one == other else 2400 for one, other in itertools.pairwise(captions)]
    more = dict(save_all=True, append_images=rest, duration=times, loop=0) if moving else {}
    first.save(out, **more)


def trace(args: argparse.Namespace) -> None:
    """What a model has before the last of --bytes is written; as .gif, before each of them."""
    check_range("--bytes", args.bytes, 1, 2**16)
    model, info = open_sketch_model(args.checkpoint)
    n = model.config.chunk
    if args.ask is None:
        prompt, chunks = fit_prompt(read_file(args.file), model.config.chunks, model.config, info)
        seen = list(moments(model, prompt, args.bytes, chunks * n))
    else:
        context = fit_context(read_file(args.file), info, args.file)
        prompt = question_prompt(context, os.fsencode(args.ask))
        capacity = len(prompt) + args.bytes + 2 * n  # nothing is dropped
        seen = list(moments(model, prompt, args.bytes, capacity, STOP))
    draw_moments(seen, model.config, args.out)
    written = bytes(moment.likeliest for moment in seen)
    print(f"written: {one_line(written.removesuffix(bytes([STOP])))}")


def far_names(corpus: Corpus, n: int) -> Iterator[tuple[bytes, int, int, int]]:
    """(window, start, end, chunks back) of the names that `name` draws, each once."""
    drawn, training = set(), bytes(corpus.train.bytes.numpy())
    for window in map(bytes, corpus.held_out.windows().tolist()):
        for start, end, back, new in name_places(window, n, training):
            if back >= 4 and new and window[start:end] not in drawn:
                drawn.add(window[start:end])
                yield window, start, end, back


def name(args: argparse.Namespace) -> None:
    """What a model has while it completes names after three letters, before each letter and after
    the last: the first three names of held-out text that stand nowhere in training's and that stood
    four chunks before or more."""
    model, info = open_sketch_model(args.checkpoint)
    n, seen = model.config.chunk, []
    corpus = load_test_corpus(model, info, args.data)
    for text, start, end, back in itertools.islice(far_names(corpus, n), 3):
        given, capacity = start + BEGUN, len(text) + 2 * n  # nothing is dropped
        found = list(moments(model, text[:given], end - given + 1, capacity))
        written = text[start:given] + bytes(moment.likeliest for moment in found[:-1])
        whole = text[start:end].decode()
        print(f"{whole}, {back} chunks before: written {one_line(written)}")
        caption = f"The text: {whole}, last seen {back} chunks before. Written: {one_line(written)}"
        seen += [replace(moment, caption=caption) for moment in found]
    if not seen:
        raise UserError(f"no new name stood four chunks before in held-out files of {corpus.name}")
    draw_moments(seen, model.config, args.out)
