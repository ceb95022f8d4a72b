"""Does a model take a mark that training never used as a mark for what it looks like?

    python -m experiments.looks                                   what train.py has written
    python -m experiments.looks weights/tiny.pt runs/compare/conv-4x-seed0-*/model.pt

Values of plain facts are asked for, in contexts of 16, some two chunks, but the facts end with
another byte than a newline, or have another one in place of `=`. Training uses neither HELD_BACK
nor control bytes so, apart from newline and tab. All control bytes are drawn alike: a letter, white
on black. To an encoder of bytes it is all the same how a byte is drawn.
"""

import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common import CHECKPOINT, find_device, open_model
from console import UserError, check_range, check_writable, command_line
from data import Corpus, generator
from evaluate import exact_match
from experiments.kinds import FACTS, one_question
from experiments.report import load_test_corpus, make_parser, save_json, show, this_machine
from experiments.rivals import label_of, load_rival
from questions import HELD_BACK, MARKS, ROLE, Example
from render import glyphs
from vist2 import Config, Vist2

CONTROL = ROLE.sub(b"", bytes(c for c in [*range(ord(" ")), 127] if c not in b"\t\n"))
OTHERS = MARKS.replace(b"=", b"")
# What is drawn for control bytes, of the glyphs (28, h, w) that they have. All but the first are
# new to a model, one of them apart: `_` upside down, black on white, is the glyph of byte 160.
DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "as in training": lambda ink: ink,
    "upside down": lambda ink: ink.flip(1),
    "upside down, black on white": lambda ink: 1 - ink.flip(1),
    "halves swapped": lambda ink: ink.roll(ink.shape[1] // 2, 1),
    "halves swapped, black on white": lambda ink: 1 - ink.roll(ink.shape[1] // 2, 1),
    "all black": torch.ones_like,
}


def redrawn_glyphs(change: Callable[[Tensor], Tensor], cell: tuple[int, int]) -> Tensor:
    """`glyphs`, those of control bytes changed."""
    table = glyphs(cell).clone()
    table[[*CONTROL]] = change(table[[*CONTROL]])
    return table


def nearest_glyph(mark: int) -> int:
    """The printable ASCII byte that a mark looks most like: the cosine of the glyphs, their mean
    taken off, is largest."""
    printable = torch.arange(ord("!"), 127)
    drawn = glyphs(Config().cell)[printable].flatten(1)
    drawn = F.normalize(drawn - drawn.mean(dim=0), dim=1)
    likeness = (drawn @ drawn[mark - ord("!")]).masked_fill(printable == mark, -1)
    return int(printable[likeness.argmax()])


def name_of(byte: int) -> str:
    """In words, since `|` would end a cell of a table."""
    return unicodedata.name(chr(byte)).lower()


def sample_questions(corpus: Corpus, place: str, marks: bytes, count: int) -> list[Example]:
    """About `count` in all, as many for each mark, which stands at that place of each fact."""
    examples = []
    for mark in marks:
        rng, style = generator("evaluation", "looks", place, mark), {place: bytes([mark])}
        for _ in range(-(-count // len(marks))):
            examples.append(one_question(corpus.held_out, rng, FACTS(**style), 64))
    return examples


def looks_rows(models: dict[str, tuple[Vist2, dict]], corpus: Corpus, count: int) -> Iterator[dict]:
    """A row for each mark, or kind of marks, at each place of a fact; the same questions for all
    models and drawings."""

    def row(examples, place: str, mark: str, trained="never", like="") -> dict:
        about = {"place": place, "mark": mark, "in training": trained, "looks most like": like}
        for rival, (model, info) in tqdm(models.items(), "asking", leave=False):
            about[rival] = exact_match(model, examples, info["history"])
        return about

    for place, name, usual in (("end", "newline", b"\n"), ("separator", "equals sign", b"=")):
        sample = partial(sample_questions, corpus, place, count=count)
        yield row(sample(usual), place, name, "yes")
        yield row(sample(OTHERS), place, f"{len(OTHERS)} other marks", "yes")
        for mark in HELD_BACK:
            like = name_of(nearest_glyph(mark))
            yield row(sample(bytes([mark])), place, name_of(mark), like=like)
        examples = sample(CONTROL)
        for drawn, change in DRAWN.items():
            with mock.patch("render.glyphs", partial(redrawn_glyphs, change)):
                yield row(examples, place, f"{len(CONTROL)} control bytes, {drawn}")


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("looks", __doc__, "--data", "--device", "--json")
    add = parser.add_argument
    add("checkpoints", nargs="*", help=f"default: {CHECKPOINT}, or else the weights here")
    add("--count", type=int, default=200, help="questions in a row, about (%(default)s)")
    args = parser.parse_args(argv)
    with command_line("looks.py", "--count"):
        check_range("--count", args.count, 1, 10_000)
        check_writable(args.json)
        device, models = find_device(args.device), {}
        for path in args.checkpoints or [None]:
            model, info = open_model(path, device, load_rival)
            if (name := label_of(info)) in models:
                raise UserError(f"{path} is a second {name}, expected one of each")
            models[name] = model, info
            corpus = load_test_corpus(model, info, args.data)
        title = f"Values of facts with other marks, share of about {args.count} questions"
        rows = show(title, looks_rows(models, corpus, args.count))
        if args.json:
            infos = {name: info for name, (_, info) in models.items()}
            save_json(args.json, {"machine": this_machine(device), "info": infos, "rows": rows})


if __name__ == "__main__":
    main()
