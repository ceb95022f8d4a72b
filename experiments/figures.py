"""Pictures of all of it, one command each, from the real model, mask and cache.

    python -m experiments.figures trace FILE

    trace FILE                    where the model looks, while it writes on
    trace FILE --ask QUESTION     ... and while it answers
    name                          ... and while it completes names from far back in real text
    mask                          who sees whom
    cache                         what is held while a text grows
    cells FILE                    64 bytes at each ratio
    position CHECKPOINT ...       loss by position in the chunk
    reading LOG ...               reading and recall over training
    costs FILE                    what bench --json has measured
    rivals FILE                   what compare --json has: gap closed
    ratios FILE                   ... and by bytes a memory token
    sweep FILE                    what sweep --json has: fewer tokens or more parameters

Each writes NAME.png into the current folder, or --out. Pillow draws what is made of pixels; the
rest takes matplotlib, which nothing else here needs (pip install matplotlib).
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont

from cache import Session
from common import load_checkpoint, open_model
from console import UserError, check_range, check_writable, command_line, one_line, read_file
from data import Corpus
from evaluate import bits_by_position, bits_of, held_out_windows
from experiments.bench import SIDES
from experiments.compare import GAPS
from experiments.kinds import BEGUN, name_places
from experiments.report import load_test_corpus
from experiments.rivals import REFERENCES
from generate import CHECKPOINT, as_row, fit_context, fit_prompt, write
from mask import Layout, make_layout, may_attend
from questions import STOP, question_prompt
from render import CELLS, PATCH, cell_name, enlarge, glyphs, patches_per_chunk, render
from vist2 import Config, Vist2

TEXT, SKETCH = (0.40, 0.65, 0.90), (1.00, 0.62, 0.15)  # red, green, blue of what is looked at
WIDTH = 960  # pixels of a picture
GAP, LINE = 8, 26  # pixels between sketches, and of a line of words
COLOURS = {"full": "C0", "sketch": "C1", "prompt": "C2", "none": "C7"}  # of lines
GLYPH = (12, 24)  # pixels, width and height, of a byte of the open chunk


# ---------------------------------------------------------------------- where the model looks


class Watched(Session):
    """A session that keeps what came of its last input: `logits`, and where it looked, `seen`, a
    (entries,) tensor a layer, the mean over heads of what the softmax gives to each entry of the
    cache."""

    def _feed(self, *inputs, **how):
        self.seen: list[torch.Tensor] = []
        self.logits = super()._feed(*inputs, **how)
        return self.logits

    def attend(self, layer, mask, previous, newest, q, k, v):
        attended = super().attend(layer, mask, previous, newest, q, k, v)
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
        say(30 + 300 * share, y + 3, f"{share:.1%}")
    return page


def open_sketch_model(given: str | None, device="cpu") -> tuple[Vist2, dict]:
    """`open_model` for what looks at sketches. Raises UserError for another history."""
    model, info = open_model(given, CHECKPOINT, device)
    if info["history"] != "sketch":
        trained = f"{info['path']} was trained under {info['history']!r}"
        raise UserError(f"{trained}, expected 'sketch'")
    return model, info


def draw_moments(seen: list[Moment], config: Config, out: str) -> None:
    """The last of some moments, or, as .gif, all of them on one scale."""
    slots = max(1, *(len(moment.finished) for moment in seen))
    moving = out.lower().endswith(".gif")
    most = most_seen(seen, config.sketch_tokens)
    shown = seen if moving else seen[-1:]
    pages = [moment_picture(moment, config, slots, most) for moment in shown]
    film = Image.fromarray(np.concatenate([np.array(page) for page in pages]))
    colours = film.quantize(128)  # the same for all, so that a frame stores only what changes
    first, *rest = (page.quantize(palette=colours, dither=Image.Dither.NONE) for page in pages)
    more = dict(save_all=True, append_images=rest, duration=600, loop=0) if moving else {}
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
        caption = f"The text: {whole}, last seen {back} chunks before"
        seen += [replace(moment, caption=caption) for moment in found]
    if not seen:
        raise UserError(f"no new name stood four chunks before in held-out files of {corpus.name}")
    draw_moments(seen, model.config, args.out)


# ------------------------------------------------------------------------- what needs no model


def cells(args: argparse.Namespace) -> None:
    """The first chunk of 64 bytes of a text, at each cell, with the grid of its patches."""
    text = (read_file(args.file, first=64) + b" " * 64)[:64]
    page = Image.new("RGB", (WIDTH, 22 + 3 * 128 + 6), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=13)
    for column, cell in enumerate(CELLS):
        ink = render(torch.tensor(list(text)), cell)
        sketch = enlarge(tinted(ink, torch.zeros_like(ink), SKETCH), 3)
        x, y, step = 4 + column * (WIDTH // 4), 22, 3 * PATCH
        page.paste(sketch, (x, y))
        for a in range(0, sketch.width + 1, step):
            draw.line((x + a, y, x + a, y + sketch.height), fill="orange")
        for b in range(0, sketch.height + 1, step):
            draw.line((x, y + b, x + sketch.width, y + b), fill="orange")
        m = patches_per_chunk(64, cell)
        caption = f"{cell_name(cell)}: {64 // m}x, {m} patches"
        draw.text((x, 3), caption, fill="black", font=font)
    page.quantize(32).save(args.out, optimize=True)


def new_figure(rows: int = 1, columns: int = 1, size=(8, 4.4)):
    """(figure, axes) of matplotlib. Raises UserError where that is missing."""
    try:
        import matplotlib
    except ImportError:
        missing = "this picture needs matplotlib, which is not there: pip install matplotlib"
        raise UserError(missing) from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained")


def save_figure(figure, path: str) -> None:
    """Each legend stands beside its chart, so that it hides nothing."""
    for axis in figure.axes:
        if axis.get_legend_handles_labels()[1]:
            axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=100)


def mask(args: argparse.Namespace) -> None:
    """Four chunks of four bytes and one sketch token each, under three histories; of the prompt's
    two chunks "prompt" keeps sketches."""
    N, n, m = 4, 4, 1
    figure, axes = new_figure(1, 3, (12, 4.4))
    titles = "full: nothing is compressed", "prompt: what is read", "sketch: what is written, too"
    for axis, S, title in zip(axes, (0, 2, N - 1), titles, strict=True):
        layout = make_layout(N, n, m, S)
        seen = may_attend(Layout(*(field[:, None] for field in layout)), layout)[..., None]
        colours = torch.tensor([TEXT, SKETCH])[layout.is_sketch.int()]
        axis.imshow(torch.where(seen, colours, 1.0).numpy())
        begins: dict[str, int] = {}
        for index, _, chunk, is_sketch in torch.stack(layout).T.tolist():
            last = f"chunks {chunk} to {N - 1}" if chunk < N - 1 else f"chunk {chunk}"
            name = f"sketch {chunk}" if is_sketch else f"chunk {chunk}" if chunk < S else last
            begins.setdefault(name, index)
        edges = [*begins.values(), len(layout.index)]
        middles = [(a + b - 1) / 2 for a, b in pairwise(edges)]
        axis.set_yticks(middles, begins)
        axis.set_xticks(middles, begins, rotation=90)
        for edge in edges[1:-1]:
            for line in (axis.axhline, axis.axvline):
                line(edge - 0.5, color="0.6", linewidth=0.6)
        axis.set(title=title)
    axes[0].set_ylabel("who looks (one input a row)")
    axes[1].set_xlabel("at what: text blue, a sketch token orange")
    save_figure(figure, args.out)


def cache(args: argparse.Namespace) -> None:
    """Entries held after each of 512 bytes, as a session reports them; weights do not matter."""
    config = Config(layers=1)
    model, prompt, total = Vist2(config).eval(), 4 * config.chunk, 8 * config.chunk
    figure, axis = new_figure()
    for history, begin in (("full", 0), ("prompt", prompt), ("sketch", 0)):
        colour = COLOURS[history]
        session = Session(model, 1, history, total + config.chunk)
        session.prefill(torch.zeros(1, begin, dtype=torch.long))
        entries, sketches = [session.cache_entries], [0]
        for _ in range(begin, total):
            session.step(torch.zeros(1, dtype=torch.long))
            entries.append(session.cache_entries)
            sketches.append(session.mark)
        grown = range(begin, total + 1)
        axis.plot(grown, entries, color=colour, label=history)
        if history == "sketch":
            axis.fill_between(grown, sketches, color=colour, alpha=0.5, label="its sketch tokens")
            axis.fill_between(grown, sketches, entries, color=colour, alpha=0.15, label="its text")
    axis.axvline(prompt, color="0.5", linestyle=":")
    axis.text(prompt, total, " up to here `prompt` has read", color="0.3", va="top")
    axis.set(xlabel="bytes of text", ylabel="entries in the cache of a layer")
    axis.set(title="the sawtooth is the open chunk, the stairs are sketches")
    save_figure(figure, args.out)


# ------------------------------------------------------------------------- what was measured


def position(args: argparse.Namespace) -> None:
    """Bits at each position in a chunk, over the later chunks of every held-out window."""
    figure, axis = new_figure()
    alike = Counter()  # of a history: its colour, and a mark for each
    for path in args.checkpoints:
        model, info = load_checkpoint(path)
        corpus = load_test_corpus(model, info | {"path": path}, args.data, refuse=True)
        history = info["history"]
        bits = bits_of(model, held_out_windows(model, corpus), history)
        mark = ".x+v^s"[alike[history] % 6]
        alike[history] += 1
        axis.plot(bits_by_position(bits), f"{mark}-", color=COLOURS[history], label=path)
    axis.set(xlabel="position in the chunk, bytes", ylabel="bits per byte, held-out text", ylim=0)
    axis.set(title="a chunk's edge: what the past tells about the first bytes")
    save_figure(figure, args.out)


def take(row, field: str, kind: Callable = float):
    """A field of what JSON has, as some kind. Raises UserError where it is missing or another."""
    try:
        return kind(row[field])
    except (KeyError, OverflowError, TypeError, ValueError):
        raise UserError(f"{field!r} is missing or wrong") from None


@contextlib.contextmanager
def expect(what: str, source: str):
    """Raises UserError, which names the source and what is wrong there, for any ValueError."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{source}: {error}, expected {what}") from None


