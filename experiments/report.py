"""What experiments share: a parser, tables that come line by line, JSON, the machine, FLOPs."""

import argparse
import functools
import json
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from common import write_file
from console import UserError, warn
from data import Corpus, load_corpus
from vist2 import Vist2


def written(cell: str | int | float) -> str:
    """Four digits, never an exponent."""
    if isinstance(cell, float) and abs(cell) < 1000:
        return np.format_float_positional(cell, 4, unique=False, fractional=False, trim="-")
    return cell if isinstance(cell, str) else f"{cell:,.0f}"


SHARED = {  # options of many programs, as argparse takes them
    "--data": dict(metavar="PATH", help="file or folder; default: Python's standard library"),
    "--device": dict(default="auto", help="auto, cpu, cuda, cuda:1 or mps (%(default)s)"),
    "--json": dict(metavar="PATH", help="write all of it as JSON"),
}


def make_parser(program: str, about: str, *shared: str) -> argparse.ArgumentParser:
    """Of `python -m experiments.program`, whose --help begins with its docstring as it stands.
    shared: those of SHARED that it has."""
    keep = argparse.RawDescriptionHelpFormatter
    name = f"python -m experiments.{program}"
    parser = argparse.ArgumentParser(prog=name, description=about, formatter_class=keep)
    for option in shared:
        parser.add_argument(option, **SHARED[option])
    return parser


def show(title: str, rows: Iterable[dict]) -> list[dict]:
    """Print rows as a Markdown table while they come, and return them all."""
    print(f"\n{title}\n", flush=True)
    kept: list[dict] = []
    for row in rows:
        if not kept:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
        kept.append(row)
        print(f"| {' | '.join(map(written, row.values()))} |", flush=True)
    return kept


def save_json(path: str | Path, content) -> None:
    """Write the whole file or none. Raises OSError."""
    write_file(Path(path), (json.dumps(content, indent=1) + "\n").encode())


load_once = functools.lru_cache(maxsize=1)(load_corpus)  # many checkpoints are tested on one


def load_test_corpus(model: Vist2, info: dict, data: str | None, *, refuse=False) -> Corpus:
    """The corpus that a checkpoint is tested on. Where it was trained on another, warns that the
    held-out files are none to it, or refuses with a UserError. info: as `open_model` has it."""
    corpus = load_once(data, model.config.chunks * model.config.chunk)
    if corpus.digest != info.get("digest"):
        about = f"{info['path']} was trained on {info.get('corpus')}, digest {info.get('digest')}; "
        about += f"here is {corpus.name}, {corpus.digest}, whose held-out files it may have seen"
        if refuse:
            raise UserError(about)
        warn(about)
    return corpus


def long_windows(corpus: Corpus, size: int, count: int) -> Tensor:
    """At most `count` held-out windows of `size` bytes, every k-th from the first on: (count,
    size). Raises UserError if there is none."""
    windows = corpus.held_out.windows(size)
    if not len(windows):
        raise UserError(f"no held-out file of {corpus.name} has {size:,} bytes")
    return windows[:: max(1, len(windows) // count)][:count]


def processor() -> str:
    """The processor's name where Linux tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def this_machine(device: torch.device) -> dict[str, str | int]:
    """What a figure should be read with."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": os.environ.get("GLIBC_TUNABLES") or "as it comes",
    }


def flops(work: Callable[[], object]) -> tuple[int, int]:
    """FLOPs of some work on the meta device: of all, and of attention's scores and sums alone.

    On the CPU torch's counter would miss fused attention.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    counts = counter.get_flop_counts().get("Global", {})  # empty for work without a product
    return sum(counts.values()), counts.get(torch.ops.aten.bmm, 0)
