"""The curriculum: read the sketch, then model language with sketches as the only past.

    python train.py                       the README's model; its corpus needs no download
    python train.py --history none        a reference: sees its own chunk only
    python train.py --history full        a reference: sees all text, a plain GPT
    python train.py --stage instruct      then learn to answer questions about a past
    python train.py --resume              go on where a run stopped, on a CPU bit for bit

The language model forgets its eyes before it finds a use for them, unless four things hold:
sketches speak the decoder's language of bytes (`Vist2.spell`); the history is learned where the
model cannot do without it, in chunks as short as one patch; reading and spelling stay in the
mix; and every step mixes all tasks of its stage in one gradient.
"""

import argparse
import contextlib
import hashlib
import json
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from tqdm import tqdm

from data import (
    EXAMPLES,
    Corpus,
    Example,
    alike,
    draw,
    generator,
    instruct_batch,
    language_batch,
    load_corpus,
    reading_batch,
    read_examples,
    spelling_batch,
)
from generate import (
    answer,
    check_seed,
    errors_in_one_line,
    find_device,
    generate,
    one_line,
    printable,
    read_back,
)
from render import fills_page, parse_cell
from vist2 import Config, Vist2, byte_losses, loss, read_checkpoint, restore, save_checkpoint


@dataclass(frozen=True)
class Stage:
    """What fills a step, in parts of --batch-bytes, which are also the weights of the losses.

    `spelling` are single chunks, for encoder, aligner and the embeddings of bytes; `reading` are
    pairs of a chunk and its copy. The others are language modelling: with all text visible
    (`text`), or with sketches as the only past and chunks of a sixteenth, a quarter or the whole
    of the config's chunk length. They are quarters. The last are questions about a context, loss
    on responses only (see data.EXAMPLES); a context is 1 to `far` chunks and an open one, in one
    batch of four four times as many. For `sketch` half of the batches are cut into chunks of a
    quarter: there a chunk's edge cuts half of recall's questions, else one in eight. Spelling
    goes on: wherever sketches are made, SPELLING times the loss of spelling them is added.
    """

    name: str
    steps: int  # in the default run
    spelling: float = 0
    reading: float = 0
    text: float = 0
    sixteenth: float = 0
    quarter: float = 0
    whole: float = 0
    recall: float = 0
    docs: float = 0
    repeat: float = 0
    own: float = 0
    far: int = 0

    @property
    def language(self) -> dict[str, float]:
        shares = {task: getattr(self, task) for task in ("text", *PARTS)}
        return {task: share for task, share in shares.items() if share}

    @property
    def farthest(self) -> int:
        """Chunks of the longest context."""
        return self.far if self.own else 4 * self.far

    @property
    def instructions(self) -> dict[str, float]:
        return {task: getattr(self, task) for task in ASKED if getattr(self, task)}

    def with_own_examples(self, far: int) -> "Stage":
        """The user's examples, of at most `far` chunks, in place of the generated ones."""
        none = dict.fromkeys(EXAMPLES, 0)
        return replace(self, **none, own=sum(self.instructions.values()), far=far)


ASKED = (*EXAMPLES, "own")
REFERENCES = ("none", "full")  # histories that have no memory, and so no ratio
PARTS = {"sixteenth": 1 / 16, "quarter": 1 / 4, "whole": 1}  # of the config's chunk length
# fmt: off
CURRICULUM = (
    #     name            steps  spelling  reading  text  sixteenth  quarter  whole
    # 1: read sketches (OCR)
    Stage("spelling",       300, 1,        0,       0,    0,         0,       0),
    Stage("reading",        250, 0,        1,       0,    0,         0,       0),
    # 2: optical language modelling
    Stage("mixed chunks",  2600, 0,        1/8,     1/4,  1/4,       1/4,     1/4),
    Stage("whole chunks",  2400, 0,        1/8,     0,    0,         0,       1),
)
# 3: instructions, --stage instruct
INSTRUCT = (
    Stage("near",     300, reading=1/8, whole=1/4, recall=3/4, docs=1/8, repeat=1/4, far=2),
    Stage("farther",  500, reading=1/8, whole=1/4, recall=3/4, docs=1/8, repeat=1/4, far=4),
    Stage("far",     3200, reading=1/8, whole=3/4, recall=3/4, docs=1/8, repeat=1/4, far=8),
)
# fmt: on
TABLES = {"language": CURRICULUM, "instruct": INSTRUCT}
LONGEST = 40  # chunks of an example that a user gives
SPELLING = 0.5
ADAMW_RATE = 0.6  # of Muon's
INSTRUCT_RATE = 0.8  # of what language modelling takes
# What a run of each preset takes if nothing is said; lr is Muon's.
DEFAULTS = {
    "tiny": dict(batch_bytes=2**11, lr=5e-3),
    "small": dict(batch_bytes=2**15, lr=3e-3),
}