LOGGED = {  # of a line of log.jsonl, or of what it has for held-out files: what is drawn
    "accuracy": "training batches",
    "reading noise": "random bytes read",
    "reading text": "held-out text read",
    "recall 1": "recall at one chunk",
    "recall 8": "recall at eight chunks",
}


def reading(args: argparse.Namespace) -> None:
    """Reading in training batches and on held-out files, and recall, as logs have them."""
    points: dict[str, list[tuple[int, float]]] = {}
    stages: dict[tuple[str, str], int] = {}
    begun = step = 0
    for path in args.logs:
        for number, text in enumerate(read_file(path).splitlines(), start=1):
            with expect("a log.jsonl of train.py", f"{path}, line {number}"):
                line = json.loads(text)
                step, stage = begun + take(line, "step", int), take(line, "stage", str)
                line |= take({"held out": {}} | line, "held out", dict)
                shares = {name: take(line, key) for key, name in LOGGED.items() if key in line}
            stages.setdefault((path, stage), step)
            for name, share in shares.items():
                points.setdefault(name, []).append((step, share))
        begun = step
    if not points:
        raise UserError(f"{' '.join(args.logs)}: no reading there, expected logs of `sketch`")
    figure, axis = new_figure()
    for name, found in points.items():
        style = dict(color="0.85", linewidth=0.5, zorder=0) if name == "training batches" else {}
        axis.plot(*zip(*found, strict=True), "-" if style else ".-", label=name, **style)
    for (_, name), step in stages.items():
        axis.axvline(step, color="0.5", linestyle=":")
        axis.text(step, 0.02, f" {name}", rotation=90, color="0.3", va="bottom")
    axis.set(xlabel="steps", ylabel="share of bytes read right; of questions answered")
    save_figure(figure, args.out)


