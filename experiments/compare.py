"""Every way of keeping the past, at the same number of memory tokens, trained on the same text.

    python -m experiments.compare                            the whole curriculum at 4x: hours
    python -m experiments.compare --steps 1350 --seeds 3     each run a quarter as long
    python -m experiments.compare --questions 0              what do questions cost?
    python -m experiments.compare --quick                    does it run? no results

Decoder, --lr and windows of text are the same for all, and so is the curriculum for all that have a
memory (but `gist` reads while the others spell); `none`, `full` and `recent` take as many steps of
language modelling, on whole chunks. Muon takes matrices inside blocks: the encoder of `conv` has
none, so AdamW trains it. Each run is kept on disk under its settings, so
that a comparison that was interrupted goes on where it stopped.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm

import evaluate
import vist2
from common import find_device, read_checkpoint, restore
from console import UserError, check_range, check_writable, command_line, warn
from curriculum import CURRICULUM, DEFAULTS, MAX_STEPS, Stage, count_steps
from curriculum import fit_to_corpus, scale_stages
from data import Corpus, load_corpus
from experiments.report import flops, make_parser, save_json, show, this_machine
from experiments.rivals import REFERENCES, RIVALS, Leak
from render import render
from train import Settings, check_equal, train
from vist2 import Config, Vist2

CELLS = {2: (16, 8), 4: (16, 4), 8: (8, 4), 16: (4, 4)}  # of each ratio
QUICK = 40  # steps
QUICK_WINDOWS = 32  # held out, that are scored then
LEAST_GAP = 0.02  # bits between the references; below it, gap closed is noise and left blank
VERSION = 8  # raise it when a rival, its training or its score changes: old runs do not count

# -------------------------------------------------------------------------------- one training

fit_once = functools.lru_cache(maxsize=None)(fit_to_corpus)  # a run's key takes it many times


@dataclass(frozen=True)
class Run(Settings):
    """One training of a rival. What is recorded is saved in its checkpoint, compared at a resume
    and names its folder in `out`. Threads and torch's version, which change last digits, are not.
    """

    rival: str = "sketch"
    questions: float = 1  # their share, of that in the curriculum; with less a step is smaller
    device_type: str = "cpu"
    version: int = VERSION

    @property
    def which(self) -> dict:
        return {"rival": self.rival, "ratio": self.config.ratio, "seed": self.seed}

    def stages(self, corpus: Corpus) -> list[Stage]:
        stages = scale_stages(CURRICULUM, self.history, self.steps)
        stages = fit_once(tuple(stages), self.config, corpus.train)
        less = lambda s: {task: self.questions * share or 0 for task, share in s.questions.items()}
        stages = [replace(stage, **less(stage)) for stage in stages]
        if RIVALS[self.rival].spells:
            return stages
        return [replace(s, reading=s.reading + s.spelling, spelling=0) for s in stages]

    def record(self, corpus: Corpus, stages: list[Stage]) -> dict:
        record = super().record(corpus, stages)
        del record["questions"]  # the stages tell
        return record

    def key(self, corpus: Corpus) -> str:
        record = json.dumps(self.record(corpus, self.stages(corpus)), sort_keys=True)
        return hashlib.sha256(record.encode()).hexdigest()[:8]

    def folder(self, corpus: Corpus) -> Path:
        name = self.rival + f"-questions-{self.questions:g}" * (self.questions != 1)
        name += f"-{self.config.ratio}x-seed{self.seed}-{self.key(corpus)}"
        return Path(self.out) / name


def make_run(rival: str, ratio: int, questions=1.0, **settings) -> Run:
    """settings: fields of Settings. Raises UserError for what makes no sense."""
    merge, ratio = RIVALS[rival].merge, 4 if rival in REFERENCES else ratio
    if ratio // merge not in CELLS:
        raise UserError(f"{rival} at {ratio}x takes a sketch of {ratio // merge}x, there is none")
    settings = vars(Settings(cell=CELLS[ratio // merge], merge=merge, **settings).resolve())
    settings |= {"history": RIVALS[rival].history}  # Settings knows no `recent`
    device_type = find_device(settings["device"]).type
    return Run(**settings, rival=rival, questions=questions, device_type=device_type)


def train_or_load(run: Run, corpus: Corpus) -> Vist2:
    """A run's model: trained, or on from where it stopped, or read if done. Raises UserError for a
    loss that is not finite, and names the folder."""
    folder, stages, kind = run.folder(corpus), run.stages(corpus), RIVALS[run.rival].model
    folder.mkdir(parents=True, exist_ok=True)
    if trained := RIVALS[run.rival].trained:
        other = train_or_load(replace(run, rival=trained, merge=1), corpus)
        model = kind(other.config).to(other.device)
        model.load_state_dict(other.state_dict())
        return model.eval()
    path = folder / "model.pt"
    content = read_checkpoint(path) if path.exists() else None
    if content:
        check_equal(path, content.get("settings", {}), run.record(corpus, stages))
    torch.manual_seed(run.seed)
    model = restore(content, path, kind) if content else kind(run.config)
    model = model.to(find_device(run.device))
    if not content or content["info"]["step"] < content["info"]["steps"]:
        try:
            info = train(model, corpus, run, stages, folder, content, bool(content))
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        if info["step"] < info["steps"]:  # `resumable` says what goes on with it
            raise KeyboardInterrupt
    return model.eval()


# ------------------------------------------------------------------------------------ scores


def score_or_load(run: Run, corpus: Corpus, windows: int | None) -> dict:
    """What a run reaches on held-out windows, all or the first so many, the machine that measured
    it, kept beside its checkpoint; and what its log has of held-out files, "by step"."""
    folder = run.folder(corpus)
    path, log = folder / f"score-{windows or 'all'}.json", folder / "log.jsonl"
    if not path.exists():
        model = train_or_load(run, corpus)
        text = evaluate.held_out_windows(model, corpus, windows)
        bits = evaluate.bits_of(model, text, run.history)
        result = evaluate.score(model, corpus, run.history, bits)
        result["by position"] = evaluate.bits_by_position(bits).tolist()
        result["by chunk"] = bits.mean(dim=(0, 2)).tolist()
        save_json(path, result | {"machine": this_machine(model.device)})
    lines = map(json.loads, log.read_text().splitlines() if log.exists() else [])
    steps = [line["held out"] | {"step": line["step"]} for line in lines if "held out" in line]
    return json.loads(path.read_text()) | {"by step": steps}


def controls(model: Vist2, corpus: Corpus, windows: int | None) -> Iterator[dict]:
    """What becomes of a trained sketch model when its sketches show something else."""
    text = evaluate.held_out_windows(model, corpus, windows)
    rng, same = torch.Generator().manual_seed(0), lambda ink: ink
    blank = torch.full_like(text, ord(" "))
    noise = lambda ink: 0.3 * torch.randn(ink.shape, generator=rng).to(ink)
    shown = {  # the bytes that are drawn, and what becomes of the drawing
        "as it is": (text, same),
        "blank sketches": (blank, same),
        "another text's sketches": (text.roll(len(text) // 2, 0), same),
        "sketches one place late": (torch.cat([blank[:, :1], text[:, :-1]], dim=1), same),
        "permuted glyphs": (torch.randperm(256, generator=rng)[text], same),
        "pixels shifted by one": (text, lambda ink: ink.roll(1, -1)),
        "pixels with noise of 0.3": (text, lambda ink: ink + noise(ink)),
    }
    for name, (other, change) in shown.items():
        drawn = lambda chunks, cell, change=change: change(render(chunks, cell))
        with mock.patch.object(vist2, "render", drawn):
            bits = evaluate.bits_of(model, text, "sketch", other)
        yield {"control of sketch": name} | evaluate.summarize(bits)


def recall_of(run: Run, corpus: Corpus) -> dict[str, float]:
    """Share of values given exactly, by distance in chunks."""
    farthest, count = 4 * run.config.chunks, evaluate.QUESTIONS  # as far as training sees
    model = train_or_load(run, corpus)
    return evaluate.recall_by_distance(model, corpus, run.history, farthest, count)


def costs(name: str, config: Config) -> dict:
    """What a rival keeps of a finished chunk, and what it takes to make it.

    entries: in the decoder's cache. text: entries of text that it keeps on top. KiB: its memory
    as the decoder takes it: m vectors, or keys and values of all layers where these have read text.
    (The text itself takes n bytes. `full` could read it again, and all others make theirs anew.)
    """
    rival, n, m = RIVALS[name], config.chunk, config.sketch_tokens
    has_memory = rival.history == "sketch"
    entries = {"none": 0, "full": n}.get(name, m)
    numbers = entries * 2 * config.layers * config.kv_heads * config.head_width
    if has_memory and not issubclass(rival.model, Leak):
        numbers = m * config.width
    weights, work = 0, 0
    if has_memory:
        with torch.device("meta"):
            model, chunk = rival.model(config), torch.zeros(1, 1, n, dtype=torch.long)
        work = flops(lambda: model.compress(chunk))[0]
        shared = ("decoder", "speller", "embedding", "head", "match")
        own = [p for key, p in model.named_parameters() if not key.startswith(shared)]
        weights = sum(p.numel() for p in own)
    return {
        "encoder weights": weights,
        "encoder MFLOP": work / 1e6,
        "entries": entries,
        "text": {"slowfast": n, "prompt": "all after the prompt"}.get(name, 0),
        "KiB": 4 * numbers / 1024,
    }


# ----------------------------------------------------------------------------------- reports

GAPS = {"gap all %": "bpb", "gap 0 %": "position 0", "gap 16+ %": "from 16 on"}
DIGITS = dict.fromkeys(("bpb", "position 0", "first 4", "from 16 on"), 3)
DIGITS |= dict.fromkeys(GAPS, 0) | dict.fromkeys(("reading noise", "reading text"), 3)


def gaps(result: dict, none: dict | None, full: dict | None) -> dict[str, float]:
    """How much of what all text gives over none a score has, in percent, where both references are
    known and differ by more than noise."""
    return {
        gap: 100 * (none[name] - result[name]) / (none[name] - full[name])
        for gap, name in GAPS.items()
        if none and full and none.get(name, 0) - full.get(name, 0) > LEAST_GAP
    }


def summarize_seeds(values: list[float], digits: int) -> str:
    """The mean over seeds, and half the distance from least to most."""
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    spread = f" ± {half:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def make_row(run: Run, results: list[dict]) -> dict:
    """A line of the table, over the seeds of a run."""
    row = {"rival": run.rival, "ratio": "" if run.rival in REFERENCES else f"{run.config.ratio}x"}
    for name, digits in DIGITS.items():
        known = all(name in result for result in results)
        row[name] = summarize_seeds([r[name] for r in results], digits) if known else ""
    return row | costs(run.rival, run.config)


def score_rows(
    lines: list[list[Run]], corpus: Corpus, windows: int | None, scores: list[dict]
) -> Iterator[dict]:
    """A row for each line of runs: the seeds of one rival at one ratio, references first. Appends
    to scores those of each run."""
    known: dict[tuple[str, int], dict] = {}
    with tqdm(total=sum(map(len, lines)), unit="run", desc="all runs") as bar:
        for line in lines:
            for run in line:
                result = known[run.rival, run.seed] = score_or_load(run, corpus, windows)
                result |= gaps(result, *(known.get((name, run.seed)) for name in REFERENCES))
                more = {"cell": run.cell} | result | costs(run.rival, run.config)
                scores.append(run.which | more)
                bar.update()
            bar.clear()  # a row is printed where it stands
            yield make_row(line[0], scores[-len(line) :])


# ------------------------------------------------------------------------------ command line


def parse_some(known, kind: type, text: str) -> list:
    """'a,b' -> those of what is known, each once; raises ArgumentTypeError, for argparse."""
    chosen, options = list(dict.fromkeys(text.split(","))), list(map(str, known))
    for name in chosen:
        if name not in options:
            about = f"{name!r} is unknown, expected some of {','.join(options)}"
            raise argparse.ArgumentTypeError(about)
    return list(map(kind, chosen))


def parse(argv: list[str] | None) -> argparse.Namespace:
    about = "Train and score every way of keeping the past at equal memory tokens."
    parser = make_parser("compare", about, "--data", "--device", "--json")
    rivals, ratios = partial(parse_some, RIVALS, str), partial(parse_some, CELLS, int)
    steps, lr = count_steps(CURRICULUM), DEFAULTS["tiny"]["lr"]
    add, length = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("--rivals", type=rivals, default=list(RIVALS), help=f"of {','.join(RIVALS)} (all)")
    add("--ratios", type=ratios, default=[4], help="of 2,4,8,16 (4)")
    add("--seeds", type=int, default=1, help="how many (%(default)s)")
    length("--steps", type=int, default=steps, help="of each run, about (%(default)s)")
    quick = f"{QUICK} steps: does it run?"
    length("--quick", action="store_true", help=quick)
    add("--lr", type=float, default=lr, help="Muon's, of every run (%(default)s)")
    add("--recall", action="store_true", help="then test the recall of each run")
    about = "how much of the curriculum's share of questions; 0 leaves them out (%(default)s)"
    add("--questions", type=float, default=1, help=about)
    add("--out", metavar="DIR", default="runs/compare", help="for all runs (%(default)s)")
    return parser.parse_args(argv)


@contextlib.contextmanager
def resumable(program: str) -> Iterator[None]:
    """`command_line` of a program that keeps each run on disk."""
    with command_line(program, "--data"):
        try:
            yield
        except KeyboardInterrupt:
            warn("stopped: the same command goes on")
            raise


def check_folder(out: str) -> None:
    """Raises UserError for a file."""
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out is {out}, a file, expected a folder")


def check(args: argparse.Namespace) -> None:
    """Raises UserError for what makes no sense."""
    check_range("--seeds", args.seeds, 1, 100)
    check_range("--steps", args.steps, 1, MAX_STEPS)
    check_range("--questions", args.questions, 0, 1)
    check_writable(args.json)
    check_folder(args.out)


def run(args: argparse.Namespace) -> None:
    check(args)
    steps, windows = (QUICK, QUICK_WINDOWS) if args.quick else (args.steps, None)
    how = dict(steps=steps, lr=args.lr, device=args.device, data=args.data, out=args.out)
    make = partial(make_run, questions=args.questions, **how)
    rivals = sorted(args.rivals, key=lambda name: name not in REFERENCES)
    lines = [
        [make(name, ratio, seed=seed) for seed in range(args.seeds)]
        for name in rivals
        for ratio in args.ratios[: 1 if name in REFERENCES else None]
    ]
    sketch = make("sketch", args.ratios[0])
    corpus = load_corpus(args.data, sketch.config.chunks * sketch.config.chunk)

    machine, scores = this_machine(find_device(args.device)), []
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    title = f"{corpus.name}, digest {corpus.digest}; lr {args.lr}, {steps} steps a run"
    title += ", without a memory those of language alone"
    title += f", questions at {args.questions:g} of their share" * (args.questions != 1)
    title += ": TOO FEW, these figures are no results" if args.quick else ""
    show(title, score_rows(lines, corpus, windows, scores))
    content = {"machine": machine, "corpus": corpus.name, "quick": args.quick}
    content["questions"] = args.questions
    content["settings"] = sketch.record(corpus, sketch.stages(corpus))
    content["runs"] = scores
    if "sketch" in rivals:
        rows = controls(train_or_load(sketch, corpus), corpus, windows)
        title = f"What {sketch.config.ratio}x sketches show, and what comes of it"
        content["controls"] = show(title, rows)
    if args.recall:
        title = "Recall: share of values given exactly, by distance in chunks"
        rows = (run.which | recall_of(run, corpus) for line in lines for run in line)
        content["recall"] = show(title, rows)
    if args.json:
        save_json(args.json, content)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with resumable("compare.py"):
        run(args)


if __name__ == "__main__":
    main()
