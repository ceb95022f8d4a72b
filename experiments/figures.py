"""Pictures of all of it, one command each, from the real model, mask and cache.

    python -m experiments.figures trace FILE            where the model looks, while it writes on
                                  trace FILE --ask QUESTION     ... and while it answers
                                  mask                  who sees whom
                                  cache                 what is held while a text grows
                                  cells FILE            64 bytes at each ratio
                                  position CHECKPOINT ...       loss by position in the chunk
                                  reading LOG ...       reading and recall over training
                                  costs FILE            what bench --json has measured
                                  rivals FILE           what compare --json has: gap closed
                                  ratios FILE           ... and by bytes a memory token

Each writes NAME.png into the current folder, or --out. Pillow draws what is made of pixels; the
rest takes matplotlib, which nothing else here needs (pip install matplotlib).
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont

from cache import Session
from common import load_checkpoint, open_model
from console import UserError, check_range, check_writable, command_line, one_line, read_file
from data import STOP, load_corpus, question_prompt
from evaluate import bits_by_position, held_out_bits
from experiments.bench import SIDES
from generate import (
    ANSWERS,
    CHECKPOINT,
    as_rows,
    fit_prompt,
    read_context,
    select_lines,
    write,
)
from mask import Layout, make_layout, may_attend
from render import CELLS, PATCH, enlarge, glyphs, patches_per_chunk, render
from vist2 import Config, Vist2

REFERENCES = ("none", "full")  # they have no ratio
TEXT, SKETCH = (0.40, 0.65, 0.90), (1.00, 0.62, 0.15)  # red, green, blue of what is looked at
WIDTH = 816  # pixels of a picture
GAP, LINE = 8, 26  # pixels between sketches, and of a line of words
COLOURS = {"full": "C0", "sketch": "C1", "prompt": "C2"}  # of lines
GLYPH = (12, 24)  # pixels, width and height, of a byte of the open chunk


# ---------------------------------------------------------------------- where the model looks


class Watched(Session):
    """A session that keeps what came of its last input: `logits`, and where it looked, `seen`, a
    (entries,) tensor a layer, the mean over heads of what the softmax gives to each entry of the
    cache."""

    def _feed(self, x, positions):
        self.seen: list[torch.Tensor] = []
        self.logits = super()._feed(x, positions)
        return self.logits

    def attend(self, layer, mask, q, k, v):
        attended = super().attend(layer, mask, q, k, v)
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

    @property
    def likeliest(self) -> int:
        return self.probabilities.argmax().item()


def moments(
    model: Vist2, prompt: bytes, count: int, capacity: int, stop: int | None = None
) -> Iterator[Moment]:
    """The next `count` bytes, the likeliest each time, up to `stop`."""
    n = model.config.chunk
    session = Watched(model, 1, "sketch", capacity)
    session.prefill(as_rows(prompt))
    for new in write(session, session.logits, count):
        text = session.text[0, : session.count].clone()
        finished, rest = text.split([session.sketched * n, len(text) - session.sketched * n])
        yield Moment(
            finished.view(session.sketched, n),
            bytes(rest.tolist()),
            session.seen,
            session.logits[0].softmax(-1),
        )
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


def sketch_picture(chunk: torch.Tensor, share: torch.Tensor, config: Config, zoom: int):
    """A sketch of (n,) bytes, each patch on its own share (m,) of colour, framed."""
    ink = render(chunk, config.cell)
    share = share.view(ink.shape[0] // PATCH, ink.shape[1] // PATCH)
    share = repeat(share, "row col -> (row h) (col w)", h=PATCH, w=PATCH)
    sketch = enlarge(tinted(ink, share, SKETCH), zoom)
    ImageDraw.Draw(sketch).rectangle((0, 0, sketch.width - 1, sketch.height - 1), outline="gray")
    return sketch


def moment_picture(moment: Moment, config: Config, slots: int) -> Image.Image:
    """A strip for each half of the layers: the sketches of the past, patch by patch the more
    orange the more they are looked at, and the newest bytes of the open chunk, in blue on a scale
    of their own. Below, what is likely to come.

    slots: sketches there is room for.
    """
    S, m = len(moment.finished), config.sketch_tokens
    columns, zoom = min(slots, 6), 2 if slots > 4 else 3
    _, height, width = render(moment.finished, config.cell).shape
    height, width = zoom * height + GAP, zoom * width + GAP
    strip = LINE + -(-slots // 6) * height + GLYPH[1] + 2 * GAP
    layers = range(len(moment.seen))
    halves = [part for part in (layers[: len(layers) // 2], layers[len(layers) // 2 :]) if part]
    page = Image.new("RGB", (WIDTH, strip * len(halves) + 5 * LINE), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)

    def say(x: float, y: float, words: str) -> None:
        draw.text((x, y), words, fill="black", font=font)

    shares = [torch.stack([moment.seen[layer] for layer in half]).mean(0) for half in halves]
    deepest = max((share[: S * m].max().item() for share in shares if S), default=0.0)
    for number, (half, share) in enumerate(zip(halves, shares)):
        top = number * strip
        on_sketches, start, on_bytes = share.split([S * m, 1, len(moment.open)])
        say(
            4,
            top + 4,
            f"layers {half[0] + 1} to {half[-1] + 1}:  {on_sketches.sum():.0%} of attention on "
            f"sketches, {start.item():.0%} on START, {on_bytes.sum():.0%} on the bytes below",
        )
        for i, (chunk, seen) in enumerate(zip(moment.finished, on_sketches.view(S, m))):
            corner = 4 + i % columns * width, top + LINE + i // columns * height
            page.paste(sketch_picture(chunk, seen / deepest, config, zoom), corner)
        newest = moment.open[-64:]
        x, y = 4 + GLYPH[0] * len(newest), top + strip - GLYPH[1] - GAP
        if newest:
            page.paste(bytes_picture(newest, on_bytes[-64:] / on_bytes.max()), (4, y))
        draw.rectangle((x, y, x + GLYPH[0] - 1, y + GLYPH[1] - 1), outline="black", width=2)
    top = strip * len(halves)
    say(4, top, f"deepest orange: {deepest:.1%} on one patch.  The byte to come (the empty box):")
    likely = moment.probabilities.topk(4)
    for number, (share, byte) in enumerate(zip(likely.values.tolist(), likely.indices.tolist())):
        y = top + (number + 1) * LINE
        page.paste(bytes_picture(bytes([byte]), torch.zeros(1)), (4, y))
        draw.rectangle((24, y + 4, 24 + 300 * share, y + 19), fill="gray")
        say(30 + 300 * share, y + 3, f"{share:.1%}")
    return page


def trace(args: argparse.Namespace) -> None:
    """What a model has before the last of --bytes is written; as .gif, before each of them."""
    check_range("--bytes", args.bytes, 1, 2**16)
    model, info = open_model(args.checkpoint, CHECKPOINT if args.ask is None else ANSWERS)
    if info["history"] != "sketch":
        trained = f"{info['path']} was trained under {info['history']!r}"
        raise UserError(f"{trained}, expected 'sketch'")
    n = model.config.chunk
    if args.ask is None:
        _, text = select_lines(read_file(args.file), args.lines)
        prompt, chunks = fit_prompt(text, None, model.config)
        seen = list(moments(model, prompt, args.bytes, chunks * n))
    else:
        context = read_context(args.file, args.lines, info)
        prompt = question_prompt(context, os.fsencode(args.ask))
        capacity = len(prompt) + args.bytes + 2 * n  # nothing is dropped
        seen = list(moments(model, prompt, args.bytes, capacity, STOP))
    slots = max(1, *(len(moment.finished) for moment in seen))
    moving = args.out.lower().endswith(".gif")
    pages = [
        moment_picture(moment, model.config, slots) for moment in (seen if moving else seen[-1:])
    ]
    film = Image.fromarray(np.concatenate([np.array(page) for page in pages]))
    colours = film.quantize(48)  # the same for all, so that a frame stores only what changes
    first, *rest = (page.quantize(palette=colours, dither=Image.Dither.NONE) for page in pages)
    more = dict(save_all=True, append_images=rest, duration=400, loop=0) if moving else {}
    first.save(args.out, **more)
    print(f"written: {one_line(bytes(moment.likeliest for moment in seen))}")


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
        caption = f"{cell[0]}x{cell[1]}: {64 // m}x, {m} patches"
        draw.text((x, 3), caption, fill="black", font=font)
    page.quantize(32).save(args.out, optimize=True)


def find_pyplot():
    """Raises UserError where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "this picture needs matplotlib, which is not there: pip install matplotlib"
        ) from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def mask(args: argparse.Namespace) -> None:
    """Four chunks of four bytes and one sketch token each, under three histories; of the prompt's
    two chunks "prompt" keeps sketches."""
    N, n, m = 4, 4, 1
    figure, axes = find_pyplot().subplots(1, 3, figsize=(12, 4.4), layout="constrained")
    titles = (
        ("full: a plain GPT", 0),
        ("prompt: compress what is read", 2),
        ("sketch: VIST2, and what is written", 3),
    )
    for axis, (title, S) in zip(axes, titles):
        layout = make_layout(N, n, m, S)
        seen = may_attend(Layout(*(field[:, None] for field in layout)), layout)[..., None]
        kinds = layout.is_sketch[:, None]
        colours = torch.where(kinds, torch.tensor(SKETCH), torch.tensor(TEXT))
        axis.imshow(torch.where(seen, colours, torch.tensor(1.0)).numpy())
        names, ends = [], []
        for index, chunk, is_sketch in zip(layout.index, layout.chunk, layout.is_sketch):
            last = f"chunks {chunk} to {N - 1}" if chunk < N - 1 else f"chunk {chunk}"
            name = f"sketch {chunk}" if is_sketch else f"chunk {chunk}" if chunk < S else last
            if name not in names:
                names.append(name)
                ends.append(index.item())
        ends.append(len(layout.index))
        middles = [(a + b - 1) / 2 for a, b in zip(ends, ends[1:])]
        axis.set_yticks(middles, names)
        axis.set_xticks(middles, names, rotation=90)
        for end in ends[1:-1]:
            axis.axhline(end - 0.5, color="0.6", linewidth=0.6)
            axis.axvline(end - 0.5, color="0.6", linewidth=0.6)
        axis.set(title=title)
    axes[0].set_ylabel("who looks (one input a row)")
    axes[1].set_xlabel("at what: text blue, a sketch token orange")
    figure.savefig(args.out, dpi=100)


