"""What global compression saves and what it costs, measured side by side with random weights.

    python bench.py                     reading, writing and training on this machine
    python bench.py --paper             the paper's sizes, counted on the meta device

Three histories: `full` keeps all text; `prompt` keeps sketches of the prompt's chunks, and what is
written as text; `sketch` (VIST2) keeps sketches of both. Reading and training are medians of
repeats that take turns, after a warm-up; writing and memory are measured once. The default shape
has the proportions of the paper's larger models: a decoder much larger than its encoder. Rows of
a table are what --json writes and figures.py draws.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from generate import GROUP, SIDES, Session, check_writable, errors_in_one_line, find_device
from render import parse_cell, render
from vist2 import BYTES, Config, Vist2, loss

PAPER = ("0.6B", "1.7B", "4B", "8B")
PAPER_LENGTHS = [2**k for k in range(12, 18)]
SEGMENT = 512  # bytes: so many are written under one history before the next takes its turn
MIB = 2**20


# ---------------------------------------------------------------------------------- the work


def make_model(preset: str, cell: tuple[int, int], device: str) -> Vist2:
    torch.manual_seed(0)
    with torch.device(device):
        return Vist2(Config.preset(preset, cell=cell)).eval()


def random_text(length: int, device) -> torch.Tensor:
    """(1, length) bytes."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(BYTES, (1, length), generator=rng).to(device)


def prefill(model: Vist2, history: str, text: torch.Tensor, sketches=None) -> Session:
    """Read a prompt, up to the logits of the first byte after it; see Session.prefill."""
    session = Session(model, 1, history, capacity=text.shape[1] + 2 * model.config.chunk)
    session.prefill(text, memory=sketches)
    return session


def train_step(model: Vist2, history: str, text: torch.Tensor) -> None:
    """Forward and backward of language modelling. What the optimizer does is the same for all
    histories; that train.py also reads and spells in each step of `sketch` comes on top."""
    chunks = text.view(1, -1, model.config.chunk)
    loss(model(chunks, history=history), chunks).backward()
    model.zero_grad()


# ------------------------------------------------------------------------------ time, memory


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def timed(
    device: torch.device, repeats: int, sides: dict[str, Callable], warm_up: int = 1
) -> dict[str, list]:
    """Seconds of each side's repeats, which take turns so that all meet the same machine."""
    times: dict[str, list] = {name: [] for name in sides}
    for repeat in range(-warm_up, repeats):
        for name, side in sides.items():
            synchronize(device)
            began = time.perf_counter()
            side()
            synchronize(device)
            if repeat >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def spread(times: dict[str, list]) -> float:
    """Percent: the largest of half the distance from fastest to slowest, over the median."""
    return max(50 * (max(t) - min(t)) / statistics.median(t) for t in times.values())


