"""What a model reads and answers, kind by kind: a single score would hide where its memory fails.

    python -m experiments.kinds                              what train.py has written
    python -m experiments.kinds weights/tiny.pt --json kinds.json

Pages are read free-running. Questions are about fresh facts, some in held-out text; an answer is
exact or wrong. Names are those that come again in held-out text.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

import evaluate
from cache import Session
from common import CHECKPOINT, find_device, open_model
from console import check_range, check_writable, command_line
from data import Corpus, Text, generator
from experiments.report import load_test_corpus, long_windows
from experiments.report import make_parser, save_json, show, this_machine
from experiments.rivals import Leak, Prune, load_rival
from experiments.sessions import GistSession
from generate import read_back
from questions import CAPITALS, DIGITS, NOT_THERE, Example, Style
from questions import recall_example, sample_without_roles
from vist2 import BYTES, Vist2

FACTS = partial(Style, facts=16)  # 80 to 420 bytes
NEEDLES = (300, 1000, 1900)  # bytes of text about one fact
# Kinds of facts that the curriculum draws ("in training"), and kinds that it never draws.
TRAINED = {
    "plain": FACTS(),
    "1 fact": Style(facts=1),
    "2 facts": Style(facts=2),
    "3 facts": Style(facts=3),
    "values of 1 character": FACTS(value_lengths=(1, 1)),
    "values of 7": FACTS(value_lengths=(7, 7)),
    "values of 12": FACTS(value_lengths=(12, 12)),
    "values in capitals": FACTS(values=(CAPITALS,)),
    "keys in capitals": FACTS(key_letters=CAPITALS),
    "keys of digits": FACTS(key_letters=DIGITS, key_lengths=(3, 3)),
    "keys of 12 letters": FACTS(key_lengths=(12, 12)),
    "keys with a dot": FACTS(key_lengths=(4, 8), joint=b"."),
    "keys of the same letters": FACTS(key_lengths=(3, 3), alike=1),
    "separator ` = `": FACTS(separator=b" = "),
    "separator `: `": FACTS(separator=b": "),
    "end `; `": FACTS(end=b"; "),
    "text between": FACTS(gap=32),
}
NEVER = {
    "values of `@$%^`": FACTS(values=(b"@$%^",)),
    "values of 16": FACTS(value_lengths=(16, 16)),
    "keys of 20 letters": FACTS(key_lengths=(20, 20)),
    "keys with a hyphen": FACTS(key_lengths=(4, 8), joint=b"-"),
    "separator ` -> `": FACTS(separator=b" -> "),
    "separator ` is `": FACTS(separator=b" is "),
    "end of a bar": FACTS(end=b"|"),
    "end CR LF": FACTS(end=b"\r\n"),
}


def one_question(text: Text, rng: Generator, style: Style, chunk: int) -> Example:
    """A single question about such facts, as many as the style has or eight chunks hold."""
    example = recall_example(text, rng, chunk, 7, style=style)
    return Example(example.context, example.turns[:1])


def twice_question(text: Text, rng: Generator, chunk: int) -> Example:
    """A question for a key that stands twice; the last value counts."""
    while True:
        example = one_question(text, rng, FACTS(twice=4), chunk)
        if (b"\n" + example.context).count(b"\n" + example.turns[0][0] + b"=") == 2:
            return example


def absent_question(text: Text, rng: Generator, chunk: int) -> Example:
    """A question for a key that is not there."""
    example = recall_example(text, rng, chunk, 7, style=FACTS())
    keys = {line.split(b"=")[0] for line in example.context.split(b"\n")}
    while (key := Style().key(rng, [])) in keys:
        pass
    return Example(example.context, ((key, NOT_THERE),))


def needle_question(text: Text, rng: Generator, length: int) -> Example:
    """A question for the one fact, a line of its own, anywhere in so many bytes of real text."""
    while True:
        hay = sample_without_roles(text, length, rng)
        key, value = Style().key(rng, []), Style().value(rng)
        if key + b"=" not in hay:
            place = int(torch.randint(length, (), generator=rng))
            fact = b"\n" + key + b"=" + value + b"\n"
            return Example(hay[:place] + fact + hay[place:], ((key, value),))


def denied_question(text: Text, rng: Generator, style: Style, chunk: int, chunks=7) -> Example:
    """A question for a key that is there, with the response that it is not: a fault."""
    example = recall_example(text, rng, chunk, chunks, style=style)
    return Example(example.context, ((example.turns[0][0], NOT_THERE),))


def recall_rows(model: Vist2, corpus: Corpus, history: str, count: int) -> Iterator[dict]:
    n = model.config.chunk

    def row(name: str, trained: str, sample: Callable[..., Example], *how) -> dict:
        rng = generator("evaluation", "kinds", name)
        examples = [sample(corpus.held_out, rng, *how) for _ in range(count)]
        share = evaluate.exact_match(model, examples, history)
        return {"facts": name, "in training": trained, "so answered": share}

    for trained, kinds in (("yes", TRAINED), ("never", NEVER)):
        rows = []
        for name, style in kinds.items():
            rows.append(row(name, trained, one_question, style, n))
            yield rows[-1]
        mean = sum(row["so answered"] for row in rows) / len(rows)
        yield {"facts": "mean of these", "in training": trained, "so answered": mean}
    for length in NEEDLES:
        yield row(f"one fact in {length} bytes of text", "yes", needle_question, length)
    yield row("a key that stands twice: the last value", "yes", twice_question, n)
    yield row(f"a key that is not there: {NOT_THERE.decode()!r}", "yes", absent_question, n)
    fault = f"a fault, a key that is there: {NOT_THERE.decode()!r}"
    yield row(fault, "yes", denied_question, FACTS(), n)
    yield row(f"{fault}, in 32 chunks of facts", "yes", denied_question, Style(), n, 32)


# ----------------------------------------------------------------------------------- reading


def sample_pages(corpus: Corpus, rows: int, n: int) -> Iterator[tuple[str, Tensor]]:
    """(name, (rows, n) bytes) of each kind of page."""
    rng = generator("evaluation", "pages")
    yield "held-out text", corpus.held_out.sample(rows, n, rng)
    yield "256 different bytes", torch.randint(BYTES, (rows, n), generator=rng)
    for count in (16, 8, 4, 3, 2, 1):
        alphabets = torch.rand(rows, BYTES, generator=rng).argsort(1)[:, :count]
        page = alphabets.gather(1, torch.randint(count, (rows, n), generator=rng))
        yield f"{count} different byte{'s' * (count > 1)}", page
    yield "newlines", torch.full((rows, n), ord("\n"))
    yield "NULs", torch.zeros(rows, n, dtype=torch.long)
    blanks = torch.tensor(list(b" \t"))
    yield "spaces and tabs", blanks[torch.randint(2, (rows, n), generator=rng)]
    libraries = (Path(torch.__file__).parent / "lib").iterdir()
    program = np.memmap(max(libraries, key=lambda path: path.stat().st_size), mode="r")
    starts = torch.randint(len(program) - n, (rows, 1), generator=rng)
    page = torch.tensor(program[starts + torch.arange(n)])
    yield "machine code, torch's largest library", page.long()


def reading_rows(model: Vist2, corpus: Corpus, history: str, count: int) -> Iterator[dict]:
    if history != "sketch" or isinstance(model, Prune):  # nothing to read, or no cache of it
        return
    session = GistSession if isinstance(model, Leak) else Session
    for name, page in sample_pages(corpus, count, model.config.chunk):
        read = read_back(model, bytes(page.flatten().tolist()), session)
        right = torch.tensor(list(read)).view_as(page) == page
        whole = right.all(dim=1).float().mean().item()
        yield {"page": name, "bytes right": right.float().mean().item(), "without a fault": whole}


# ---------------------------------------------------------------------------------- language


def language_rows(model: Vist2, corpus: Corpus, history: str, windows: Tensor) -> Iterator[dict]:
    """Held-out windows of four times training's shortest, whole and cut into the shortest."""
    config = model.config
    whole = evaluate.bits_of(model, windows.reshape(len(windows), -1, config.chunk), history)
    cut = evaluate.bits_of(model, windows.reshape(-1, config.chunks, config.chunk), history)
    yield {"chunks of past, up to": config.chunks - 1, "bits per byte": cut.mean().item()}
    yield {"chunks of past, up to": 4 * config.chunks - 1, "bits per byte": whole.mean().item()}


