"""What training a preset takes, counted on the meta device: without a GPU, without the memory.

    python -m experiments.dryrun                    of `small`
    python -m experiments.dryrun --preset tiny

Of each stage of the curriculum some steps are sampled as train.py samples them. FLOPs are those of
forward and backward. Kept is what autograd holds at most for the backward pass of a task, attention
as in a kernel that keeps its inputs and its output, but no scores. Not counted: what a backward
pass takes on top, what the optimizer takes for its step, what an allocator loses.
"""

import contextlib
from collections.abc import Iterator, ValuesView
from unittest import mock

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

import vist2
from console import check_range, check_writable, command_line
from curriculum import CURRICULUM, fit_to_corpus, sample_batches, scale_stages
from data import Batch, Corpus, load_corpus
from experiments.report import flops, make_parser, save_json, show, written
from mask import Plan, plan_forward
from optim import make_optimizers
from train import TRAINED_HISTORIES, Settings, task_losses
from vist2 import PRESETS, Vist2

GIB = 2**30
same = lambda x: x


@contextlib.contextmanager
def counting_kept(model: Vist2) -> Iterator[ValuesView[torch.UntypedStorage]]:
    """What autograd keeps of all that the model computes inside, each storage once, no weights."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}
    attention = F.scaled_dot_product_attention

    def keep(x):
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return x

    def attend(*qkv, **how):
        with saved_tensors_hooks(same, same):  # of its scores nothing is counted
            out = attention(*qkv, **how)
        for x in (*qkv, out):
            keep(x)
        return out

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(vist2, "plan_forward", plan_on_cpu),
        mock.patch.object(model.encoder, "attends", [attend] * len(model.encoder.attends)),
        saved_tensors_hooks(keep, same),
    ):
        yield kept.values()


def plan_on_cpu(*how) -> Plan:
    """`plan_forward`, but where tokens see each other is found out on the CPU: meta has no data."""
    *shape_and_rule, device = how
    plan, move = plan_forward(*shape_and_rule, torch.device("cpu")), lambda part: part.to(device)
    blocks = plan.blocks and [(move(keys), move(mask)) for keys, mask in plan.blocks]
    return Plan(move(plan.positions), move(plan.previous), blocks, move(plan.outputs))


def count_task(model: Vist2, history: str, task: str, batch: Batch) -> tuple[int, int]:
    """(FLOPs, bytes kept) of a task's forward and backward; see train.backward."""
    sizes = []

    def work():
        with counting_kept(model) as kept:
            losses = task_losses(model, task, history, batch)
        sizes.append(sum(storage.nbytes() for storage in kept))
        sum(value for name, value in losses.items() if name != "accuracy").backward()

    return flops(work)[0], *sizes


def stage_rows(model: Vist2, settings: Settings, corpus: Corpus, samples: int) -> Iterator[dict]:
    stages = scale_stages(CURRICULUM, settings.history, settings.steps)
    for stage in fit_to_corpus(stages, model.config, corpus.train):
        batches = (
            batch
            for step in range(samples)
            for batch in sample_batches(stage, model.config, corpus, settings, step, step)
        )
        counted = [count_task(model, settings.history, task, batch) for task, _, batch in batches]
        work, kept = zip(*counted)
        yield {
            "stage": stage.name,
            "steps": stage.steps,
            "TFLOP a step": sum(work) / samples / 1e12,
            "GiB kept": max(kept) / GIB,
        }


def count_weights(model: Vist2) -> dict:
    """GiB of float32 that a run holds all the time."""
    muon, adamw = (
        sum(p.numel() for p in optimizer.param_groups[0]["params"])
        for optimizer in make_optimizers(model, 1.0)
    )
    return {
        "weights": muon + adamw,
        "GiB of weights": 4 * (muon + adamw) / GIB,
        "of gradients": 4 * (muon + adamw) / GIB,
        "of Muon and AdamW": 4 * (muon + 2 * adamw) / GIB,
    }


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("dryrun", __doc__, "--data", "--json")
    add = parser.add_argument
    add("--preset", default="small", choices=PRESETS, help="(%(default)s)")
    add("--history", default="sketch", choices=TRAINED_HISTORIES, help="(%(default)s)")
    add("--samples", type=int, default=4, help="steps of each stage (%(default)s)")
    args = parser.parse_args(argv)
    with command_line("dryrun.py", "--data"):
        check_range("--samples", args.samples, 1, 1000)
        check_writable(args.json)
        settings = Settings(preset=args.preset, history=args.history, device="cpu").resolve()
        config = settings.config
        corpus = load_corpus(args.data, config.chunks * config.chunk)
        with torch.device("meta"):
            model = Vist2(config)
        tables = {"held": show(f"{args.preset}: what a run holds", [count_weights(model)])}
        title = f"{args.preset}, history {args.history}, {settings.batch_bytes:,} bytes a step"
        tables["stages"] = show(title, stage_rows(model, settings, corpus, args.samples))
        whole = sum(row["steps"] * row["TFLOP a step"] for row in tables["stages"]) / 1000
        print(f"\n{written(whole)} PFLOP in all")
        if args.json:
            save_json(args.json, tables | {"PFLOP": whole})


if __name__ == "__main__":
    main()