def costs(args: argparse.Namespace) -> None:
    """Reading, writing, the cache while writing, and training, as bench has measured them."""
    panels = (
        ("time to the first byte, ms", "reading", " ms", SIDES),
        ("writing, bytes a second", "writing", " B/s", SIDES),
        ("cache entries while writing", "writing", " entries", SIDES),
        ("training, bytes a second", "training", " B/s", ("full", "sketch")),
    )
    content = read_file(args.file)
    with expect("what bench --json writes", args.file):
        tables = take(json.loads(content), "tables", dict)

        def column(name: str, field: str) -> list[float]:
            return [take(row, field) for row in take(tables, name, list)]

        curves = [
            {side: (column(name, "bytes"), column(name, side + unit)) for side in sides}
            for _, name, unit, sides in panels
        ]
    figure, axes = new_figure(2, 2, (10, 7))
    for axis, sides, (title, name, _, _) in zip(axes.flat, curves, panels, strict=True):
        for side, (lengths, values) in sides.items():
            mark, order = ("x--", 3) if side == "prompt" else (".-", 2)  # or `sketch` hides it
            axis.plot(lengths, values, mark, color=COLOURS[side], label=side, zorder=order)
        axis.set(title=title, xlabel="bytes of text")
        if name != "writing":
            axis.set_xscale("log", base=2)
        if name == "reading":
            axis.set_yscale("log")
    save_figure(figure, args.out)