NAME = re.compile(rb"\b[A-Za-z_]{8,}\b")
BEGUN = 3  # letters of a name that are given


def name_places(text: bytes, n: int, training: bytes) -> Iterator[tuple[int, int, int, bool]]:
    """(start, end, chunks back, whether it is new) of each name that has stood in a text before
    and lies in one chunk: of a name across an edge its first letters may be out of sight. A new one
    stands nowhere in the text of training, so that hardly anything but the past can tell it."""
    last: dict[bytes, int] = {}
    for found in NAME.finditer(text):
        start, name = found.start(), found[0]
        if name in last and start // n == (found.end() - 1) // n:
            yield start, found.end(), start // n - last[name] // n, name not in training
        last[name] = start


@torch.inference_mode()
def name_rows(model: Vist2, corpus: Corpus, history: str, windows: Tensor) -> Iterator[dict]:
    """Names in windows that come again: share of which all is likeliest after the first
    letters, by how many chunks back they stood the last time; of all, and of new ones."""
    n, right, training = model.config.chunk, {}, bytes(corpus.train.bytes.numpy())
    for window in windows:
        text = window.view(1, -1, n).to(model.device)
        hit = (model(text, history=history).argmax(-1) == text).flatten()
        for start, end, back, new in name_places(bytes(window.tolist()), n, training):
            found = hit[start + BEGUN : end].all().item(), new
            right.setdefault(back.bit_length(), []).append(found)
    for bits, found in sorted(right.items()):
        back = "0" if bits == 0 else "1" if bits == 1 else f"{2 ** (bits - 1)} to {2**bits - 1}"
        hits, new_hits = [hit for hit, _ in found], [hit for hit, new in found if new]
        share = sum(new_hits) / len(new_hits) if new_hits else ""
        yield {
            "last seen, chunks back": back,
            "names": len(hits),
            "completed": sum(hits) / len(hits),
            "new names": len(new_hits),
            "new completed": share,
        }


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("kinds", __doc__, "--data", "--device", "--json")
    add = parser.add_argument
    add("checkpoint", nargs="?", help=f"default: {CHECKPOINT}, or else the weights here")
    add("--count", type=int, default=60, help="questions, or pages, of a kind (%(default)s)")
    args = parser.parse_args(argv)
    with command_line("kinds.py", "--count"):
        check_range("--count", args.count, 1, 10_000)
        check_writable(args.json)
        device = find_device(args.device)
        model, info = open_model(args.checkpoint, device, load_rival)
        corpus = load_test_corpus(model, info, args.data)
        content = {"machine": this_machine(model.device), "info": info, "count": args.count}
        long_windows(corpus, NEEDLES[-1], 1)  # raises UserError before anything is measured
        long = long_windows(corpus, 4 * corpus.held_out.window, args.count)
        for name, title, rows, what in (
            ("recall", f"Facts, share of {args.count} questions", recall_rows, args.count),
            ("reading", f"Pages, {args.count} of each kind", reading_rows, args.count),
            ("language", "Held-out text", language_rows, long),
            ("names", f"Names in held-out text, after {BEGUN} letters", name_rows, long),
        ):
            content[name] = show(title, rows(model, corpus, info["history"], what))
        if args.json:
            save_json(args.json, content)


if __name__ == "__main__":
    main()
