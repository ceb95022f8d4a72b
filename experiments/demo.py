"""Fresh facts become sketches, their text is forgotten, and the model answers from the sketches.

    python -m experiments.demo                     other facts each time; --seed has them again
    python -m experiments.demo --context FILE      facts of your own, key=value lines
    python -m experiments.demo --html demo.html    the same as a page, too

The decoder sees a finished chunk through its sketch alone. So the controls ask the same question
about another text: the sketches of other facts, or blank ones, are all that changes.
"""

import base64
import html
import io
import os
import re
import secrets
import shutil
import string
import sys
from pathlib import Path

import torch
from torch import Generator

from cache import Session
from common import find_device, write_file
from console import UserError, check_range, check_writable, command_line
from console import one_line, read_file, speaks_unicode
from data import generator
from evaluate import exact_match
from experiments.report import make_parser, written
from experiments.trace import SKETCH, moments, open_sketch_model, share_of_pixels, tinted
from generate import answer, as_row, fit_context
from questions import STOP, Example, Style, one_of, question_prompt, write_facts
from render import enlarge, half_blocks, half_characters, render
from vist2 import Config, Vist2

CHUNKS = 4  # of facts, where nobody gives a context
MOST_SHOWN = 8  # chunks of a context
FACT = re.compile(rb"^([^\s=:]+)( = |=|: |:)([^\r\n]+)", re.MULTILINE)
BASIC = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1))


# ------------------------------------------------------------------------------------- facts


def draw_facts(rng: Generator, size: int) -> bytes:
    """So many bytes of `key=value` lines, as training has them; the last one may be cut."""
    return write_facts(None, rng, size, Style())[0]  # without text between


def whole_facts(context: bytes, end: int) -> dict[bytes, tuple[int, int]]:
    """Where each key's value stands, the last one of a key, if it ends before byte `end`."""
    last = {match[1]: match.span(3) for match in FACT.finditer(context)}
    return {key: span for key, span in last.items() if span[1] < end}


def other_value(rng: Generator, value: bytes) -> bytes:
    """Another value of the same length: a digit for a digit, a letter for a letter, and where it
    has neither, digits."""
    kinds = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
    alphabets = [next((k for k in kinds if c in k), c) for c in value.decode("latin-1")]
    if max(map(len, alphabets)) == 1:
        alphabets = [string.digits] * len(value)
    new = value
    while new == value:
        new = "".join(one_of(rng, *alphabet) for alphabet in alphabets).encode("latin-1")
    return new


# ------------------------------------------------------------------------------------ screens