def read_scores(path: str) -> list[dict]:
    """Of each run of compare what is drawn. Raises UserError."""
    content = read_file(path)
    with expect("what compare --json writes", path):
        return [
            {"rival": take(run, "rival", str), "seed": take(run, "seed", int)}
            | {"ratio": take(run, "ratio"), "bpb": take(run, "bpb")}
            | {"by position": take(run, "by position", as_numbers)}
            | {k: take(run, k) for k in run if k == "reading noise" or k in GAPS}
            for run in take(json.loads(content), "runs", list)
        ]


def as_numbers(values) -> list[float]:
    return list(map(float, values))


def colours_of(names) -> dict[str, str]:
    """COLOURS, and others for what has none there."""
    others = itertools.cycle(f"C{index}" for index in (3, 4, 5, 6, 8, 9))
    return {name: COLOURS.get(name) or next(others) for name in names}


def rivals(args: argparse.Namespace) -> None:
    """The gap that each rival closes at 4x, one point a seed, and its loss by position."""
    scores = [s for s in read_scores(args.file) if s["ratio"] == 4]
    if not scores:
        raise UserError(f"{args.file} has no run at 4x")
    names = list(dict.fromkeys(s["rival"] for s in scores))
    figure, (gaps, chunk) = new_figure(1, 2, (13, 5))
    for number, gap in enumerate(GAPS):
        found = [s for s in scores if gap in s]
        x = [names.index(s["rival"]) + (number - 1) / 4 + s["seed"] / 20 for s in found]
        label = GAPS[gap].replace("bpb", "all positions")
        gaps.plot(x, [s[gap] for s in found], "o", markersize=4, label=label)
    gaps.set(title="gap closed at 4x, one point a seed", ylabel="gap closed, %")
    gaps.set_xticks(range(len(names)), names, rotation=30)
    for name, colour in colours_of(names).items():
        curves = [s["by position"] for s in scores if s["rival"] == name]
        means = [statistics.mean(bits) for bits in zip(*curves, strict=False)]
        chunk.plot(means, ".-", color=colour, label=name)
    chunk.set(title="loss in a chunk at 4x", xlabel="position, bytes", ylabel="bits per byte")
    save_figure(figure, args.out)


def ratios(args: argparse.Namespace) -> None:
    """Loss and reading of each rival by ratio; `none` and `full` are level lines."""
    scores = read_scores(args.file)
    figure, axes = new_figure(1, 2, (13, 5))
    panels = (
        ("bpb", "held-out text", "bits per byte"),
        ("reading noise", "random bytes read", "share"),
    )
    for axis, (field, title, unit) in zip(axes, panels, strict=True):
        for name, colour in colours_of(dict.fromkeys(s["rival"] for s in scores)).items():
            found = [s for s in scores if s["rival"] == name and field in s]
            if name in REFERENCES:
                found = [s | {"ratio": other["ratio"]} for s in found for other in scores]
            x = sorted({s["ratio"] for s in found})
            y = [statistics.mean(s[field] for s in found if s["ratio"] == r) for r in x]
            if x:
                axis.plot(x, y, ".-", color=colour, label=name)
        axis.set(title=title, xlabel="bytes a memory token", ylabel=unit)
        axis.set_xscale("log", base=2)
    save_figure(figure, args.out)