def length_of(table: tuple[Stage, ...]) -> int:
    return sum(stage.steps for stage in table)


def stages(table: tuple[Stage, ...], history: str, steps: int) -> list[Stage]:
    """A table in so many steps: stages without language take what they need, up to a third of the
    run; the others take the rest.

    The references `full` and `none` take the same windows of text and the same examples in as many
    steps, and skip what makes no sense for them: spelling, reading, and short chunks.
    """
    eyes = length_of([stage for stage in table if not stage.language])
    taken = min(eyes, steps / 3)
    scale = {True: (steps - taken) / (length_of(table) - eyes), False: taken / max(1, eyes)}
    scaled = [
        replace(stage, steps=max(1, round(stage.steps * scale[bool(stage.language)])))
        for stage in table
    ]
    if history == "sketch":
        return scaled
    none = dict.fromkeys(("spelling", "reading", "text", *PARTS), 0)
    return [
        replace(stage, **(none | {"whole": sum(stage.language.values())}))
        for stage in scaled
        if stage.language
    ]


def chunk_of(part: float, config: Config) -> int:
    """A part of the config's chunk length: the longest up to it that makes pages of whole patches
    and divides the whole."""
    m = config.chunk // config.ratio
    pages = [p for p in range(1, m + 1) if m % p == 0 and fills_page(p)]
    return config.ratio * max(p for p in pages if p <= max(1, m * part))


def batches(
    stage: Stage, config: Config, corpus: Corpus, size: int, seed: int, step: int, number: int
):
    """Yield (task, share, batch) for each task of a step of `size` bytes. The windows of text
    depend on the seed and on `number`, which counts the steps with language modelling, and on
    nothing else."""
    text = corpus.train
    if stage.spelling:
        chunks = max(2, round(stage.spelling * size / config.chunk))
        rng = generator(seed, "spelling", step)
        yield "spelling", stage.spelling, spelling_batch(text, chunks, config.chunk, rng)
    if stage.language:
        rows = 4 * max(1, round(size / text.window / 4))  # the table's shares are quarters
        windows = text.sample(rows, text.window, generator(seed, "language", number))
        first = 0
        for task, share in stage.language.items():
            taken = windows[first : first + round(share * rows)]
            first += len(taken)
            yield task, share, language_batch(taken, chunk_of(PARTS.get(task, 1), config))
    for task, share in stage.instructions.items():
        rng = generator(seed, task, step)
        if task == "own":
            examples = alike(corpus.own, share * size, rng)
        else:  # of about one length, without the turns
            far = (1 + draw(rng, stage.far)) * (1 if draw(rng, 4) else 4)
            rows = max(1, round(share * size / ((far + 2) * config.chunk)))
            examples = [EXAMPLES[task](text, rng, config.chunk, far) for _ in range(rows)]
        short = draw(rng, 2) == 0 and stage.reading  # the references do not read
        yield task, share, instruct_batch(examples, chunk_of(1 / 4 if short else 1, config))
    if stage.reading:
        pairs = max(2, round(stage.reading * size / (2 * config.chunk)))
        rng = generator(seed, "reading", step)
        yield "reading", stage.reading, reading_batch(text, pairs, config.chunk, rng)


def check_examples(corpus: Corpus, config: Config) -> None:
    """Raises ValueError if a corpus is not one to make the longest examples from."""
    for example in EXAMPLES.values():
        example(corpus.train, generator("check"), config.chunk, INSTRUCT[-1].farthest)


