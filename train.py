"""Train VIST2, or a reference, through the curriculum, on one device.

    python train.py                       the README's model; its corpus needs no download
    python train.py --history none        a reference: sees its own chunk only
    python train.py --history full        a reference: sees all text, a plain GPT
    python train.py --stage instruct      go on from a finished model, with own questions, say
    python train.py --resume              go on where a run stopped, on a CPU bit for bit
"""

import argparse
import contextlib
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common import find_device, lock_folder, read_checkpoint, restore, save_checkpoint, write_file
from console import UserError, check_range, command_line, delay_signals, one_line, warn
from curriculum import DEFAULTS, INSTRUCT_RATE, MAX_OWN_CHUNKS, MAX_STEPS, TABLES
from curriculum import Stage, count_steps, fit_to_corpus, sample_batches, scale_stages
from data import Batch, Corpus, load_corpus
from evaluate import evaluate_briefly, report
from optim import ADAMW_RATE, make_optimizers
from questions import read_examples
from render import KNOWN_CELLS, cell_name, parse_cell
from vist2 import Block, Config, Vist2, loss

TRAINED_HISTORIES = ("sketch", "full", "none")  # "prompt" is for writing
SPELLING = 0.5  # wherever sketches are made, so many times the loss of spelling them is added
SAVE_EVERY = 250  # steps; also evaluates a little, for the log

# ---------------------------------------------------------------------------------- one step


def task_losses(model: Vist2, task: str, history: str, batch: Batch) -> dict[str, Tensor]:
    """Losses of one task in nats per byte, by name, and the share of bytes that are read right."""
    text, openings, weights = (part.to(model.device) for part in batch[:3])
    measured, memory, skip = {}, None, batch.skip
    if task == "text":
        history = "full"
    if history == "sketch":
        seen = text if task == "spelling" else text[:, :-1]  # no one sees the last chunk's sketch
        memory = model.compress(seen)
        measured["spelling"] = loss(model.predict_patch_bytes(memory), seen)
    if task != "spelling":
        logits = model(text, openings, history, memory, skip=skip)
        target = text[:, :1] if task == "reading" else text[:, skip:]  # the copy has faults
        measured[task] = loss(logits, target, weights[:, skip:])
    if task == "reading":
        measured["accuracy"] = (logits.argmax(-1) == target).float().mean()
    return measured


def backward(model: Vist2, batches, settings: "Settings") -> dict[str, float]:
    """Add the gradients of all tasks of one step. Returns the losses in bits per byte and the
    accuracy of reading. Many tasks spell: the loss is that of the last one."""
    log = {}
    for task, share, batch in batches:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
            measured = task_losses(model, task, settings.history, batch)
        scale = {"spelling": SPELLING, task: 1.0}  # the task of spelling counts in full
        total = sum(scale[name] * nats for name, nats in measured.items() if name in scale)
        (share * total).backward()
        log |= {name: value.detach() for name, value in measured.items()}
    return {k: v.item() / (1 if k == "accuracy" else math.log(2)) for k, v in log.items()}


def compile_blocks(model: Vist2) -> None:
    """Compile all of each block but attention, where every plan would be a graph of its own."""
    torch._dynamo.config.recompile_limit = 32  # encoder, decoder, training or not, one row or more
    for block in model.modules():
        if isinstance(block, Block):
            block.feed_forward = torch.compile(block.feed_forward, dynamic=True)
            block.attention.project = torch.compile(block.attention.project, dynamic=True)


# -------------------------------------------------------------------------------- a whole run


def option(default, about: str, **how):
    """A field of Settings, and an option of the command line: how argparse takes it."""
    return field(default=default, metadata={"help": about} | how)


def by_preset(name: str, about: str) -> str:
    values = (f"{default[name]} for {preset}" for preset, default in DEFAULTS.items())
    return f"{about}; default: {', '.join(values)}"


BOOL = argparse.BooleanOptionalAction