class Terminal:
    """Words, sketches and tables for a terminal, or for a pipe, in what it can show."""

    def __init__(self):
        plain = not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb"
        plain = plain or bool(os.environ.get("NO_COLOR")) or not speaks_unicode()
        exact = os.environ.get("COLORTERM") in ("truecolor", "24bit")
        self.colours = "none" if plain else "all" if exact else "eight"
        self.columns = shutil.get_terminal_size().columns

    def words(self, text: str) -> None:
        print(text, flush=True)

    def sketch(self, ink: torch.Tensor, share: torch.Tensor) -> None:
        """A sketch (H, W), with a share (H, W), 0 to 1, of colour in its paper."""
        if self.colours == "none":
            return self.words(half_blocks(ink, self.columns))
        ink, share = (half_characters(x, self.columns)[..., None] for x in (ink, share))
        paper = 1 - share * (1 - torch.tensor(SKETCH))
        for upper, lower in zip(*(paper * (1 - ink))):
            pairs = zip(self.codes(upper, 3), self.codes(lower, 4))
            painted = "".join(f"\033[{upper};{lower}m▀" for upper, lower in pairs)
            print(f"{painted}\033[0m", flush=True)

    def codes(self, pixels: torch.Tensor, ground: int) -> list[str]:
        """Of the escape for each pixel's colour, in front (3) or behind (4)."""
        if self.colours == "all":
            rows = (255 * pixels).int().tolist()
            return [f"{ground}8;2;{red};{green};{blue}" for red, green, blue in rows]
        nearest = torch.cdist(pixels, torch.tensor(BASIC, dtype=torch.float32)).argmin(-1)
        return [f"{ground}{index}" for index in nearest.tolist()]

    def table(self, lines: list[list[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        print(flush=True)


class Page:
    """The same as one HTML page that needs nothing else."""

    def __init__(self, title: str):
        look = "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
        look += "pre,table{font-family:monospace;white-space:pre-wrap}td,th{text-align:left;"
        look += "padding:0 1.5em 0 0}img{image-rendering:pixelated;margin:4px;border:1px solid}"
        head = f"<meta charset='utf-8'><title>{title}</title><style>{look}</style>"
        self.parts = [f"<!doctype html><html lang='en'>{head}<h1>{title}</h1>"]

    def words(self, text: str) -> None:
        self.parts.append(f"<pre>{html.escape(text)}</pre>")

    def sketch(self, ink: torch.Tensor, share: torch.Tensor) -> None:
        file = io.BytesIO()
        enlarge(tinted(ink, share, SKETCH), 4).save(file, "png")
        data = base64.b64encode(file.getvalue()).decode()
        self.parts.append(f"<img alt='sketch' src='data:image/png;base64,{data}'>")

    def table(self, lines: list[list[str]]) -> None:
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines]
        self.parts.append(f"<table><tr>{'<tr>'.join(cells)}</table>")


class Screens:
    """A terminal, and a page where one is asked for: whatever is said goes to each."""

    def __init__(self, config: Config, screens: list):
        self.config, self.screens = config, screens

    def say(self, text: str) -> None:
        for screen in self.screens:
            screen.words(text)

    def show(self, chunk: bytes, share: torch.Tensor | None = None) -> None:
        """The sketch of a chunk, of each token the share (m,) of colour."""
        ink = render(as_row(chunk)[0], self.config.cell)
        share = torch.zeros(self.config.sketch_tokens) if share is None else share
        for screen in self.screens:
            screen.sketch(ink, share_of_pixels(share, ink, self.config))

    def table(self, rows: list[dict]) -> None:
        lines = [list(rows[0]), *([written(cell) for cell in row.values()] for row in rows)]
        for screen in self.screens:
            screen.table(lines)


# ------------------------------------------------------------------------------------ stories


def tell(model: Vist2, context: bytes, seed: int, screens: Screens) -> None:
    """Show a context as sketches, ask for one of its facts, change it, ask for all of them."""
    n, m = model.config.chunk, model.config.sketch_tokens
    end, rng = len(context) // n * n, generator("demo", "questions", seed)
    facts = whole_facts(context, end)
    if not facts:
        raise UserError(
            f"found no fact in the finished chunks of {len(context)} bytes, expected key=value "
            f"lines in {n} bytes or more"
        )

    say, show = screens.say, screens.show
    most = max(32, *(stop - start for start, stop in facts.values()))  # bytes of an answer
    chunk_of = lambda text, chunk: text[chunk * n : (chunk + 1) * n]

    def ask(text: bytes, key: bytes, history="sketch") -> str:
        return one_line(answer(model, text, key, most, history=history)[0]) or "(nothing)"

    say(f"--seed {seed}: {len(facts)} facts")
    for chunk in range(min(end // n, MOST_SHOWN)):
        say(f"chunk {chunk}, {n} bytes, and its sketch, {m} visual tokens:")
        say(one_line(chunk_of(context, chunk)))
        show(chunk_of(context, chunk))
    if end // n > MOST_SHOWN:
        say(f"... and {end // n - MOST_SHOWN} chunks more")

    session = Session(model, 1, "sketch", len(context) + 2 * n)
    session.prefill(as_row(context))
    rest = f", and {len(context) - end} bytes of the open chunk" if end < len(context) else ""
    say(f"\nThe text is gone. The cache holds {m} tokens of each sketch{rest}:")
    say(f"{session.cache_entries} entries; as text {len(context) + 1}.")

    key = one_of(rng, *facts)
    start, stop = facts[key]
    prompt = question_prompt(context, key)
    seen = next(moments(model, prompt, 1, len(prompt) + 2 * n, STOP)).seen
    shares = torch.stack(seen).mean(0).float().cpu()[: end // n * m].view(-1, m)
    chunk = int(shares.sum(1).argmax())
    say(f"\nAsked for {one_line(key)}, the first byte of the answer looks most at chunk {chunk}:")
    show(chunk_of(context, chunk), shares[chunk] / shares.max())

    foreign = draw_facts(rng, end) + context[end:]
    sights = {
        "the sketches": (context, "sketch"),
        "none": (context, "none"),
        "sketches of other facts": (foreign, "sketch"),
        "blank sketches": (b" " * end + context[end:], "sketch"),
    }
    rows = []
    for name, (text, history) in sights.items():
        asked = [Example(text, ((k, context[slice(*at)]),)) for k, at in facts.items()]
        right = round(len(asked) * exact_match(model, asked, history))
        row = {"what is seen": name, f"answer to {one_line(key)}": ask(text, key, history)}
        rows.append(row | {"of all facts right": f"{right} of {len(asked)}"})
    screens.table(rows)

    new = other_value(rng, context[start:stop])
    changed = context[:start] + new + context[stop:]
    say(f"The value of {one_line(key)} becomes {one_line(new)}; chunk {start // n} is drawn anew:")
    show(chunk_of(changed, start // n))
    again = ask(changed, key)
    verdict = "right" if again == one_line(new) else "wrong"
    say(f"Asked again for {one_line(key)}, the model answers {again}: {verdict}.")


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("demo", __doc__, "--device")
    add = parser.add_argument
    add("--seed", type=int, help="of the facts and the question; default: another each time")
    add("--context", metavar="FILE", help="facts of your own, key=value lines")
    add("--checkpoint", help="default as in generate.py")
    add("--html", metavar="FILE", help="write the same as a page that needs nothing else")
    args = parser.parse_args(argv)
    with command_line("demo.py", "--context"):
        seed = secrets.randbelow(10**6) if args.seed is None else args.seed
        check_range("--seed", seed, 0, 2**63 - 1)
        check_writable(args.html)
        model, info = open_sketch_model(args.checkpoint, find_device(args.device))
        pages = [Page("A language model that reads its past from pictures")] if args.html else []
        screens = Screens(model.config, [Terminal(), *pages])
        text = draw_facts(generator("demo", seed), CHUNKS * model.config.chunk)
        if args.context is not None:
            text = read_file(args.context)
        tell(model, fit_context(text, info, args.context or "the text"), seed, screens)
        for page in pages:
            write_file(Path(args.html), "\n".join(page.parts).encode())
            print(one_line(args.html))


if __name__ == "__main__":
    main()