def cache(args: argparse.Namespace) -> None:
    """Entries held after each of 512 bytes, as a session reports them; weights do not matter."""
    config = Config(layers=1)
    model, prompt, total = Vist2(config).eval(), 4 * config.chunk, 8 * config.chunk
    figure, axis = find_pyplot().subplots(figsize=(8, 4.4), layout="constrained")
    for history, begin in (("full", 0), ("prompt", prompt), ("sketch", 0)):
        colour = COLOURS[history]
        session = Session(model, 1, history, total + config.chunk)
        session.prefill(torch.zeros(1, begin, dtype=torch.long))
        entries, sketches = [session.cache_entries], [0]
        for _ in range(begin, total):
            session.step(torch.zeros(1, dtype=torch.long))
            entries.append(session.cache_entries)
            sketches.append(session.sketched * config.sketch_tokens)
        grown = range(begin, total + 1)
        axis.plot(grown, entries, color=colour, label=history)
        if history == "sketch":
            axis.fill_between(grown, sketches, color=colour, alpha=0.5, label="its sketch tokens")
            axis.fill_between(grown, sketches, entries, color=colour, alpha=0.15)
    axis.axvline(prompt, color="0.5", linestyle=":")
    axis.text(prompt, total, " up to here `prompt` has read", color="0.3", va="top")
    axis.set(xlabel="bytes of text", ylabel="entries in the cache of a layer")
    axis.set(title="the sawtooth is the open chunk, the stairs are sketches")
    axis.legend(loc="center left")
    figure.savefig(args.out, dpi=100)


