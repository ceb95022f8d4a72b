"""Every way of keeping the past, at the same number of memory tokens, trained on the same bytes.

    python compare.py                            one seed, 4x, the whole curriculum: hours
    python compare.py --steps 1350 --seeds 3     each run a quarter as long
    python compare.py --quick                    does it run? its figures are no results

A rival is another `remember`, another mask, or both. Decoder, rates and windows of text are the
same for all, and so is the curriculum for all that have a memory (but `gist` reads while the
others spell); those without (`none`, `full`, `recent`) take as many steps of language modelling,
on whole chunks. Each run is kept on disk under its settings, so that a comparison that was
interrupted goes on where it stopped.
"""

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from tqdm import tqdm

from bench import flops, save_json, show, this_machine, written
from data import Corpus, load_corpus
from generate import Session, check_writable, errors_in_one_line, find_device, write
from train import (
    CURRICULUM,
    DEFAULTS,
    INSTRUCT,
    INSTRUCT_RATE,
    PLACES,
    QUESTIONS,
    REFERENCES,
    by_place,
    by_position,
    check_examples,
    held_out_bits,
    length_of,
    must_agree,
    reading_accuracy,
    recall_by_distance,
    run_settings,
    stages,
    train,
)
from vist2 import (
    READ,
    Aligner,
    Block,
    Config,
    Vist2,
    byte_losses,
    norm,
    read_checkpoint,
    restore,
    rope_angles,
)

CELLS = {2: (16, 8), 4: (16, 4), 8: (8, 4), 16: (4, 4)}  # of each ratio


# -------------------------------------------------------------------------------- the rivals


class Recent(Vist2):
    """Truncation at equal cache: beyond the own chunk, as many of the newest bytes as the sketch
    model would have memory tokens; no memory. What a byte has seen it hands on to the next layer,
    so this sliding window looks further back than a text that is cut off."""

    def attend_text(self, N, n):
        m = n // self.config.ratio
        place = torch.arange(N * n, device=self.decoder.head.weight.device)
        first = place // n * (n - m)  # chunk i sees i m bytes before its own i n
        key = place[None, :]
        mask = (key <= place[:, None]) & (key >= first[:, None])
        return partial(F.scaled_dot_product_attention, attn_mask=mask, enable_gqa=True)

    def forward(self, text, openings=None, history="recent", memory=None, **more):
        return super().forward(text, openings, "full", memory, **more)


class PromptOnly(Vist2):
    """The first half as sketches, the rest as text: Glyph; "Text or Pixels?"."""

    def forward(self, text, openings=None, history="sketch", memory=None, **more):
        if history == "sketch":
            history = "prompt"
        prompt_chunks = text.shape[1] // 2
        return super().forward(text, openings, history, memory, prompt_chunks, **more)


class SlowFast(Vist2):
    """The newest finished chunk as text, older ones as sketches: Vist (slow and fast paths). What
    text has seen it hands on, layer by layer, as in any sliding window."""

    window = 1

    def forward(self, text, openings=None, history="sketch", memory=None, **more):
        reads = openings is not None and bool((openings == READ).any())  # from the sketch alone
        window = self.window if history == "sketch" and not reads else 0
        return super().forward(text, openings, history, memory, window=window, **more)


class Leak(Vist2):
    """No rival but an ablation: sketch tokens see their own chunk's text in the decoder."""

    def forward(self, text, openings=None, history="sketch", memory=None, **more):
        leak = history == "sketch"
        return super().forward(text, openings, history, memory, leak=leak, **more)