@dataclass(frozen=True)
class Settings:
    """One run: made from the command line, saved in its checkpoint, compared at a resume."""

    preset: str = option("tiny", "size of the model", choices=DEFAULTS)
    history: str = option("sketch", "how finished chunks are kept", choices=TRAINED_HISTORIES)
    cell: tuple = option((16, 4), f"pixels of a byte: {KNOWN_CELLS}", type=parse_cell)
    merge: int = option(1, "patches in a sketch token", type=int)
    chunk: int = option(64, "bytes in a chunk", type=int)
    stage: str = option("curriculum", "instruct goes on from a finished model", choices=TABLES)
    steps: int | None = option(None, "about so many in all; default: the stage's", type=int)
    batch_bytes: int | None = option(None, by_preset("batch_bytes", "for a share of 1"), type=int)
    lr: float | None = option(None, by_preset("lr", "Muon's rate"), type=float)
    seed: int = option(0, "of weights and batches", type=int)
    bf16: bool | None = option(None, "autocast to bfloat16; default: on CUDA", action=BOOL)
    compile: bool = option(False, "torch.compile, all of a block but attention", action=BOOL)
    data: str | None = option(None, "file or folder; default: Python's standard library")
    instruct: str | None = option(None, "JSONL: context, prompt and response of own examples")
    start: str | None = option(None, "what instruct begins from; default: runs/HISTORY/model.pt")
    out: str | None = option(None, "folder; default: runs/HISTORY, or runs/HISTORY-instruct")
    resume: bool = option(False, "go on with the run in --out", action="store_true")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps")

    def resolve(self) -> "Settings":
        """What was not said, filled in. Raises UserError for what makes no sense."""
        instruct = self.stage == "instruct"
        if not instruct and (self.start, self.instruct) != (None, None):
            raise UserError("--start and --instruct are for --stage instruct")
        usual = DEFAULTS[self.preset] | {
            "steps": count_steps(TABLES[self.stage]),
            "bf16": find_device(self.device).type == "cuda",
            "out": f"runs/{self.history}" + "-instruct" * instruct,
            "start": f"runs/{self.history}/model.pt",
        }
        usual["lr"] *= INSTRUCT_RATE if instruct else 1
        given = {name: getattr(self, name) for name in usual if getattr(self, name) is not None}
        settings = replace(self, **usual | given)
        check_range("--steps", settings.steps, 1, MAX_STEPS)
        check_range("--batch-bytes", settings.batch_bytes, 1, 2**30)
        check_range("--lr", settings.lr, 1e-9, 1e3)
        check_range("--seed", settings.seed, 0, 2**63 - 1)
        if self.data and Path(settings.out).resolve().is_relative_to(Path(self.data).resolve()):
            raise UserError(f"--out {settings.out} lies in --data {self.data}, expected outside it")
        return settings

    @property
    def config(self) -> Config:
        return Config.preset(self.preset, chunk=self.chunk, cell=self.cell, merge=self.merge)

    def record(self, corpus: Corpus, stages: list[Stage]) -> dict:
        """All that the weights depend on, as plain types."""
        left_out = ("data", "instruct", "start", "out", "resume", "device")
        chosen = {name: value for name, value in asdict(self).items() if name not in left_out}
        own = hashlib.sha256(repr(corpus.own_examples).encode()).hexdigest()[:16]
        table = [asdict(stage) for stage in stages]
        constants = {"spelling": SPELLING, "adamw": ADAMW_RATE, "curriculum": table}
        return chosen | {"data": corpus.digest, "instruct": own} | constants


def rate(step: int, steps: int) -> float:
    """Of the full learning rate at a step: 20 steps up, flat, the last 40 % down to 2 %."""
    return min(1.0, (step + 1) / 20, 0.02 + 0.98 * (steps - step) / (0.4 * steps))