# --------------------------------------------------------------------- what training came to


def position(args: argparse.Namespace) -> None:
    """Bits at each position in a chunk, over the later chunks of every held-out window."""
    pyplot = find_pyplot()
    curves = []
    for path in args.checkpoints:
        model, info = load_checkpoint(path)
        corpus = load_corpus(args.data, model.config.chunks * model.config.chunk)
        if corpus.digest != info["digest"]:
            raise UserError(
                f"{path} was trained on {info['corpus']}, digest {info['digest']}; here is "
                f"{corpus.name}, {corpus.digest}, whose held-out files it may have seen"
            )
        bits = held_out_bits(model, corpus, info["history"])
        curves.append((path, bits_by_position(bits)))
    figure, axis = pyplot.subplots(figsize=(8, 4.4), layout="constrained")
    for name, curve in curves:
        axis.plot(curve, ".-", label=name)
    axis.set(xlabel="position in the chunk, bytes", ylabel="bits per byte, held-out text", ylim=0)
    axis.set(title="a chunk's edge: what the past tells about the first bytes")
    axis.legend()
    figure.savefig(args.out, dpi=100)


def log_lines(path: str) -> list[dict]:
    """Raises UserError for what train.py has not written."""
    written = read_file(path)
    try:
        lines = [json.loads(line) for line in written.splitlines()]
        for line in lines:
            line["step"], line["stage"]  # a KeyError if it is no log's
        return lines
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is no log, expected a log.jsonl of train.py") from None