class Frozen(Vist2):
    """A control: the encoder stays as it was drawn at random; aligner and decoder learn."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.encoder.requires_grad_(False)


class Latent(Vist2):
    """Base of the rivals without pixels: `encode` turns the embeddings of (B', n) bytes into
    (B', m, C), which the aligner takes. Token k stands for r = n / m consecutive bytes."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.encoder = nn.ModuleList()
        self.aligner = Aligner(replace(config, encoder_width=config.width))

    def remember(self, chunks):
        memory = norm(self.encode(self.embed(rearrange(chunks, "B N n -> (B N) n"))))
        return rearrange(self.aligner(memory), "(B N) m C -> B N m C", N=chunks.shape[1])

    def in_reading_order(self, spelled):
        return rearrange(spelled, "B N m (byte C) -> B N (m byte) C", C=self.config.width)


class MeanPool(Latent):
    """The mean of the bytes' embeddings: the plainest rival of the critique (arXiv 2512.03643)."""

    def encode(self, x):
        return rearrange(x, "B (m r) C -> B m r C", r=self.config.ratio).mean(dim=2)


class Conv(Latent):
    """Strided residual convolutions: the critique's second rival. Each layer halves the length."""

    def __init__(self, config: Config):
        super().__init__(config)
        C = config.width
        self.encoder.extend(
            nn.Conv1d(C, C, kernel_size=4, stride=2, padding=1)
            for _ in range(int(math.log2(config.ratio)))
        )

    def encode(self, x):
        x = rearrange(x, "B n C -> B C n")
        for layer in self.encoder:
            x = F.avg_pool1d(x, 2) + F.relu(layer(x))
        return rearrange(x, "B C m -> B m C")


class Queries(Latent):
    """Learned queries that attend to the chunk's bytes, as in SweetTok and latent compressors:
    the ViT's blocks over bytes and queries; one learned query, told apart by its place."""

    def __init__(self, config: Config):
        super().__init__(config)
        C, heads = config.width, config.encoder_heads
        self.query = nn.Parameter(torch.randn(C))
        self.encoder = nn.ModuleDict(
            {
                "blocks": nn.ModuleList(
                    Block(C, heads, heads, C // heads, 4 * C) for _ in range(config.encoder_layers)
                )
            }
        )

    def encode(self, x):
        n, r = x.shape[1], self.config.ratio
        bytes_at = torch.arange(n, device=x.device)
        positions = torch.cat([bytes_at, bytes_at[r - 1 :: r]])
        angles = rope_angles(
            positions, x.shape[2] // self.config.encoder_heads, self.config.rope_base
        )
        x = torch.cat([x, self.query.expand(len(x), n // r, -1)], dim=1)
        for block in self.encoder["blocks"]:
            x = block(x, angles, F.scaled_dot_product_attention)
        return x[:, n:]


class Gist(Leak, Latent):
    """The decoder's own states at m slots after reading the chunk, in every layer: Fwd2Bot,
    Activation Beacon. One learned slot, told apart by its place; the last is the chunk's last
    byte, which is no input otherwise. Nothing more is known of a chunk before the decoder reads
    it, so there is nothing to spell; the steps of spelling go to reading."""

    def __init__(self, config: Config):
        super().__init__(config)
        del self.aligner
        self.slot = nn.Parameter(torch.randn(config.width))

    def remember(self, chunks):
        B, N, n = chunks.shape
        slots = self.slot.tanh().expand(B, N, n // self.config.ratio - 1, -1)
        return torch.cat([slots, self.embed(chunks[..., -1:])], dim=2)

    def spell(self, memory):
        return 0 * super().spell(memory)


@dataclass(frozen=True)
class Rival:
    """A class of model, and what train.py and Session take as its history."""

    model: type[Vist2]
    training: str = "sketch"  # has a memory, and learns to read it; the others do not
    writing: str | None = None  # None: left out of long writing
    spells: bool = True


RIVALS = {
    "none": Rival(Vist2, "none"),  # the lower reference
    "full": Rival(Vist2, "full", "full"),  # the upper one
    "sketch": Rival(Vist2, writing="sketch"),  # VIST2
    "recent": Rival(Recent, "recent"),
    "meanpool": Rival(MeanPool, writing="sketch"),
    "conv": Rival(Conv, writing="sketch"),
    "queries": Rival(Queries, writing="sketch"),
    "gist": Rival(Gist, spells=False),
    "slowfast": Rival(SlowFast),
    "prompt": Rival(PromptOnly),
    "leak": Rival(Leak),
    "frozen": Rival(Frozen),
}
JUDGE_SEED = 100
LEAST_GAP = 0.02  # bits between the references; below it, gap closed is noise and left blank
VERSION = 3  # raise it when a rival, its training or its score changes: old runs do not count


# ---------------------------------------------------------------------------- train and score


@dataclass(frozen=True)
class Run:
    """One training: a rival at a ratio with a seed, in so many steps, at Muon's rate `lr`."""

    rival: str
    ratio: int
    seed: int
    steps: int
    lr: float

    @property
    def config(self) -> Config:
        return Config(cell=CELLS[self.ratio])

    def settings(self, corpus: Corpus, device: torch.device) -> dict:
        """All that is chosen; threads and torch's version change the last digits, too."""
        settings = run_settings(
            self.config,
            DEFAULTS["tiny"] | {"steps": self.steps, "lr": self.lr},
            history=RIVALS[self.rival].training,
            plan=stages(CURRICULUM, RIVALS[self.rival].training, self.steps),
            data=corpus.digest,
            seed=self.seed,
            bf16=device.type == "cuda",
            compile=False,
        )
        for stage in settings["stages"]:
            if not RIVALS[self.rival].spells:
                stage |= {"reading": stage["reading"] + stage["spelling"], "spelling": 0}
        return settings | {"rival": self.rival, "device": device.type, "version": VERSION}


def key_of(settings: dict) -> str:
    """A short name of all settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def folder_of(run: Run, corpus: Corpus, device: torch.device, folder: Path) -> Path:
    """The folder of a run, named by its settings."""
    settings = run.settings(corpus, device)
    return folder / f"{run.rival}-{run.ratio}x-seed{run.seed}-{key_of(settings)}"


def finished(
    begin: Callable[[], Vist2],
    kind: type[Vist2],
    settings: dict,
    corpus: Corpus,
    device,
    out: Path,
) -> Vist2:
    """The model in a folder: trained from `begin()`, or from where it stopped, or read if done."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.pt"
    resumed = read_checkpoint(path) if path.exists() else None
    if resumed:
        must_agree(path, resumed.get("settings", {}), settings)
    model = (restore(resumed, path, kind) if resumed else begin()).to(device)
    if not resumed or resumed["info"]["step"] < resumed["info"]["steps"]:
        try:
            train(model, corpus, settings, out, device, resumed)
        except ArithmeticError as error:
            raise ArithmeticError(f"{out}: {error}") from None
    return model.eval()


def trained(run: Run, corpus: Corpus, device: torch.device, folder: Path) -> Vist2:
    """A run's model after the curriculum."""
    kind = RIVALS[run.rival].model
    torch.manual_seed(run.seed)
    settings, out = run.settings(corpus, device), folder_of(run, corpus, device, folder)
    return finished(lambda: kind(run.config), kind, settings, corpus, device, out)


def taught(run: Run, steps: int, corpus: Corpus, device: torch.device, folder: Path) -> Vist2:
    """A run's model after so many more steps, of instructions."""
    rival = RIVALS[run.rival]
    settings = run.settings(corpus, device) | {
        "stages": [asdict(stage) for stage in stages(INSTRUCT, rival.training, steps)],
        "lr": INSTRUCT_RATE * run.lr,
        "steps": steps,
    }
    out = folder_of(run, corpus, device, folder) / f"instruct-{steps}-{key_of(settings)}"
    begin = partial(trained, run, corpus, device, folder)
    return finished(begin, rival.model, settings, corpus, device, out)


def score(run: Run, model: Vist2, corpus: Corpus, windows: int | None) -> dict:
    """What a trained rival reaches on held-out text."""
    history = RIVALS[run.rival].training
    bits = held_out_bits(model, corpus, history, windows)
    result = by_place(bits) | {
        "by position": by_position(bits).tolist(),
        "by chunk": bits.mean(dim=(0, 2)).tolist(),
    }
    if history == "sketch":
        result |= reading_accuracy(model, corpus, min(len(bits), 128))
    return result


def scored(run: Run, corpus: Corpus, device, folder: Path, windows: int | None) -> dict:
    """The score of a run and the machine that scored it, kept beside its checkpoint."""
    path = folder_of(run, corpus, device, folder) / f"score-{windows or 'all'}.json"
    if not path.exists():
        result = score(run, trained(run, corpus, device, folder), corpus, windows)
        save_json(path, result | {"machine": this_machine(device)})
    return json.loads(path.read_text())


def costs(run: Run) -> dict:
    """What a rival keeps of a finished chunk, and what it takes to make it.

    entries: in the decoder's cache. text: entries of text that it keeps on top. KiB: the least of
    its memory that can be stored: m vectors, which the decoder can read again, or keys and values
    of all layers where these have read text.
    """
    config, rival = run.config, RIVALS[run.rival]
    n, m = config.chunk, config.chunk // config.ratio
    entry = 2 * config.layers * config.kv_heads * config.head_width * 4
    entries = {"none": 0, "full": n}.get(run.rival, m)
    vectors = rival.training == "sketch" and not issubclass(rival.model, Leak)
    result = {
        "encoder weights": 0,
        "encoder MFLOP": 0.0,
        "entries": entries,
        "text": {"slowfast": n, "prompt": "all after the prompt"}.get(run.rival, 0),
        "KiB": (m * 4 * config.width if vectors else entries * entry) / 1024,
    }
    if rival.training == "sketch":
        with torch.device("meta"):
            model = rival.model(config)
        chunk = torch.zeros(1, 1, n, dtype=torch.long, device="meta")
        result["encoder MFLOP"] = flops(lambda: model.remember(chunk))[0] / 1e6
        result["encoder weights"] = sum(
            p.numel()
            for name, p in model.named_parameters()
            if not name.startswith(("decoder", "speller"))
        )
    return result


def controls(model: Vist2, corpus: Corpus, windows: int | None) -> dict[str, dict]:
    """What becomes of a trained sketch model when its sketches show something else."""
    text = corpus.held_out.windows()[:windows]
    rng = torch.Generator().manual_seed(0)
    shown = {
        "as it is": text,
        "blank sketches": torch.full_like(text, ord(" ")),
        "another text's sketches": text.roll(len(text) // 2, 0),
        "permuted glyphs": torch.randperm(256, generator=rng)[text],
    }
    return {
        name: by_place(held_out_bits(model, corpus, "sketch", windows, other))
        for name, other in shown.items()
    }


# ------------------------------------------------------------------------------- long writing


def continuations(model: Vist2, history: str, prompts: torch.Tensor, length: int):
    """(B, T) prompts -> (B, T + length), drawn at temperature 0.8."""
    session = Session(model, len(prompts), history)
    logits = session.prefill(prompts)
    new = torch.stack(list(write(session, logits, length, 0.8, None, 0)), dim=1)
    return torch.cat([prompts.cpu(), new.cpu()], dim=1)


@torch.inference_mode()
def judged(judge: Vist2, text: torch.Tensor, half: int) -> dict[str, float]:
    """Bits per byte of a text (B, k half) after its first `half` bytes, under a model that sees
    `half` or more bytes before each: of its first and last stretch of `half` bytes and of all;
    and the share of 16-byte strings that have come before in their stretch."""
    windows = text.unfold(1, 2 * half, half).flatten(0, 1)  # (B (k - 1), 2 half)
    chunks = windows.view(len(windows), -1, judge.config.chunk).to(
        judge.decoder.head.weight.device
    )
    bits = byte_losses(judge(chunks, history="full"), chunks).flatten(1)[:, half:] / math.log(2)
    stretches = bits.view(len(text), -1, half).mean(dim=(0, 2))
    repeated = []
    for row in text[:, half:].unfold(1, half, half).flatten(0, 1).tolist():
        strings = [bytes(row[i : i + 16]) for i in range(len(row) - 15)]
        repeated.append(1 - len(set(strings)) / len(strings))
    return {
        "judge bpb, first": stretches[0].item(),
        "judge bpb, last": stretches[-1].item(),
        "judge bpb, all": bits.mean().item(),
        "repeated %": 100 * statistics.mean(repeated),
    }


def long_writing(writers: list[str], models: Callable, judge: Vist2, corpus: Corpus):
    """Yield a row for real text and one for each writer, judged by a `full` of its own seed."""
    device = judge.decoder.head.weight.device
    half = judge.config.chunks // 2 * judge.config.chunk
    windows = corpus.held_out.windows()
    picked = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:32]]
    yield {"writer": "held-out text"} | judged(judge, picked, half)
    for name in writers:
        text = continuations(
            models(name, 0), RIVALS[name].writing, picked[:, :half].to(device), 3 * half
        )
        yield {"writer": name} | judged(judge, text, half)


# ----------------------------------------------------------------------------------- reports

GAPS = {"gap all %": "bpb", "gap 0 %": "position 0", "gap 16+ %": "from 16 on"}


def with_gaps(scores: list[dict]) -> list[dict]:
    """How much of what text gives over nothing each run has, in percent, where both are known."""
    known = {(s["rival"], s["seed"]): s for s in scores}
    result = []
    for s in scores:
        none, full = (known.get((name, s["seed"])) for name in REFERENCES)
        gaps = {
            gap: 100 * (none[place] - s[place]) / (none[place] - full[place])
            for gap, place in GAPS.items()
            if none and full and none.get(place, 0) - full.get(place, 0) > LEAST_GAP
        }
        result.append(s | gaps)
    return result


def summary(values: list[float], digits: int) -> str:
    """The mean over seeds, and half the distance from least to most."""
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    spread = f" ± {half:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def row(run: Run, results: list[dict]) -> dict:
    """A line of the table, over the seeds of a run."""
    digits = dict.fromkeys(PLACES, 3) | dict.fromkeys(GAPS, 0)
    digits |= {"reading noise": 3, "reading text": 3}
    return (
        {"rival": run.rival, "ratio": "" if run.rival in REFERENCES else f"{run.ratio}x"}
        | {
            name: summary([r[name] for r in results], digits[name])
            if all(name in r for r in results)
            else ""
            for name in digits
        }
        | costs(run)
    )


# ------------------------------------------------------------------------------ command line


def some_rivals(text: str) -> list[str]:
    """--rivals; raises ArgumentTypeError, which argparse prints."""
    chosen = list(dict.fromkeys(text.split(",")))
    for name in chosen:
        if name not in RIVALS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no rival, expected some of {','.join(RIVALS)}"
            )
    return chosen


def some_ratios(text: str) -> list[int]:
    """--ratios; raises ArgumentTypeError."""
    chosen = list(dict.fromkeys(text.split(",")))
    for ratio in chosen:
        if ratio not in map(str, CELLS):
            raise argparse.ArgumentTypeError(
                f"{ratio!r} is no ratio, expected some of {','.join(map(str, CELLS))}"
            )
    return [int(ratio) for ratio in chosen]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Train and score every way of keeping the past at equal memory tokens.",
    )
    parser.add_argument(
        "--rivals", type=some_rivals, default=list(RIVALS), help=f"of {','.join(RIVALS)} (all)"
    )
    parser.add_argument("--ratios", type=some_ratios, default=[4], help="of 2,4,8,16 (4)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (%(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        default=length_of(CURRICULUM),
        help="of each run, about (%(default)s)",
    )
    parser.add_argument(
        "--lr",
        type=float,
        default=DEFAULTS["tiny"]["lr"],
        help="Muon's rate of every run (%(default)s)",
    )
    parser.add_argument(
        "--recall",
        type=int,
        metavar="STEPS",
        help="then teach the first seed of each rival to answer, and test its recall",
    )
    parser.add_argument("--quick", action="store_true", help="40 steps: does it run at all?")
    parser.add_argument("--data", metavar="PATH", help="file or folder; default as in train.py")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    parser.add_argument(
        "--out", metavar="DIR", default="runs/compare", help="for all runs (%(default)s)"
    )
    parser.add_argument("--json", metavar="PATH", help="write all scores as JSON")
    args = parser.parse_args(argv)
    try:
        with errors_in_one_line("compare.py", "--rivals", ArithmeticError):
            compare(args)
    except KeyboardInterrupt:
        print("\ncompare.py: stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)


def compare(args: argparse.Namespace) -> None:
    for name in ("seeds", "steps", "recall"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}, expected 1 or more")
    if not 0 < args.lr < float("inf"):
        raise ValueError(f"--lr is {args.lr}, expected more than 0 and finite")
    check_writable(args.json)
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise ValueError(f"--out is {args.out}, a file, expected a folder")
    device, folder = find_device(args.device), Path(args.out)
    corpus = load_corpus(args.data, Config().chunks * Config().chunk)
    if args.recall:
        check_examples(corpus, Config())
    steps, windows = (40, 32) if args.quick else (args.steps, None)
    machine = this_machine(device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{corpus.name}, digest {corpus.digest}; {steps} steps a run", end="")
    print(f" (without a memory those of language alone), lr {args.lr}", end="")
    print(": TOO FEW, these figures are no results\n" if args.quick else "\n")

    lines = [
        (name, ratio)
        for name in sorted(args.rivals, key=lambda name: name not in REFERENCES)
        for ratio in ([4] if name in REFERENCES else args.ratios)
    ]
    scores: list[dict] = []
    with tqdm(total=len(lines) * args.seeds, unit="run", desc="all runs") as bar:
        for number, (name, ratio) in enumerate(lines):
            for seed in range(args.seeds):
                run = Run(name, ratio, seed, steps, args.lr)
                result = scored(run, corpus, device, folder, windows)
                of = {"rival": name, "ratio": ratio, "seed": seed, "cell": run.config.cell}
                scores.append(of | result | costs(run))
                bar.update()
            scores = with_gaps(scores)
            line = row(run, scores[-args.seeds :])
            if number == 0:
                tqdm.write(f"| {' | '.join(line)} |\n|{'---|' * len(line)}")
            tqdm.write(f"| {' | '.join(map(written, line.values()))} |")
    first = args.ratios[0]
    content = {
        "machine": machine,
        "corpus": corpus.name,
        "quick": args.quick,
        "seed of the judge": JUDGE_SEED,
        "ratio of controls and writing": first,
        "settings": Run("sketch", first, 0, steps, args.lr).settings(corpus, device),
        "runs": scores,
    }

    def models(name: str, seed: int) -> Vist2:
        ratio = 4 if name in REFERENCES else first
        return trained(Run(name, ratio, seed, steps, args.lr), corpus, device, folder)

    if "sketch" in args.rivals:
        table = controls(models("sketch", 0), corpus, windows)
        rows = ({"control of sketch": name} | result for name, result in table.items())
        content["controls"] = show(f"What {first}x sketches show, and what comes of it", rows)
    writers = [name for name in args.rivals if RIVALS[name].writing]
    if writers:
        content["writing"] = show(
            f"Long writing at {first}x: 12 chunks after 4, seeing up to 8, at temperature 0.8, "
            "read by a judge",
            long_writing(writers, models, models("full", JUDGE_SEED), corpus),
        )
    if args.recall:

        def recalled(name: str) -> dict:
            run = Run(name, 4 if name in REFERENCES else first, 0, steps, args.lr)
            shares = recall_by_distance(
                taught(run, args.recall, corpus, device, folder),
                corpus,
                RIVALS[name].training,
                run.config.chunks,
                QUESTIONS,
            )
            return {"rival": name} | {f"{far} back": share for far, share in shares.items()}

        content["recall"] = show(
            f"Recall at {first}x after {args.recall} steps of instructions: share of values "
            "given exactly, by distance in chunks",
            map(recalled, args.rivals),
        )
    if args.json:
        save_json(Path(args.json), content)


if __name__ == "__main__":
    main()