def train(
    model: Vist2, corpus: Corpus, settings: Settings, stages, out: Path, start=None, resumes=False
) -> dict:
    """Run the stages, or what is left of them; return the info of the last checkpoint. A Ctrl-C or
    the like ends the run after its step and saves it. A second Ctrl-C raises KeyboardInterrupt; the
    steps since the last checkpoint are lost.

    start: the checkpoint that the model comes from, if any. resumes: whether its run goes on.
    Writes out/model.pt and out/log.jsonl. Raises UserError for a loss that is not finite, the last
    good checkpoint as it was.
    """
    plan = [stage for stage in stages for _ in range(stage.steps)]
    language_steps = list(accumulate((bool(stage.language) for stage in plan), initial=0))
    optimizers, record = make_optimizers(model, settings.lr), settings.record(corpus, stages)
    info = dict(start["info"]) if start else {"max_window": 0, "max_context": 0}  # bytes
    if resumes:
        for optimizer, state in zip(optimizers, start["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    else:
        info |= {"step": 0, "steps": len(plan), "history": settings.history}
        info |= {"seed": settings.seed, "corpus": corpus.name, "digest": corpus.digest}
    if settings.compile:
        compile_blocks(model)
    saved, shown = info["step"], {}
    with (
        lock_folder(out),
        open_log(out / "log.jsonl", saved) as log,
        tqdm(total=len(plan), initial=saved, unit="step") as bar,
        delay_signals() as signals,
    ):
        while info["step"] < len(plan) and not signals:
            step, stage = info["step"], plan[info["step"]]
            for optimizer, share in zip(optimizers, (1, ADAMW_RATE), strict=True):
                optimizer.param_groups[0]["lr"] = share * settings.lr * rate(step, len(plan))
            batches = list(
                sample_batches(stage, model.config, corpus, settings, step, language_steps[step])
            )
            losses = backward(model, batches, settings)
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            check_finite(losses | {"grad_norm": grad_norm}, step, saved)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

            info["step"] = step + 1
            contexts = [batch.longest_context for _, _, batch in batches]
            info["max_context"] = max(info["max_context"], *contexts)
            window = stage.windows * corpus.train.window if stage.language else 0
            info["max_window"] = max(info["max_window"], window)
            line = {"step": step + 1, "stage": stage.name, "grad_norm": grad_norm} | losses
            line = {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
            if save_now := info["step"] % SAVE_EVERY == 0:
                recalls = bool(stage.recall)
                with contextlib.suppress(BrokenPipeError):
                    bar.set_description("evaluating")
                    line["held out"] = evaluate_briefly(model, corpus, settings.history, recalls)
            log.write(json.dumps(line) + "\n")
            log.flush()  # before the checkpoint: a log may run ahead of it, never fall behind
            if save_now:
                save_run(out, model, info, record, optimizers)
                saved = info["step"]
            bar.set_description(stage.name, refresh=False)
            shown |= {k: 0.95 * shown.get(k, v) + 0.05 * v for k, v in losses.items()}
            bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)
            try:
                bar.update()
            except BrokenPipeError:  # as when Ctrl-C ends the tee of `2>&1 | tee`, too
                break
        if saved < info["step"]:
            save_run(out, model, info, record, optimizers)
    return info


def check_finite(measured: dict[str, float], step: int, saved: int) -> None:
    if not math.isfinite(sum(measured.values())):
        advice = "expected a lower --lr in another --out, perhaps"
        left = f"the checkpoint of step {saved} stands" if saved else "nothing was saved"
        raise UserError(f"not finite at step {step + 1}: {measured}; {advice}; {left}")


def save_run(out: Path, model: Vist2, info: dict, record: dict, optimizers) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    save_checkpoint(out / "model.pt", model, info, settings=record, optimizers=states)


def open_log(path: Path, step: int):
    """The log, open for lines after `step`; those that no checkpoint stands behind are dropped,
    and those that a power cut has torn."""
    kept = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
    write_file(path, b"".join(kept))
    return path.open("a")


# ------------------------------------------------------------------------------ command line


def parse(argv: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser(description="Train VIST2, or a reference.")
    for f in fields(Settings):
        default = cell_name(f.default) if f.name == "cell" else f.default
        shown = "" if default is None or default is False else f" ({default})"
        how = dict(f.metadata, help=f.metadata["help"] + shown, default=f.default)
        parser.add_argument(f"--{f.name.replace('_', '-')}", **how)
    return Settings(**vars(parser.parse_args(argv)))


def check_equal(path: Path, before: dict, now: dict) -> None:
    """Raises UserError if a checkpoint was made under other settings."""
    for name, value in now.items():
        if (was := before.get(name)) != value:
            raise UserError(f"cannot go on from {path}: {name} was {was}, now it is {value}")


def read_start(settings: Settings, record: dict) -> tuple[dict | None, Path]:
    """The checkpoint that a run begins from, if any, and where it lies. Raises UserError."""
    path = Path(settings.out) / "model.pt"
    if settings.resume:
        content = read_checkpoint(path)
        check_equal(path, content.get("settings", {}), record)
        return content, path
    if path.exists():
        raise UserError(f"{path} is there: --resume goes on with it, --out takes another folder")
    if settings.stage == "curriculum":
        return None, path
    path = Path(settings.start)
    content = read_checkpoint(path)
    info = content["info"]
    check_equal(path, info, {"history": settings.history})
    if info["step"] < info["steps"]:
        stopped = f"{path} was stopped at step {info['step']} of {info['steps']}"
        raise UserError(f"{stopped}, expected a whole run")
    return content, path


def run(settings: Settings) -> None:
    settings = settings.resolve()
    config, device, out = settings.config, find_device(settings.device), Path(settings.out)
    corpus = load_corpus(settings.data, config.chunks * config.chunk)
    table = TABLES[settings.stage]
    if settings.instruct is not None:
        corpus.own_examples = read_examples(settings.instruct, MAX_OWN_CHUNKS * config.chunk)
        table = tuple(stage.with_own_examples() for stage in table)
    stages = scale_stages(table, settings.history, settings.steps)
    stages = fit_to_corpus(stages, config, corpus.train)
    start, path = read_start(settings, settings.record(corpus, stages))

    torch.manual_seed(settings.seed)
    model = (restore(start, path) if start else Vist2(config)).to(device)
    check_equal(path, asdict(model.config), asdict(config))  # --start may hold another
    out.mkdir(parents=True, exist_ok=True)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {device}, "
        f"{torch.get_num_threads()} threads; {corpus.name}: {len(corpus.train.bytes):,} bytes to "
        f"train on, {len(corpus.held_out.bytes):,} held out"
    )
    began = time.perf_counter()
    info = train(model, corpus, settings, stages, out, start, settings.resume)
    if info["step"] < info["steps"]:
        again = ": the same command with --resume goes on" if info["step"] else ""
        warn(f"stopped at step {info['step']:,} of {info['steps']:,}{again}")
        raise KeyboardInterrupt
    print("all steps are saved; evaluating on all held-out files ...", flush=True)
    report(model, corpus, info)
    print(f"\n{one_line(f'{out}/model.pt')} after {(time.perf_counter() - began) / 60:.1f} minutes")


def main(argv: list[str] | None = None) -> None:
    settings = parse(argv)
    with command_line("train.py", "--batch-bytes or --data"):
        run(settings)


if __name__ == "__main__":
    main()