def reading(args: argparse.Namespace) -> None:
    """Reading in training batches and on held-out files, and recall, as logs have them."""
    pyplot = find_pyplot()
    figure, axis = pyplot.subplots(figsize=(8, 4.4), layout="constrained")
    shown = {
        "reading noise": "random bytes read",
        "reading text": "held-out text read",
        "recall 1": "recall at one chunk",
        "recall 8": "recall at eight chunks",
    }
    points: dict[str, list[tuple[int, float]]] = {}
    begun, step, stages = 0, 0, {}
    for path in args.logs:
        for line in log_lines(path):
            step = begun + line["step"]
            stages.setdefault((path, line["stage"]), step)
            if "accuracy" in line:
                points.setdefault("training batches", []).append((step, line["accuracy"]))
            for name, value in line.get("held out", {}).items():
                if name in shown:
                    points.setdefault(shown[name], []).append((step, value))
        begun = step
    if not points:
        raise UserError(f"{' '.join(args.logs)}: no reading there, expected logs of `sketch`")
    for name, found in points.items():
        style = dict(color="0.85", linewidth=0.5, zorder=0) if name == "training batches" else {}
        axis.plot(*zip(*found), "-" if style else ".-", label=name, **style)
    for (_, name), step in stages.items():
        axis.axvline(step, color="0.5", linestyle=":")
        axis.text(step, 0.02, f" {name}", rotation=90, color="0.3", va="bottom")
    axis.set(xlabel="steps", ylabel="share of bytes read right; of questions answered")
    axis.legend(loc="center left", bbox_to_anchor=(0.14, 0.62))
    figure.savefig(args.out, dpi=100)


# ------------------------------------------------------------------ what bench and compare say


def content_of(path: str, select: Callable):
    """What `select` takes of a file that --json has written. Raises UserError, which names the
    field, where it is missing or of another kind."""
    content = read_file(path)
    try:
        return select(json.loads(content))
    except KeyError as error:
        raise UserError(f"{path} has no {error}, expected what --json has written") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not what --json has written: {error}") from None


def costs(args: argparse.Namespace) -> None:
    """Reading, writing, the cache while writing, and training, as bench has measured them."""
    panels = (
        ("time to the first byte, ms", "reading", " ms", SIDES),
        ("writing, bytes a second", "writing", " B/s", SIDES),
        ("cache entries while writing", "writing", " entries", SIDES),
        ("training, bytes a second", "training", " B/s", ("full", "sketch")),
    )

    def select(content) -> list[dict[str, tuple[list[float], list[float]]]]:
        return [
            {
                side: tuple(
                    [float(row[field]) for row in content["tables"][name]]
                    for field in ("bytes", side + unit)
                )
                for side in sides
            }
            for _, name, unit, sides in panels
        ]

    curves = content_of(args.file, select)
    figure, axes = find_pyplot().subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, sides, (title, name, _, _) in zip(axes.flat, curves, panels, strict=True):
        for side, (lengths, values) in sides.items():
            axis.plot(lengths, values, ".-", color=COLOURS[side], label=side)
        axis.set(title=title, xlabel="bytes of text")
        if name != "writing":
            axis.set_xscale("log", base=2)
        if name == "reading":
            axis.set_yscale("log")
        axis.legend()
    figure.savefig(args.out, dpi=100)


def select_scores(content) -> list[dict]:
    """Of each run of compare what is drawn."""
    return [
        {
            "rival": str(run["rival"]),
            "ratio": float(run["ratio"]),
            "bpb": float(run["bpb"]),
            "by position": [float(bits) for bits in run["by position"]],
        }
        | {k: float(v) for k, v in run.items() if k == "reading noise" or k.startswith("gap")}
        for run in content["runs"]
    ]