def to_device(batch, device: torch.device):
    """Move tensors; to CUDA from pinned memory, so that nothing waits for the copy."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in batch]
    return [tensor.pin_memory().to(device, non_blocking=True) for tensor in batch]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), for matrices: every step is the momentum with its singular values
    brought close to 1, so that all directions of a matrix are learned alike.

    What torch.optim.Muon does with adjust_lr_fn="match_rms_adamw", but in float32: processors
    without bfloat16 instructions spend 30 times as long on that one, four times the rest of a step.
    """

    def __init__(self, matrices, lr: float, weight_decay=0.01, momentum=0.95):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                mean = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(mean, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                as_large_as_adamws = 0.2 * max(p.shape) ** 0.5
                p.add_(update, alpha=-group["lr"] * as_large_as_adamws)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix with singular values of 1: five Newton-Schulz iterations with the
    coefficients of Jordan et al. Most values come out between 0.7 and 1.2, the least stay smaller;
    that is good enough."""
    x = matrix / matrix.norm().clamp(min=1e-7)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def make_optimizers(model: Vist2, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for all other weights."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if ".blocks." in name and p.ndim == 2 else others).append(p)
    return [
        Muon(matrices, lr=lr),
        torch.optim.AdamW(others, lr=ADAMW_RATE * lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, plan: list[Stage]) -> float:
    """The share of the full rate at a step: 20 steps up, flat, the last 40 % down to 2 %. What
    joins in a later stage begins at the full rate. Instructions go down all the way: they begin
    where a model has come down already."""
    fall = (1.0 if plan[-1].instructions else 0.4) * len(plan)
    return min(1.0, (step + 1) / 20, 0.02 + 0.98 * (len(plan) - step) / fall)


# -------------------------------------------------------------------------------- evaluation


PLACES = ("bpb", "position 0", "first 4", "from 16 on")


@torch.inference_mode()
def held_out_bits(
    model: Vist2,
    corpus: Corpus,
    history: str,
    count: int | None = None,
    shown: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bits of each byte of the held-out windows (all, or the first `count`): (K, N, n).

    shown: windows (K, N n) for the sketches to show in place of the text, as a control.
    """
    config, device = model.config, model.decoder.head.weight.device
    windows = corpus.held_out.windows()[:count].view(-1, config.chunks, config.chunk)
    bits = []
    for start in range(0, len(windows), 16):
        text, memory = windows[start : start + 16].to(device), None
        if shown is not None:
            memory = model.remember(shown[start : start + 16].view_as(text).to(device))
        logits = model(text, history=history, memory=memory)
        bits.append(byte_losses(logits, text).cpu() / math.log(2))
    return torch.cat(bits)


def by_place(bits: torch.Tensor) -> dict[str, float]:
    """PLACES of (K, N, n) bits: means over all, and by place in a chunk in the later half."""
    later = bits[:, bits.shape[1] // 2 :]
    result = {
        "bpb": bits.mean(),
        "position 0": later[..., 0].mean(),
        "first 4": later[..., :4].mean(),
    }
    if bits.shape[2] > 16:
        result["from 16 on"] = later[..., 16:].mean()
    return {name: value.item() for name, value in result.items()}


def by_position(bits: torch.Tensor) -> torch.Tensor:
    """The mean of each place in a chunk, in the later half: (K, N, n) bits -> (n,)."""
    return bits[:, bits.shape[1] // 2 :].mean(dim=(0, 1))


@torch.inference_mode()
def reading_accuracy(model: Vist2, corpus: Corpus, chunks: int) -> dict[str, float]:
    """Share of bytes that READ gets right, teacher-forced, of as many chunks of noise and text."""
    device = model.decoder.head.weight.device
    text, openings, _ = reading_batch(
        corpus.held_out, 2 * chunks, model.config.chunk, generator("evaluation")
    )
    right = torch.cat(
        [
            model(t.to(device), o.to(device))[:, 1].argmax(-1).cpu() == t[:, 1]
            for t, o in zip(text.split(32), openings.split(32))
        ]
    ).float()
    return {
        "reading noise": right[:chunks].mean().item(),
        "reading text": right[chunks:].mean().item(),
    }


def evaluate(
    model: Vist2, corpus: Corpus, history: str, count: int | None = None
) -> dict[str, float]:
    """Bits per byte on held-out windows (all, or the first `count`), and reading accuracy.

    Draws nothing from any random state that training uses.
    """
    bits = held_out_bits(model, corpus, history, count)
    reading = {}
    if history == "sketch":
        reading = reading_accuracy(model, corpus, min(len(bits), 128))
    return by_place(bits) | reading


@torch.inference_mode()
def exact_match(model: Vist2, examples: list[Example], history: str) -> float:
    """Share of examples, of one turn each, whose response and STOP are all the likeliest bytes
    after the true ones before them: so what is written at temperature 0 is the response."""
    device, right = model.decoder.head.weight.device, 0
    for first in range(0, len(examples), 16):
        batch = instruct_batch(examples[first : first + 16], model.config.chunk)
        counted = first_counted(batch[-1])
        text, openings, weights = to_device(batch, device)
        guessed = model(text, openings, history, first=counted).argmax(-1)
        text, weights = text[:, counted:], weights[:, counted:]
        wrong = (guessed != text) & (weights > 0)
        right += (~wrong.flatten(1).any(dim=1)).sum().item()
    return right / len(examples)


DISTANCES = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)  # chunks
QUESTIONS = 200  # at each distance


def questions(corpus: Corpus, task: str, chunk: int, distance: int, count: int) -> list[Example]:
    """Fresh held-out examples of one question each, in contexts of eight chunks or `distance`."""
    rng = generator("evaluation", task, distance)
    return [
        EXAMPLES[task](corpus.held_out, rng, chunk, max(8, distance), distance)
        for _ in range(count)
    ]


def recall_by_distance(
    model: Vist2, corpus: Corpus, history: str, farthest: int, count: int
) -> dict[int, float]:
    """Exact match of recall at each of DISTANCES up to `farthest`, `count` questions each."""
    chunk = model.config.chunk
    return {
        distance: exact_match(model, questions(corpus, "recall", chunk, distance, count), history)
        for distance in DISTANCES
        if distance <= farthest
    }


def edit_distance(a: bytes, b: bytes) -> float:
    """Levenshtein's, of bytes, by the longer one's length: 0 for equal texts, at most 1."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1] / max(len(a), len(b), 1)


def report_answers(model: Vist2, corpus: Corpus, history: str) -> None:
    """How a model answers on held-out files, by distance."""
    n = model.config.chunk
    print("\nchunks from what is asked for to the question, and share answered exactly:")
    print("  distance  recall    docs  edit distance of docs, 0 to 1")
    for distance in DISTANCES:
        recall = exact_match(model, questions(corpus, "recall", n, distance, QUESTIONS), history)
        try:
            examples = questions(corpus, "docs", n, distance, QUESTIONS)
        except ValueError:  # held-out files may be short
            print(f"  {distance:8} {recall:7.3f}    none")
            continue
        docs = exact_match(model, examples, history)
        edits = []
        for example in examples[: QUESTIONS // 8]:
            question, response = example.turns[0]
            written, _ = answer(model, example.context, question, 100, history=history)
            edits.append(edit_distance(written, response))
        mean = sum(edits) / len(edits)
        print(f"  {distance:8} {recall:7.3f} {docs:7.3f} {mean:7.3f}", flush=True)


def report(model: Vist2, corpus: Corpus, info: dict) -> None:
    """What a person wants to see at the end."""
    history, n = info["history"], model.config.chunk
    print("evaluating on all held-out files ...", flush=True)
    print(
        f"\nheld-out files of {corpus.name} (digest {corpus.digest}), history {history}, "
        f"{info['step']} steps"
    )
    for name, value in evaluate(model, corpus, history).items():
        unit = "of bytes right, teacher-forced" if "reading" in name else "bits per byte"
        print(f"  {name:14} {value:6.3f} {unit}")
    window = bytes(corpus.held_out.windows()[0].tolist())
    if history == "sketch":
        print(
            f"\na chunk       |{one_line(window[:n])}|\n"
            f"read from it  |{one_line(read_back(model, window[:n]))}|"
        )
    prompt = window[: len(window) // 2]
    written = generate(model, prompt, len(window) // 2, temperature=0.8, history=history)
    print(
        f"\nprompt: ...{printable(prompt[-2 * n :].decode('utf-8', 'replace'))}\n"
        f"--- continued, at temperature 0.8:\n{printable(written.decode('utf-8', 'replace'))}"
    )


# ---------------------------------------------------------------------------------- the loop

SAVE_EVERY = 250  # steps; also evaluates a little, for the log


def first_counted(weights: torch.Tensor) -> int:
    """The first chunk of (B, N, n) weights that is not zero in all rows."""
    return int(weights.amax(dim=(0, 2)).nonzero()[0])


def task_losses(
    model, task, history, text, openings, weights, first=0
) -> dict[str, torch.Tensor]:
    """Losses of one task in nats per byte, by name, and the share of bytes that are read right.

    first: no byte of the chunks before it counts.
    """
    measured, memory = {}, None
    if task == "text":
        history = "full"
    if history == "sketch":
        seen = text if task == "spelling" else text[:, :-1]  # no one sees the last chunk's sketch
        memory = model.remember(seen)
        measured["spelling"] = loss(model.spell(memory), seen)
    if task != "spelling":
        logits = model(text, openings, history, memory, first=first)
        text, weights = text[:, first:], weights[:, first:]
        measured[task] = loss(logits, text, weights)
    if task == "reading":
        measured["accuracy"] = ((logits.argmax(-1) == text) * weights).sum() / weights.sum()
    return measured


def train_step(compute, model, tasks, settings: dict, device: torch.device) -> dict[str, float]:
    """Add the gradients of all tasks of one step, which `compute` (task_losses) measures.

    Returns the losses in bits per byte and the accuracy of reading; spelling as measured on the
    batches that are half random bytes.
    """
    log = {}
    for task, share, batch in tasks:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["bf16"]):
            first = first_counted(batch[-1])
            measured = compute(model, task, settings["history"], *to_device(batch, device), first)
        counts = {"spelling": SPELLING, task: 1.0}  # the task of spelling counts in full
        total = sum(counts[name] * nats for name, nats in measured.items() if name in counts)
        (share * total).backward()
        if task not in ("spelling", "reading"):
            measured.pop("spelling", None)
        log |= {name: value.detach() for name, value in measured.items()}
    units = {"accuracy": 1.0}  # the rest is nats
    return {name: value.item() / units.get(name, math.log(2)) for name, value in log.items()}


def train(
    model: Vist2,
    corpus: Corpus,
    settings: dict,
    out: Path,
    device: torch.device,
    resumed: dict | None = None,
    seen: int = 0,
) -> dict:
    """Run the curriculum, or what is left of it, and return the info of the last checkpoint.

    `resumed` is the checkpoint to go on with; `seen` the chunks of the longest context that the
    model was asked about before.
    Writes out/model.pt and out/log.jsonl. Raises ArithmeticError for a loss that is not finite,
    the last good checkpoint as it was, and KeyboardInterrupt after a Ctrl-C, with all steps saved.
    """
    config, lr = model.config, settings["lr"]
    plan = [Stage(**stage) for stage in settings["stages"] for _ in range(stage["steps"])]
    numbers = list(accumulate((bool(stage.language) for stage in plan), initial=0))
    optimizers = make_optimizers(model, lr)
    step = 0
    if resumed:
        step = resumed["info"]["step"]
        for optimizer, state in zip(optimizers, resumed["optimizers"]):
            optimizer.load_state_dict(state)
    compute = task_losses
    if settings["compile"]:
        torch._dynamo.config.recompile_limit = 32  # a graph for each shape of the curriculum
        compute = torch.compile(task_losses)

    def save() -> dict:
        info = {
            "step": step,
            "steps": len(plan),
            "stage": plan[max(0, step - 1)].name,
            "history": settings["history"],
            "chunks": config.chunks,
            "seed": settings["seed"],
            "digest": corpus.digest,
            "corpus": corpus.name,
            "far": max(seen, plan[-1].farthest),
        }
        save_checkpoint(
            out / "model.pt",
            model,
            info,
            settings=settings,
            optimizers=[optimizer.state_dict() for optimizer in optimizers],
        )
        return info

    smooth: dict[str, float] = {}
    size = settings["batch_bytes"]
    bar = tqdm(total=len(plan) * size, initial=step * size, unit="B", unit_scale=True)
    with open_log(out / "log.jsonl", step) as log, bar, held_interrupts() as interrupted:
        while step < len(plan) and not interrupted:
            stage = plan[step]
            for optimizer, full in zip(optimizers, (lr, ADAMW_RATE * lr)):
                optimizer.param_groups[0]["lr"] = full * rate(step, plan)
            tasks = batches(
                stage,
                config,
                corpus,
                size,
                settings["seed"],
                step,
                numbers[step],
            )
            losses = train_step(compute, model, tasks, settings, device)
            length = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            if not math.isfinite(sum(losses.values()) + length):
                raise ArithmeticError(
                    f"the loss is not finite at step {step + 1}: {losses}, gradient {length}; "
                    f"{standing(out)}"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1

            line = {"step": step, "stage": stage.name}
            line |= {name: round(value, 4) for name, value in losses.items()}
            save_now = step % SAVE_EVERY == 0
            if save_now:
                line["held out"] = evaluate(model, corpus, settings["history"], count=64)
                if stage.recall:
                    shares = recall_by_distance(
                        model, corpus, settings["history"], 8, QUESTIONS // 8
                    )
                    line["held out"] |= {f"recall {far}": share for far, share in shares.items()}
            log.write(json.dumps(line) + "\n")
            log.flush()  # before the checkpoint: a log may run ahead of it, never fall behind
            if save_now:
                save()
            smooth = {
                name: 0.95 * smooth.get(name, value) + 0.05 * value
                for name, value in losses.items()
            }
            bar.set_description(stage.name, refresh=False)
            bar.set_postfix(
                {name: f"{value:.3f}" for name, value in smooth.items()}, refresh=False
            )
            bar.update(size)
        info = save()
    if step < len(plan):
        raise KeyboardInterrupt
    return info


def run_settings(config: Config, recipe: dict, history: str, plan: list[Stage], **more) -> dict:
    """All that a run depends on, as plain types; a resume must agree with it.

    recipe: see DEFAULTS. more: data, own, seed, bf16 and compile.
    """
    table = [asdict(stage) for stage in plan]
    constants = {"spelling": SPELLING, "adamw": ADAMW_RATE, "stages": table}
    return asdict(config) | recipe | {"history": history} | more | constants


def must_agree(path: Path, before: dict, settings: dict) -> None:
    """Raises ValueError if a checkpoint was made under other settings, `before`."""
    for name, value in settings.items():
        was = before.get(name)
        if was != value:
            raise ValueError(f"cannot go on from {path}: {name} was {was}, now it is {value}")


def standing(out: Path) -> str:
    """What is left when a run ends early."""
    path = out / "model.pt"
    if path.exists():
        return f"{path} stands as it was saved at step {read_checkpoint(path)['info']['step']}"
    return "no checkpoint had been saved yet"


def open_log(path: Path, step: int):
    """The log, open for lines after `step`; lines that no checkpoint stands behind are dropped."""
    kept = []
    if step and path.exists():
        kept = [
            line
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n") and json.loads(line)["step"] <= step
        ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
    return path.open("a")


@contextlib.contextmanager
def held_interrupts():
    """A list that Ctrl-C fills, so that a step is never cut in the middle."""
    interrupted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------------ command line


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train VIST2, or a reference, through the curriculum.",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--preset", default="tiny", help=f"{', '.join(DEFAULTS)} (%(default)s)")
    model.add_argument(
        "--history",
        default="sketch",
        choices=("sketch", "full", "none"),
        help="what the model sees of finished chunks (%(default)s)",
    )
    model.add_argument(
        "--cell",
        type=parse_cell,
        default="16x4",
        help="pixels of a byte, the ratio's dial: 16x8, 16x4, 8x4, 4x4 (%(default)s)",
    )
    model.add_argument("--chunk", type=int, default=64, help="bytes in a chunk (%(default)s)")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", metavar="PATH", help="file or folder; default: Python's standard library"
    )
    data.add_argument(
        "--out",
        metavar="DIR",
        help="for model.pt and log.jsonl; default: runs/HISTORY, or runs/HISTORY-instruct",
    )
    data.add_argument("--resume", action="store_true", help="go on with the run in --out")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--stage",
        choices=("language", "instruct"),
        default="language",
        help="instruct goes on from a finished language model (%(default)s)",
    )
    run.add_argument(
        "--start",
        metavar="FILE",
        help="what instruct begins from; default: runs/HISTORY/model.pt",
    )
    run.add_argument(
        "--instruct",
        metavar="FILE",
        help='own examples: {"context": ..., "prompt": ..., "response": ...} a line',
    )
    run.add_argument("--steps", type=int, help="about so many in all; default: the stage's")
    run.add_argument(
        "--batch-bytes", type=int, help="bytes of text in a step; default: the preset's"
    )
    run.add_argument(
        "--lr", type=float, help="Muon's rate, AdamW takes 0.6 of it; default: the preset's"
    )
    run.add_argument("--seed", type=int, default=0, help="of weights and batches (%(default)s)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    run.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="autocast to bfloat16; default: on CUDA",
    )
    run.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="torch.compile, for the curriculum: instructions have too many shapes; default: no",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    out = Path(args.out or f"runs/{args.history}{'-instruct' * (args.stage == 'instruct')}")
    try:
        with errors_in_one_line("train.py", "--batch-bytes", ArithmeticError):
            run(args, out)
    except KeyboardInterrupt:
        how = " (the same command with --resume goes on)" if (out / "model.pt").exists() else ""
        print(f"\ntrain.py: stopped; {standing(out)}{how}", file=sys.stderr)
        sys.exit(130)


def run(args: argparse.Namespace, out: Path) -> None:
    if args.preset not in DEFAULTS:  # the paper's sizes are there to be counted
        raise ValueError(
            f"preset {args.preset!r} cannot be trained here, expected one of {', '.join(DEFAULTS)}"
        )
    config = Config.preset(args.preset, chunk=args.chunk, cell=args.cell)
    device = find_device(args.device)
    check_seed(args.seed)
    table = TABLES[args.stage]
    recipe = {"steps": length_of(table)} | DEFAULTS[args.preset]
    if args.stage == "instruct":
        recipe["lr"] *= INSTRUCT_RATE
    for name in recipe:
        given = getattr(args, name)
        if given is not None:
            if not 0 < given < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} is {given}, expected more than 0")
            recipe[name] = given
    if args.stage == "language" and (args.start or args.instruct):
        raise ValueError("--start and --instruct are for --stage instruct")
    corpus = load_corpus(args.data, config.chunks * config.chunk)
    if args.instruct:
        corpus.own = read_examples(args.instruct, LONGEST * config.chunk)
        longest = max(len(example.context) for example in corpus.own)
        table = [stage.with_own_examples(max(1, longest // config.chunk)) for stage in table]
    settings = run_settings(
        config,
        recipe,
        history=args.history,
        plan=stages(table, args.history, recipe["steps"]),
        data=corpus.digest,
        own=hashlib.sha256(repr(corpus.own).encode()).hexdigest()[:16],
        seed=args.seed,
        bf16=device.type == "cuda" if args.bf16 is None else args.bf16,
        compile=args.compile,
    )
    path, resumed, before = out / "model.pt", None, None
    source = path if args.resume else Path(args.start or f"runs/{args.history}/model.pt")
    if args.resume:
        before = resumed = read_checkpoint(source)
        must_agree(path, resumed.get("settings", {}), settings)
    elif path.exists():
        raise ValueError(
            f"{path} is there already: --resume goes on with it, --out takes another folder"
        )
    elif args.stage == "instruct":
        before = read_checkpoint(source)
        was = before["config"] | before["info"]  # also of weights without settings, to be shared
        must_agree(source, was, asdict(config) | {"history": args.history})
        done, steps = before["info"]["step"], before["info"]["steps"]
        if done < steps:
            raise ValueError(f"{source} was stopped at step {done} of {steps}, expected a whole run")
        if not args.instruct:
            check_examples(corpus, config)

    torch.manual_seed(args.seed)
    model = (restore(before, source) if before else Vist2(config)).to(device)
    out.mkdir(parents=True, exist_ok=True)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {device}, "
        f"{torch.get_num_threads()} threads; {corpus.name}: {len(corpus.train.bytes):,} bytes to "
        f"train on, {len(corpus.held_out.bytes):,} held out"
    )
    began = time.perf_counter()
    seen = before["info"].get("far", 0) if before else 0
    info = train(model, corpus, settings, out, device, resumed, seen)
    report(model, corpus, info)
    if table[-1].recall:
        report_answers(model, corpus, args.history)
    print(f"\n{path} after {(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
