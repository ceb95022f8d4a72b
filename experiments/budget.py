"""At equal cache: text cut off to what fits, beside sketches that reach several times as far.

    python -m experiments.budget                                      of runs/full, runs/sketch
    python -m experiments.budget runs/full/model.pt weights/tiny.pt --json budget.json

A budget is a number of cache entries. Under history `full` they are the newest bytes. Under
`sketch` the open chunk takes up to n of them, the rest holds sketches of the chunks before, of as
many as training saw at most. What is farther back is out of reach by construction.
"""

from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

import evaluate
from common import find_device, open_model
from console import UserError, check_range, check_writable, command_line
from data import Corpus
from experiments.report import load_test_corpus, long_windows
from experiments.report import make_parser, save_json, show, this_machine
from experiments.rivals import PromptOnly, Prune, SlowFast, label_of, load_rival
from questions import Example
from vist2 import Config, Vist2

BUDGETS = (64, 128, 256, 512)  # cache entries
DISTANCES = (1, 2, 4, 8, 16, 32)  # chunks


def chunks_held(config: Config, info: dict, entries: int) -> int:
    """Sketches that a budget holds beside an open chunk."""
    held = max(0, entries - config.chunk) // config.sketch_tokens
    return min(held, max(1, info["max_window"] // config.chunk) - 1)


def ratio_of(model: Vist2, info: dict) -> str:
    return "" if info["history"] == "full" else f"{model.config.ratio}x"


def bits_at(model: Vist2, info: dict, text: Tensor, entries: int) -> tuple[int, float]:
    """(bytes seen at most, bits per byte) of the last chunk of each window (K, N n) of text."""
    n, history = model.config.chunk, info["history"]
    if history == "sketch":
        seen = (1 + chunks_held(model.config, info, entries)) * n
        chunks = text[:, -seen:].unflatten(1, (-1, n))
        return seen, evaluate.bits_of(model, chunks, history)[:, -1].mean().item()
    step = n // 4  # the oldest bytes go a quarter of a chunk at a time
    parts = text[:, -(entries + n - step) :].unfold(1, entries, step).flatten(0, 1)
    parts = parts.unflatten(1, (-1, step))
    return entries, evaluate.bits_of(model, parts, history)[:, -1].mean().item()


def cut(example: Example, model: Vist2, info: dict, entries: int) -> Example:
    """An example with as much of its context as is held when the response ends."""
    n = model.config.chunk
    if info["history"] == "full":
        gone = example.length - entries
    else:
        gone = (-(-example.length // n) - 1 - chunks_held(model.config, info, entries)) * n
    return Example(example.context[max(0, gone) :], example.turns)


def budget_rows(
    models: list[tuple[Vist2, dict]], corpus: Corpus, windows: int, questions: int
) -> Iterator[dict]:
    """A row for each budget and model. Bits are those of the same held-out chunks for all."""
    n = models[0][0].config.chunk
    farthest = max(BUDGETS[-1] + n, *(info["max_window"] for _, info in models))
    text = long_windows(corpus, farthest, windows)
    asked = {d: evaluate.sample_questions(corpus, n, d, questions) for d in DISTANCES}
    for entries in BUDGETS:
        for model, info in models:
            seen, bits = bits_at(model, info, text, entries)
            row = {"entries": entries, "memory": label_of(info), "ratio": ratio_of(model, info)}
            row |= {"bytes seen, at most": seen, "bits per byte": bits}
            for d, examples in tqdm(asked.items(), "asking", leave=False):
                shown = [cut(example, model, info, entries) for example in examples]
                row[f"recall {d}"] = evaluate.exact_match(model, shown, info["history"])
            yield row


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("budget", __doc__, "--data", "--device", "--json")
    add = parser.add_argument
    default = ["runs/full/model.pt", "runs/sketch/model.pt"]
    add("checkpoints", nargs="*", default=default, help=f"default: {' '.join(default)}")
    add("--windows", type=int, default=200, help="held-out chunks, for bits (%(default)s)")
    add("--questions", type=int, default=100, help="at each distance (%(default)s)")
    args = parser.parse_args(argv)
    with command_line("budget.py", "--windows"):
        check_range("--windows", args.windows, 1, 100_000)
        check_range("--questions", args.questions, 1, 10_000)
        check_writable(args.json)
        device = find_device(args.device)
        models, names = [open_model(path, device, load_rival) for path in args.checkpoints], set()
        for model, info in models:
            path, n, first = info["path"], model.config.chunk, models[0][0].config.chunk
            if info["history"] not in ("full", "sketch"):
                raise UserError(f"{path} has history {info['history']}, expected full or sketch")
            if isinstance(model, SlowFast | PromptOnly):
                raise UserError(f"{path} keeps text beside its sketches, expected one or the other")
            if isinstance(model, Prune):
                raise UserError(f"{path} keeps fewer tokens than its config has, expected all")
            if n != first or BUDGETS[0] % n:
                alike = f"expected one divisor of {BUDGETS[0]} for all"
                raise UserError(f"{path} has chunks of {n} bytes, {alike}")
            if (name := (label_of(info), ratio_of(model, info))) in names:
                raise UserError(f"{path} is a second {' '.join(name)}, expected one of each")
            names.add(name)
            corpus = load_test_corpus(model, info, args.data)
        title = f"Held-out text and {args.questions} questions at each distance, in chunks"
        rows = show(title, budget_rows(models, corpus, args.windows, args.questions))
        if args.json:
            infos = {info["path"]: info for _, info in models}
            save_json(args.json, {"machine": this_machine(device), "info": infos, "rows": rows})


if __name__ == "__main__":
    main()