def rivals(args: argparse.Namespace) -> None:
    """The gap that each rival closes at 4x, one point a seed, and its loss by position."""
    scores = [s for s in content_of(args.file, select_scores) if s["ratio"] == 4]
    if not scores:
        raise UserError(f"{args.file} has no run at 4x")
    names = list(dict.fromkeys(s["rival"] for s in scores))
    figure, (gaps, chunk) = find_pyplot().subplots(1, 2, figsize=(13, 5), layout="constrained")
    kinds = dict.fromkeys(name for s in scores for name in s if name.startswith("gap"))
    for number, gap in enumerate(kinds):
        points = [
            (names.index(s["rival"]) + (number - 1) / 5, s[gap]) for s in scores if gap in s
        ]
        gaps.plot([x for x, _ in points], [y for _, y in points], ".", label=gap)
    gaps.set(title="gap closed at 4x, one point a seed", ylabel="%")
    gaps.set_xticks(range(len(names)), names, rotation=30)
    gaps.legend()
    for name in names:
        curves = [s["by position"] for s in scores if s["rival"] == name]
        chunk.plot([statistics.mean(values) for values in zip(*curves)], ".-", label=name)
    chunk.set(title="loss in a chunk at 4x", xlabel="position, bytes", ylabel="bits per byte")
    chunk.legend()
    figure.savefig(args.out, dpi=100)


def ratios(args: argparse.Namespace) -> None:
    """Loss and reading of each rival by ratio; `none` and `full` are level lines."""
    scores = content_of(args.file, select_scores)
    figure, axes = find_pyplot().subplots(1, 2, figsize=(13, 5), layout="constrained")
    panels = (
        ("bpb", "held-out text", "bits per byte"),
        ("reading noise", "random bytes read", "share"),
    )
    for axis, (field, title, unit) in zip(axes, panels, strict=True):
        for name in dict.fromkeys(s["rival"] for s in scores):
            found = [s for s in scores if s["rival"] == name and field in s]
            if name in REFERENCES:
                found = [s | {"ratio": other["ratio"]} for s in found for other in scores]
            x = sorted({s["ratio"] for s in found})
            y = [statistics.mean(s[field] for s in found if s["ratio"] == r) for r in x]
            if x:
                axis.plot(x, y, ".-", label=name)
        axis.set(title=title, xlabel="bytes a memory token", ylabel=unit)
        axis.set_xscale("log", base=2)
        axis.legend()
    figure.savefig(args.out, dpi=100)


# ------------------------------------------------------------------------------ command line


def check_picture(path: str) -> None:
    """Raises UserError for a file that Pillow and matplotlib would not know how to write."""
    check_writable(path)
    if Path(path).suffix.lower() not in (".png", ".gif"):
        raise UserError(f"--out is {path}, expected a name that ends in .png or .gif")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures",
        description="Draw what the README shows, from the real model, mask and cache.",
    )
    pictures = parser.add_subparsers(required=True, metavar="PICTURE")

    def picture(draw, about: str) -> argparse.ArgumentParser:
        name = draw.__name__
        sub = pictures.add_parser(name, help=about, description=draw.__doc__)
        sub.add_argument("--out", default=f"{name}.png", help="where it goes (%(default)s)")
        sub.set_defaults(draw=draw)
        return sub

    sub = picture(trace, "where the model looks while it writes; .png, or .gif to see it move")
    sub.add_argument("file", help="the text before, - for standard input")
    sub.add_argument("--lines", metavar="A-B", help="of the text, from 1; default: all")
    sub.add_argument("--ask", metavar="QUESTION", help="a question about the text, to be answered")
    sub.add_argument("--bytes", type=int, default=1, help="to write (%(default)s)")
    sub.add_argument("--checkpoint", help="what train.py wrote; default as in generate.py")
    picture(mask, "who sees whom under three histories")
    picture(cache, "what the cache holds while a text grows")
    picture(cells, "64 bytes at each of the four ratios").add_argument(
        "file", help="any text, - for standard input"
    )
    sub = picture(position, "loss by position in the chunk; takes a training for each curve")
    trained = "what train.py wrote, under any history; train.py --history none, say, comes first"
    sub.add_argument("checkpoints", nargs="+", help=trained)
    sub.add_argument("--data", metavar="PATH", help="what they were trained on, as in train.py")
    sub = picture(reading, "reading and recall over training")
    sub.add_argument("logs", nargs="+", help="log.jsonl of one run, or of runs in a row")
    for draw, program in ((costs, "bench"), (rivals, "compare"), (ratios, "compare")):
        sub = picture(draw, f"what {program} has measured")
        sub.add_argument("file", help=f"what {program} --json has written")
    args = parser.parse_args(argv)
    with command_line("figures.py", "--bytes"):
        check_picture(args.out)
        args.draw(args)
        print(one_line(args.out))


if __name__ == "__main__":
    main()
