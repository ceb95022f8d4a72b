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
    emergence FILE                ... recall and reading at 4x while it trains
    sweep FILE                    what sweep --json has: fewer tokens or more parameters

Each writes NAME.png into the current folder, `name` a .gif, or --out. Pillow draws what is made of
pixels; the rest takes matplotlib, which nothing else here needs (pip install matplotlib).
"""

import argparse
import contextlib
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from cache import Session
from common import load_checkpoint
from console import UserError, check_writable, command_line, one_line, read_file
from evaluate import bits_by_position, bits_of, held_out_windows
from experiments import trace
from experiments.bench import SIDES
from experiments.compare import GAPS
from experiments.report import load_test_corpus
from experiments.rivals import REFERENCES
from experiments.trace import SKETCH, TEXT, WIDTH, tinted
from mask import Layout, make_layout, may_attend
from render import CELLS, PATCH, cell_name, enlarge, patches_per_chunk, render
from vist2 import Config, Vist2

COLOURS = {"full": "C0", "sketch": "C1", "prompt": "C2", "none": "C7"}  # of lines


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
    """Of each run of compare what is drawn; "recall" is the mean over one to eight chunks, where it
    was tested. Raises UserError."""
    content = read_file(path)

    def which(row) -> tuple[str, float, int]:
        return take(row, "rival", str), take(row, "ratio"), take(row, "seed", int)

    with expect("what compare --json writes", path):
        content = json.loads(content)
        runs = take(content, "runs", list)
        recall = {
            which(row): {"recall": statistics.mean(take(row, f"recall {d}") for d in range(1, 9))}
            for row in take({"recall": []} | content, "recall", list)
        }
        return [
            dict(zip(("rival", "ratio", "seed"), which(run), strict=True))
            | {"bpb": take(run, "bpb"), "by position": take(run, "by position", as_numbers)}
            | {k: take(run, k) for k in run if k == "reading noise" or k in GAPS}
            | recall.get(which(run), {})
            for run in runs
        ]


def as_numbers(values) -> list[float]:
    return list(map(float, values))


def colours_of(names) -> dict[str, str]:
    """COLOURS, and others for what has none there."""
    free = "C3 C4 C5 C6 C8 C9 black navy gold peru lime teal pink plum indigo".split()
    others = itertools.cycle(free)
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
    """Loss, reading and recall of each rival by ratio; `none` and `full` are level lines."""
    scores = read_scores(args.file)
    figure, axes = new_figure(1, 3, (16, 4.4))
    panels = (
        ("bpb", "held-out text", "bits per byte"),
        ("reading noise", "random bytes read", "share"),
        ("recall", "values recalled, one to eight chunks back", "share"),
    )
    sizes = sorted({s["ratio"] for s in scores})
    for axis, (field, title, unit) in zip(axes, panels, strict=True):
        for name, colour in colours_of(dict.fromkeys(s["rival"] for s in scores)).items():
            found = [s for s in scores if s["rival"] == name and field in s]
            if name in REFERENCES:
                found = [s | {"ratio": size} for s in found for size in sizes]
            x = sorted({s["ratio"] for s in found})
            y = [statistics.mean(s[field] for s in found if s["ratio"] == r) for r in x]
            if x:
                axis.plot(x, y, ".-", color=colour, label=name)
        axis.set(title=title, xlabel="bytes a memory token", ylabel=unit)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [f"{size:g}x" for size in sizes])
    save_figure(figure, args.out)


def emergence(args: argparse.Namespace) -> None:
    """Recall, mean over one to eight chunks, and reading of each rival at 4x while it trains."""
    content = read_file(args.file)
    panels = {"recall ": "values recalled at 4x", "reading noise": "random bytes read at 4x"}
    curves: dict[str, dict[tuple, list]] = {prefix: {} for prefix in panels}
    with expect("what compare --json writes", args.file):
        for run in take(json.loads(content), "runs", list):
            if take(run, "ratio") != 4:
                continue
            name = take(run, "rival", str), take(run, "seed", int)
            for line in take(run, "by step", list):
                for prefix, found in curves.items():
                    shares = [take(line, field) for field in line if field.startswith(prefix)]
                    if shares:
                        point = take(line, "step", int), statistics.mean(shares)
                        found.setdefault(name, []).append(point)
    if not any(curves.values()):
        raise UserError(f"{args.file} has no run at 4x")
    figure, axes = new_figure(1, 2, (13, 5))
    colours = colours_of(dict.fromkeys(rival for runs in curves.values() for rival, _ in runs))
    for axis, (prefix, title) in zip(axes, panels.items(), strict=True):
        drawn = {rival for rival, _ in curves[prefix]}
        early = ", ".join(name for name in (*REFERENCES, "recent") if name in drawn)
        about = f"; {early}: without spelling and reading" if early else ""
        for (rival, seed), points in curves[prefix].items():
            label = f"{rival}, seed {seed}"
            axis.plot(*zip(*points, strict=True), ".-", color=colours[rival], label=label)
        axis.set(title=title, xlabel=f"steps{about}", ylabel="share", ylim=(0, 1.02))
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
        ratios = sorted({point[1] for point in points})
        axis.set_xticks(ratios, [f"{ratio:g}x" for ratio in ratios])
    axes[0].set(title="held-out text", ylabel="bits per byte")
    axes[1].set(title="recall at eight chunks", ylabel="share of values right", ylim=(-0.02, 1.02))
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
    add = picture(trace.trace, about, (".png", ".gif"))
    add("file", help="the text before, - for standard input")
    add("--ask", metavar="QUESTION", help="a question about the text, to be answered")
    add("--bytes", type=int, default=1, help="to write (%(default)s)")
    add("--checkpoint", help="what train.py wrote; default as in generate.py")
    add = picture(trace.name, "where it looks for names from far back", (".gif",))
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
    measured = {
        costs: ("bench", "reading, writing, the cache and training: time and memory"),
        rivals: ("compare", "the gap that each rival closes at 4x"),
        ratios: ("compare", "bits, reading and recall by ratio"),
        emergence: ("compare", "recall and reading of each rival over training"),
        sweep: ("sweep", "loss and recall by ratio, at equal cost of reading"),
    }
    for draw, (program, about) in measured.items():
        picture(draw, about)("file", help=f"what {program} --json has written")
    args = parser.parse_args(argv)
    with command_line("figures.py", "--bytes"):
        check_picture(args.out, args.endings)
        args.draw(args)
        print(one_line(args.out))


if __name__ == "__main__":
    main()
