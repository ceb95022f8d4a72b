"""At equal cache: text cut off to what fits, beside sketches that reach several times as far.

    python -m experiments.budget                                      of runs/full, runs/sketch
    python -m experiments.budget runs/full/model.pt weights/tiny.pt --json budget.json

A budget is a number of cache entries. The open chunk is text and may take n of them; the rest holds
finished chunks, as text under history `full`, as sketches under `sketch`. What is farther back is
forgotten: out of reach by construction.
"""

import argparse
from collections.abc import Iterator

from tqdm import tqdm

import evaluate
from common import find_device, load_checkpoint
from console import UserError, check_range, check_writable, command_line
from data import Corpus, load_corpus
from experiments.report import save_json, show, this_machine
from questions import Example
from vist2 import Config, Vist2

BUDGETS = (64, 128, 256, 512)  # cache entries
DISTANCES = (1, 2, 4, 8, 16, 32)  # chunks


def reach(config: Config, history: str, entries: int) -> int:
    """Finished chunks that a budget holds beside an open one."""
    each = config.chunk if history == "full" else config.sketch_tokens
    return max(0, (entries - config.chunk) // each)


def cut(example: Example, n: int, chunks: int) -> Example:
    """An example with as much of its context as the last `chunks` before its open chunk hold."""
    gone = max(0, -(-example.length // n) - 1 - chunks)
    return Example(example.context[gone * n :], example.turns)


def budget_rows(
    models: list[tuple[Vist2, dict]], corpus: Corpus, windows: int, questions: int
) -> Iterator[dict]:
    """A row for each budget and model. Bits are those of the same held-out chunks for all."""
    n = models[0][0].config.chunk
    farthest = max(reach(model.config, info["history"], BUDGETS[-1]) for model, info in models)
    text = corpus.held_out.windows((farthest + 1) * n)
    text = text[:: max(1, len(text) // windows)][:windows].unflatten(1, (-1, n))
    asked = {d: evaluate.sample_questions(corpus, n, d, questions) for d in DISTANCES}
    for entries in BUDGETS:
        for model, info in models:
            history = info["history"]
            chunks = reach(model.config, history, entries)
            bits = evaluate.bits_of(model, text[:, -1 - chunks :], history)[:, -1]
            row = {"entries": entries, "history": history, "ratio": f"{model.config.ratio}x"}
            row |= {"bytes of past": chunks * n, "bits per byte": bits.mean().item()}
            for d, examples in tqdm(asked.items(), "asking", leave=False):
                shown = [cut(example, n, chunks) for example in examples]
                row[f"recall {d}"] = evaluate.exact_match(model, shown, history)
            yield row | ({"ratio": ""} if history == "full" else {})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.budget", description=__doc__)
    add = parser.add_argument
    default = ["runs/full/model.pt", "runs/sketch/model.pt"]
    add("checkpoints", nargs="*", default=default, help=f"default: {' '.join(default)}")
    add("--windows", type=int, default=200, help="held-out chunks, for bits (%(default)s)")
    add("--questions", type=int, default=100, help="at each distance (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (%(default)s)")
    add("--json", metavar="PATH", help="write the table as JSON")
    args = parser.parse_args(argv)
    with command_line("budget.py", "--windows"):
        check_range("--windows", args.windows, 1, 100_000)
        check_range("--questions", args.questions, 1, 10_000)
        check_writable(args.json)
        device = find_device(args.device)
        models = [load_checkpoint(path, device) for path in args.checkpoints]
        for path, (model, info) in zip(args.checkpoints, models, strict=True):
            if info["history"] == "none":
                raise UserError(f"{path} keeps no past, expected history full or sketch")
            if model.config.chunk != models[0][0].config.chunk:
                n = models[0][0].config.chunk
                raise UserError(f"{path} has chunks of {model.config.chunk} bytes, expected {n}")
        config = models[0][0].config
        corpus = load_corpus(None, config.chunks * config.chunk)
        title = f"Held-out text and {args.questions} questions at each distance, in chunks"
        rows = show(title, budget_rows(models, corpus, args.windows, args.questions))
        if args.json:
            infos = dict(zip(args.checkpoints, (info for _, info in models), strict=True))
            save_json(args.json, {"machine": this_machine(device), "info": infos, "rows": rows})


if __name__ == "__main__":
    main()