def high_water(device: torch.device) -> int:
    """The most bytes that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage would count a parent process too
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def peak(work: Callable, history: str, length: int, preset: str, cell, device: str) -> int:
    """Bytes that some work takes beyond the weights; to be called in a process of its own."""
    model = make_model(preset, cell, device)
    work(model, history, random_text(2 * model.config.chunk, device))  # libraries, gradients
    before = high_water(torch.device(device))
    work(model, history, random_text(length, device))
    return high_water(torch.device(device)) - before


def fresh_peak(*arguments) -> float:
    """MiB of `peak` in a fresh process. Raises ValueError if that process is killed.

    There glibc takes pages for a large tensor when it is made and gives them back when it is
    freed, so that the peak is what was alive at once, and not what else the heap had kept.
    """
    before = os.environ.get("GLIBC_TUNABLES", "")
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.mmap_threshold=1048576"
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(peak, *arguments).result() / MIB
    except BrokenProcessPool:
        _, history, length, preset, *_ = arguments
        raise ValueError(
            f"history {history} of preset {preset} at {length} bytes does not fit into memory"
        ) from None
    finally:
        os.environ["GLIBC_TUNABLES"] = before


# -------------------------------------------------------------------------------- the tables


@torch.inference_mode()
def in_groups(chunks: torch.Tensor, work: Callable) -> None:
    """Some work on chunks, as many at a time as in a prefill."""
    for group in chunks.split(GROUP, dim=1):
        work(group)


def reading(model: Vist2, lengths: list[int], repeats: int) -> Iterator[dict]:
    """Time to the first byte after prompts of some lengths, and what it is spent on."""
    device, config = model.decoder.head.weight.device, model.config
    for length in lengths:
        text = random_text(length, device)
        chunks = text.view(1, -1, config.chunk)
        sides = {history: partial(prefill, model, history, text) for history in SIDES}
        sides["render"] = partial(in_groups, chunks, partial(render, cell=config.cell))
        sides["remember"] = partial(in_groups, chunks, model.remember)
        times = timed(device, repeats, sides)
        ms = {name: 1000 * statistics.median(t) for name, t in times.items()}
        yield {
            "bytes": length,
            **{f"{history} ms": ms[history] for history in SIDES},
            "= render": ms["render"],
            "+ encoder": ms["remember"] - ms["render"],
            "+ decoder": ms["sketch"] - ms["remember"],
            "full / sketch": ms["full"] / ms["sketch"],
            "spread %": spread({history: times[history] for history in SIDES}),
        }


def memory(work: Callable, lengths: list[int], *machine) -> Iterator[dict]:
    """Peak memory beyond the weights, each side in a fresh process."""
    for length in lengths:
        full, sketch = (
            fresh_peak(work, history, length, *machine) for history in ("full", "sketch")
        )
        yield {
            "bytes": length,
            "full MiB": full,
            "sketch MiB": sketch,
            "saved %": 100 * (1 - sketch / full),
        }


def writing(model: Vist2, prompt: int, length: int) -> Iterator[dict]:
    """Writing so many bytes after a prompt: speed as the text grows, stalls, and the cache."""
    device, n = model.decoder.head.weight.device, model.config.chunk
    sessions = {}
    for history in SIDES:
        for warm_up in (True, False):
            session = Session(model, 1, history, capacity=prompt + length + n)
            session.prefill(random_text(prompt, device))
            for byte in random_text(n, device).T if warm_up else ():
                session.step(byte)
        sessions[history] = session
    synchronize(device)
    text = random_text(length, device)[0]
    for start in range(0, length, SEGMENT):
        row = {}
        for history, session in sessions.items():
            steps, most = [], 0
            for byte in text[start : start + SEGMENT, None]:
                began = time.perf_counter()
                session.step(byte)
                synchronize(device)
                steps.append(1000 * (time.perf_counter() - began))
                most = max(most, session.cache_entries)
            row |= {
                f"{history} B/s": 1000 * len(steps) / sum(steps),
                f"{history} p50 ms": statistics.median(steps),
                f"{history} p99 ms": statistics.quantiles(steps, n=100)[98],
                f"{history} entries": session.cache_entries,
                f"{history} most": most,
            }
        kinds = (" B/s", " p50 ms", " p99 ms", " entries", " most")
        yield {
            "bytes": session.count,
            "sketch / full": row["sketch B/s"] / row["full B/s"],
            **{history + kind: row[history + kind] for kind in kinds for history in SIDES},
        }


def training(model: Vist2, lengths: list[int], repeats: int) -> Iterator[dict]:
    """A training step on one row of text, forward and backward.

    The C library's allocator takes some steps until it hands out the same memory again.
    """
    device = model.decoder.head.weight.device
    for length in lengths:
        text = random_text(length, device)
        sides = {h: partial(train_step, model, h, text) for h in ("full", "sketch")}
        times = timed(device, repeats, sides, warm_up=3)
        full, sketch = (statistics.median(times[h]) for h in ("full", "sketch"))
        yield {
            "bytes": length,
            "full B/s": length / full,
            "sketch B/s": length / sketch,
            "sketch / full time": sketch / full,
            "spread %": spread(times),
        }


def flops(work: Callable) -> tuple[int, int]:
    """FLOPs of some work on the meta device, all and those of attention scores and sums."""
    with FlopCounterMode(display=False) as counter:
        work()
    counts = counter.get_flop_counts().get("Global", {})  # nothing at all for gist
    return sum(counts.values()), counts.get(torch.ops.aten.bmm, 0)


def count(model: Vist2, history: str, length: int) -> dict[str, float]:
    """FLOPs of reading a prompt and of writing a byte after it, on the meta device.

    Torch counts causal attention as if every query saw every key; "read" counts half of that.
    The encoder takes each chunk alone, so one is counted for all. Writing is the mean over a
    chunk. Its cost is affine in the entries held, so a chunk's first byte, its last but one and
    its end are enough.
    """
    n, m = model.config.chunk, model.config.chunk // model.config.ratio
    text = torch.empty(1, length, dtype=torch.long, device="meta")
    encoder, sketches = 0, None
    if history == "sketch":
        encoder = length // n * flops(lambda: model.remember(text[:, None, :n]))[0]
        sketches = torch.empty(1, length // n, m, model.config.width, device="meta")
    sessions = []
    decoder, scores = flops(lambda: sessions.append(prefill(model, history, text, sketches)))
    [session] = sessions
    entries, cache = session.cache_entries, session.cache_bytes
    steps = []
    for skipped in (0, n - 3, 0):  # bytes between the ones that are counted
        session.count += skipped
        session.entries += skipped
        steps.append(flops(lambda: session.step(text[:, 0]))[0])
    first, last, end = steps
    return {
        "read": encoder + decoder - scores / 2,
        "torch": encoder + decoder,
        "encoder": encoder,
        "write": ((n - 1) * (first + last) / 2 + end) / n,
        "entries": entries,
        "cache": cache,
    }


def count_deep(config: Config, history: str, length: int) -> dict[str, float]:
    """`count` for any depth in little time: every layer adds the same, so the second tells."""

    def at(layers: int, encoder_layers: int) -> dict[str, float]:
        with torch.device("meta"):
            model = Vist2(replace(config, layers=layers, encoder_layers=encoder_layers)).eval()
        return count(model, history, length)

    one, decoder, encoder = at(1, 1), at(2, 1), at(1, 2)
    return {
        name: value
        + (config.layers - 1) * (decoder[name] - value)
        + (config.encoder_layers - 1) * (encoder[name] - value)
        for name, value in one.items()
    }


def counting(config: Config, lengths: list[int]) -> Iterator[dict]:
    """What reading, writing and the cache come to, counted on the meta device."""
    for length in lengths:
        full, sketch = (count_deep(config, history, length) for history in ("full", "sketch"))
        yield {
            "bytes": length,
            "full GFLOP": full["read"] / 1e9,
            "sketch GFLOP": sketch["read"] / 1e9,
            "of it encoder": sketch["encoder"] / 1e9,
            "saved %": 100 * (1 - sketch["read"] / full["read"]),
            "as torch counts %": 100 * (1 - sketch["torch"] / full["torch"]),
            "full MFLOP/byte written": full["write"] / 1e6,
            "sketch MFLOP/byte written": sketch["write"] / 1e6,
            "full entries": full["entries"],
            "sketch entries": sketch["entries"],
            "full cache MiB": full["cache"] / MIB,
            "sketch cache MiB": sketch["cache"] / MIB,
            "cache saved %": 100 * (1 - sketch["cache"] / full["cache"]),
        }


# ------------------------------------------------------------------------------ command line


def written(cell: str | int | float) -> str:
    """Four digits, never an exponent."""
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return cell if isinstance(cell, str) else f"{cell:,}"


def show(title: str, rows: Iterator[dict]) -> list[dict]:
    """Print rows as a Markdown table while they come."""
    print(f"\n{title}\n", flush=True)
    kept: list[dict] = []
    for row in rows:
        if not kept:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
        kept.append(row)
        print(f"| {' | '.join(map(written, row.values()))} |", flush=True)
    return kept


def save_json(path: Path, content: dict) -> None:
    """Write the whole file or none."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def wins_from(rows: list[dict], better: Callable[[dict], bool]) -> int:
    """The least length from which on a row is better, 0 if the last is not."""
    wins = 0
    for row in reversed(rows):
        if not better(row):
            break
        wins = row["bytes"]
    return wins


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for settings that make no sense or cannot fit into memory."""
    check_writable(args.json)
    if args.paper:
        return
    config = Config.preset(args.preset, cell=args.cell)
    for name, values, part in (
        ("lengths", args.lengths, config.chunk),
        ("written", [args.written], SEGMENT),
        ("repeats", [args.repeats], 1),
    ):
        for value in values:
            if value < 1 or value % part:
                raise ValueError(f"--{name} is {value}, expected {part} or a multiple of it")
    with torch.device("meta"):
        weights = sum(p.nbytes for p in Vist2(config).parameters())
    entries = max(max(args.lengths) + SEGMENT, config.chunk + args.written)
    cache = 2 * config.layers * config.kv_heads * config.head_width * 4 * entries
    # a fresh process has weights of its own; writing, `full` and `prompt` each hold a cache
    needed = max(2 * weights + cache, weights + 2 * cache)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"preset {args.preset} at {max(args.lengths)} bytes takes {needed / 2**30:.0f} GiB of "
            f"weights and cache alone, this machine has {there / 2**30:.0f} GiB"
        )


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, list[dict]]:
    """All tables of this machine."""
    machine = (args.preset, args.cell, device.type)
    model = make_model(*machine)
    lengths = sorted(set(args.lengths))
    large = [length for length in lengths if length >= 512]  # below, all is noise
    trained = [length for length in large if length <= 8192]
    tables = {
        "reading": show(
            "Reading: ms to the first byte after a prompt; = + + is where sketch spends them",
            reading(model, lengths, args.repeats),
        ),
        "reading memory": show(
            "Reading: peak memory alive beyond the weights", memory(prefill, large, *machine)
        ),
        "writing": show(
            f"Writing after a prompt of {model.config.chunk} bytes",
            writing(model, model.config.chunk, args.written),
        ),
        "writing late": show(
            "Writing after the longest prompt", writing(model, lengths[-1], SEGMENT)
        ),
        "training": show(
            "Training: forward and backward on one row", training(model, trained, args.repeats)
        ),
        "training memory": show(
            "Training: peak memory alive beyond weights and gradients",
            memory(train_step, trained, *machine),
        ),
        "counted": show(
            "Counted: FLOPs and cache",
            counting(model.config, lengths),
        ),
    }
    even = {
        "reading": wins_from(tables["reading"], lambda row: row["full / sketch"] > 1),
        "writing": wins_from(tables["writing"], lambda row: row["sketch / full"] > 1),
        "training": wins_from(tables["training"], lambda row: row["sketch / full time"] < 1),
    }
    tables["break-even"] = show(
        "Break-even: sketch is faster than full from this length on, 0 for never",
        ({"at": at, "bytes": length} for at, length in even.items()),
    )
    return tables


def count_paper(cell: tuple[int, int]) -> dict[str, list[dict]]:
    """The paper's sizes on the meta device, and the paper's own figures."""
    tables = {}
    for preset in PAPER:
        model = make_model(preset, cell, "meta")
        parts = (model.encoder, model.aligner, model.decoder)  # spelling is for training only
        weights = sum(p.numel() for part in parts for p in part.parameters()) / 1e9
        title = f"{preset}: {weights:.2f} billion weights, float32 cache"
        tables[preset] = show(title, counting(model.config, PAPER_LENGTHS))
    rows = [row for table in tables.values() for row in table]
    span = lambda name: f"{min(r[name] for r in rows):.1f} to {max(r[name] for r in rows):.1f} %"
    print(
        "\nThe paper, at 4x, measured on its models: first token 3x faster, memory 77 % less,\n"
        "FLOPs 74 % fewer. Here, counted and not measured, over the sizes and lengths above:\n"
        f"  FLOPs of reading   {span('saved %')} fewer, the encoder counted in, causal attention\n"
        f"                     as half; {span('as torch counts %')} as torch counts it\n"
        f"  cache              {span('cache saved %')} less; weights come on top on both sides,\n"
        "                     so that a whole process saves less\n"
        "  first token        not measured here"
    )
    return tables


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="What global compression saves and costs: full, prompt and sketch.",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="count the paper's sizes instead; only --cell and --json apply",
    )
    parser.add_argument("--preset", default="bench", help="sizes of the model (%(default)s)")
    parser.add_argument(
        "--cell",
        type=parse_cell,
        default="16x4",
        help="pixels of a byte, the ratio's dial: 16x8, 16x4, 8x4, 4x4 (%(default)s)",
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[2**k for k in range(7, 15)],
        metavar="BYTES",
        help="of the prompts; training takes those of 512 to 8192 (128 to 16384)",
    )
    parser.add_argument("--written", type=int, default=4096, help="bytes to write (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of a timing (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    parser.add_argument("--json", metavar="PATH", help="write all tables as JSON")
    args = parser.parse_args(argv)
    try:
        with errors_in_one_line("bench.py", "--lengths or --preset"):
            run(args)
    except KeyboardInterrupt:
        sys.exit(130)


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
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": os.environ.get("GLIBC_TUNABLES") or "as it comes",
    }


def run(args: argparse.Namespace) -> None:
    device = torch.device("meta") if args.paper else find_device(args.device)
    check(args)
    machine = this_machine(device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    tables = count_paper(args.cell) if args.paper else measure(args, device)
    if args.json:
        presets = PAPER if args.paper else (args.preset,)
        configs = {name: asdict(Config.preset(name, cell=args.cell)) for name in presets}
        content = {"machine": machine, "configs": configs, "seed": 0, "tables": tables}
        save_json(Path(args.json), content)


if __name__ == "__main__":
    main()