def sweep(args: argparse.Namespace) -> None:
    """Loss and recall by ratio; a line for each cost of reading, at which decoders are as wide as
    fits."""
    content = read_file(args.file)
    with expect("what sweep --json writes", args.file):
        rows = take(json.loads(content), "rows", list)
        points = [
            [take(row, field) for field in ("GFLOP at most", "ratio", "bpb", "recall 8")]
            for row in rows
        ]
    figure, axes = new_figure(1, 2, (13, 5))
    for column, axis in zip((2, 3), axes, strict=True):
        for cost in dict.fromkeys(point[0] for point in points):
            line = [(point[1], point[column]) for point in points if point[0] == cost]
            axis.plot(*zip(*line, strict=True), ".-", label=f"{cost:g} GFLOP a prompt")
        axis.set(xlabel="bytes a memory token")
        axis.set_xscale("log", base=2)
    axes[0].set(title="held-out text", ylabel="bits per byte")
    axes[1].set(title="recall at eight chunks", ylabel="share of values right")
    save_figure(figure, args.out)


# ------------------------------------------------------------------------------ command line


def check_picture(path: str, endings: tuple[str, ...]) -> None:
    """Raises UserError for a file that cannot be written, or not as a picture."""
    check_writable(path)
    if Path(path).suffix.lower() not in endings:
        raise UserError(f"--out is {path}, expected a name that ends in {' or '.join(endings)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures",
        description="Draw what the README shows, from the real model, mask and cache.",
    )
    pictures = parser.add_subparsers(required=True, metavar="PICTURE")

    def picture(draw, about: str, endings=(".png",)):
        name = draw.__name__
        sub = pictures.add_parser(name, help=about, description=draw.__doc__)
        sub.set_defaults(draw=draw, endings=endings)
        about = f"where it goes, {' or '.join(endings)} (%(default)s)"
        sub.add_argument("--out", default=f"{name}{endings[0]}", help=about)
        return sub.add_argument

    about = "where the model looks while it writes; .png, or .gif to see it move"
    add = picture(trace, about, (".png", ".gif"))
    add("file", help="the text before, - for standard input")
    add("--ask", metavar="QUESTION", help="a question about the text, to be answered")
    add("--bytes", type=int, default=1, help="to write (%(default)s)")
    add("--checkpoint", help="what train.py wrote; default as in generate.py")
    add = picture(name, "where it looks for names from far back", (".gif",))
    add("--data", metavar="PATH", help="what it was trained on, as in train.py")
    add("--checkpoint", help="what train.py wrote; default as in generate.py")
    picture(mask, "who sees whom under three histories")
    picture(cache, "what the cache holds while a text grows")
    picture(cells, "64 bytes at each ratio")("file", help="any text, - for standard input")
    add = picture(position, "loss by position in the chunk; takes a training for each curve")
    trained = "what train.py wrote, under any history; train.py --history none, say, comes first"
    add("checkpoints", nargs="+", help=trained)
    add("--data", metavar="PATH", help="what they were trained on, as in train.py")
    add = picture(reading, "reading and recall over training")
    add("logs", nargs="+", help="log.jsonl of one run, or of runs in a row")
    measured = {costs: "bench", rivals: "compare", ratios: "compare", sweep: "sweep"}
    for draw, program in measured.items():
        add = picture(draw, f"what {program} has measured")
        add("file", help=f"what {program} --json has written")
    args = parser.parse_args(argv)
    with command_line("figures.py", "--bytes"):
        check_picture(args.out, args.endings)
        args.draw(args)
        print(one_line(args.out))


if __name__ == "__main__":
    main()
