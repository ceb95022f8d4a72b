"""Fewer tokens or more parameters: decoders of equal cost at several ratios, trained and scored.

    python -m experiments.sweep             three costs, four ratios: hours
    python -m experiments.sweep --sizes     what would be trained

The question of "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters" (arXiv
2411.03312). At each cost of reading a prompt a ratio takes the widest decoder that fits, as deep
as wide, and then the widest MLP; ratio 1 is all text. The encoder is the same for all sketches and
takes 0.46 GFLOP of the cost. Only reading costs the same: a byte that is written, and so every byte
that bits are counted of, passes the whole decoder. Ratios above 4 are merged.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from common import find_device
from console import UserError, check_range, check_writable
from curriculum import DEFAULTS, MAX_STEPS
from data import Corpus, load_corpus
from experiments.bench import count_deep, encoder_flops, make_model
from experiments.compare import Run, check_folder, make_run, recall_of, resumable, score_or_load
from experiments.report import make_parser, save_json, show, this_machine
from vist2 import Config

RATIOS = {1: ("full", 1), 4: ("sketch", 1), 8: ("sketch", 2), 16: ("sketch", 4)}  # history, merge
COSTS = (0.6, 0.85, 1.2)  # GFLOP to read a prompt
PROMPT = 2048  # bytes
STEP = 16  # of widths
SCORES = ("bpb", "position 0", "from 16 on", "reading noise", "reading text")


@dataclass(frozen=True)
class SizedRun(Run):
    """A run of a decoder in about the proportions of `tiny`."""

    width: int = 128
    mlp: int = 512

    @property
    def config(self) -> Config:
        layers, heads = max(1, (self.width + 16) // 32), max(1, self.width // 32)
        sizes = dict(width=self.width, layers=layers, heads=heads, kv_heads=heads, mlp=self.mlp)
        return replace(super().config, **sizes)


@functools.cache
def count_costs(config: Config, history: str) -> dict[str, float]:
    """FLOPs of reading a prompt, "read", and of a byte after it, "write"; on the meta device."""
    encoder = encoder_flops(config) if history == "sketch" else 0
    return count_deep(config, history, PROMPT, encoder)


def fit_run(ratio: int, cost: float, **settings) -> SizedRun:
    """The run at a ratio that reads a prompt for at most so many GFLOP. Raises UserError if none
    does."""
    history, merge = RATIOS[ratio]
    settings = vars(make_run(history, 4, **settings)) | {"merge": merge}
    sizes = itertools.count(STEP, STEP)
    runs = (SizedRun(**settings, width=width, mlp=4 * width) for width in sizes)
    spare = lambda run: 1e9 * cost - count_costs(run.config, history)["read"]
    *_, widest = [None, *itertools.takewhile(lambda run: spare(run) >= 0, runs)]
    if widest is None:
        raise UserError(f"no decoder reads {PROMPT} bytes at {ratio}x for {cost} GFLOP")
    wider = replace(widest, mlp=widest.mlp + STEP)  # each such step costs the same
    steps = spare(widest) // (spare(widest) - spare(wider))
    return replace(widest, mlp=widest.mlp + int(steps) * STEP)


def size_row(cost: float, run: SizedRun) -> dict:
    config = run.config
    costs = count_costs(config, run.history)
    decoder = sum(p.numel() for p in make_model(config, "meta").decoder.parameters())
    return {
        "GFLOP at most": cost,
        "ratio": 1 if run.history == "full" else config.ratio,
        "width": config.width,
        "layers": config.layers,
        "mlp": config.mlp,
        "decoder, million weights": decoder / 1e6,
        "GFLOP to read": costs["read"] / 1e9,
        "MFLOP a byte written": costs["write"] / 1e6,
    }


def sweep_rows(runs: list[tuple[float, SizedRun]], corpus: Corpus) -> Iterator[dict]:
    for cost, run in runs:
        score = score_or_load(run, corpus, None)
        bits = {name: score.get(name, "") for name in SCORES}
        yield size_row(cost, run) | bits | recall_of(run, corpus)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("sweep", __doc__, "--data", "--device", "--json")
    add = parser.add_argument
    add("--steps", type=int, default=1500, help="of each run, about (%(default)s)")
    add("--lr", type=float, default=DEFAULTS["tiny"]["lr"], help="Muon's, of all (%(default)s)")
    add("--sizes", action="store_true", help="show what would be trained, and stop")
    add("--out", metavar="DIR", default="runs/sweep", help="for all runs (%(default)s)")
    args = parser.parse_args(argv)
    with resumable("sweep.py"):
        check_range("--steps", args.steps, 1, MAX_STEPS)
        check_writable(args.json)
        check_folder(args.out)
        how = dict(steps=args.steps, lr=args.lr, device=args.device, data=args.data, out=args.out)
        runs = [(cost, fit_run(ratio, cost, **how)) for cost in COSTS for ratio in RATIOS]
        title = f"The widest decoders that read {PROMPT} bytes at a cost"
        rows = (size_row(cost, run) for cost, run in runs)
        if not args.sizes:
            config = runs[0][1].config
            corpus = load_corpus(args.data, config.chunks * config.chunk)
            title = f"{title}, after {args.steps} steps, at 1x of language alone"
            rows = sweep_rows(runs, corpus)
        content = {"machine": this_machine(find_device(args.device)), "steps": args.steps}
        content["rows"] = show(title, rows)
        if args.json:
            save_json(args.json, content)


if __name__ == "__main__":
    main()
