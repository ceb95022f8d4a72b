"""What global compression saves and what it costs, measured side by side with random weights.

    python -m experiments.bench             reading, writing and training on this machine
    python -m experiments.bench --paper     the paper's sizes, counted on the meta device

Three histories: `full` keeps all text; `prompt` keeps sketches of the prompt's chunks, and what is
written as text; `sketch` (VIST2) keeps sketches of both. Reading and training are medians of
repeats that take turns, after a warm-up; writing and memory are measured once. The rows of a table
are what --json writes and figures.py draws.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cache import GROUP, Session
from common import find_device
from console import UserError, check_range, check_writable, command_line, warn
from experiments.report import flops, make_parser, save_json, show, this_machine
from render import KNOWN_CELLS, parse_cell, render
from vist2 import BYTES, PRESETS, Config, Vist2, loss

SIDES = ("full", "prompt", "sketch")  # the histories that are set side by side
SEGMENT = 512  # bytes: so many are written under one history before the next takes its turn
MARGIN = 1.1  # below, two speeds are level: repeats on a quiet machine differ by as much
MIB = 2**20

# fmt: off
# Decoders in the shapes of Qwen3, encoders in that of ViT-L/16. `mlp` has two matrices where
# Qwen3's SwiGLU has three: 3/2 of its width holds as many weights.
ALIKE = dict(kv_heads=8, head_width=128, rope_base=1e6, chunks=64,
             encoder_width=1024, encoder_layers=24, encoder_heads=16)
PAPER = {
    "0.6B": Config(width=1024, layers=28, heads=16, mlp=3072 * 3 // 2, **ALIKE),
    "1.7B": Config(width=2048, layers=28, heads=16, mlp=6144 * 3 // 2, **ALIKE),
    "4B": Config(width=2560, layers=36, heads=32, mlp=9728 * 3 // 2, **ALIKE),
    "8B": Config(width=4096, layers=36, heads=32, mlp=12288 * 3 // 2, **ALIKE),
}
# To be timed on two cores, with an encoder of 7 % of the decoder; the 4B's is 8 %.
BENCH = Config(width=512, layers=8, heads=8, kv_heads=8, mlp=2048,
               encoder_width=192, encoder_layers=4)
# fmt: on
SIZES = {name: Config.preset(name) for name in PRESETS} | {"bench": BENCH} | PAPER
PAPER_LENGTHS = [2**k for k in range(12, 18)]


# ---------------------------------------------------------------------------------- the work


def make_model(config: Config, device, kind: type[Vist2] = Vist2) -> Vist2:
    torch.manual_seed(0)
    with torch.device(device):
        return kind(config).eval()


def random_text(length: int, device) -> Tensor:
    """(1, length) bytes."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(BYTES, (1, length), generator=rng).to(device)


def prefill(model: Vist2, history: str, text: Tensor) -> Session:
    """Read a prompt, up to the logits of the first byte after it."""
    session = Session(model, 1, history, capacity=text.shape[1] + 2 * model.config.chunk)
    session.prefill(text)
    return session


def train_step(model: Vist2, history: str, text: Tensor) -> None:
    """Forward and backward of language modelling. What the optimizer does is the same for all
    histories; that train.py also reads and spells in each step of `sketch` comes on top."""
    chunks = text.view(1, -1, model.config.chunk)
    loss(model(chunks, history=history), chunks).backward()
    model.zero_grad()


# -------------------------------------------------------------------------------------- time


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(
    device: torch.device, repeats: int, sides: dict[str, Callable], warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each side's repeats, which take turns so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(-warm_up, repeats):
        for name, side in sides.items():
            synchronize(device)
            began = time.perf_counter()
            side()
            synchronize(device)
            if repeat >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def spread(times: dict[str, list[float]]) -> float:
    """Percent: the largest of half the distance from fastest to slowest, over the median."""
    return max(50 * (max(t) - min(t)) / statistics.median(t) for t in times.values())


@torch.inference_mode()
def in_groups(chunks: Tensor, work: Callable) -> None:
    """Some work on chunks (1, N, n), as many at a time as in a prefill."""
    for group in chunks.split(GROUP, dim=1):
        work(group)


def reading(model: Vist2, lengths: list[int], repeats: int) -> Iterator[dict]:
    """Time to the first byte after prompts of some lengths, and what it is spent on."""
    for length in lengths:
        text = random_text(length, model.device)
        chunks = text.view(1, -1, model.config.chunk)
        sides = {history: partial(prefill, model, history, text) for history in SIDES}
        sides["render"] = partial(in_groups, chunks, partial(render, cell=model.config.cell))
        sides["compress"] = partial(in_groups, chunks, model.compress)
        times = timed(model.device, repeats, sides)
        ms = {name: 1000 * statistics.median(t) for name, t in times.items()}
        yield {
            "bytes": length,
            **{f"{history} ms": ms[history] for history in SIDES},
            "= render": ms["render"],
            "+ encoder": ms["compress"] - ms["render"],
            "+ decoder": ms["sketch"] - ms["compress"],
            "full / sketch": ms["full"] / ms["sketch"],
            "spread %": spread({history: times[history] for history in SIDES}),
        }


def writing(model: Vist2, prompt: int, length: int) -> Iterator[dict]:
    """Writing so many bytes after a prompt: speed as the text grows, stalls, and the cache."""
    device, n, sessions = model.device, model.config.chunk, {}
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
    for length in lengths:
        text = random_text(length, model.device)
        sides = {h: partial(train_step, model, h, text) for h in ("full", "sketch")}
        times = timed(model.device, repeats, sides, warm_up=3)
        full, sketch = (statistics.median(times[h]) for h in ("full", "sketch"))
        yield {
            "bytes": length,
            "full B/s": length / full,
            "sketch B/s": length / sketch,
            "sketch / full time": sketch / full,
            "spread %": spread(times),
        }


def break_even(leads: dict[str, float]) -> dict[str, str]:
    """Lengths by the speed of `sketch` over that of `full` there, each on its own."""
    found: dict[str, list[str]] = {"faster": [], "level": [], "slower": []}
    for length, lead in leads.items():
        kind = "faster" if lead > MARGIN else "slower" if lead < 1 / MARGIN else "level"
        found[kind].append(f"{length:,}")
    return {kind: " ".join(lengths) or "never" for kind, lengths in found.items()}


# ------------------------------------------------------------------------------------ memory


def can_measure_peaks(device: torch.device) -> bool:
    unix = importlib.util.find_spec("resource") is not None
    return device.type == "cuda" or (device.type == "cpu" and unix)


def bytes_held(device: torch.device) -> tuple[int, int]:
    """By this process: now, and at most so far. macOS tells the second alone, in place of both."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage would count a parent process too
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return tuple(1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    import resource

    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,) * 2


def peak(work: str, history: str, length: int, size: str, cell: list[int], device: str) -> int:
    """Bytes that some work takes beyond the weights; to be called in a process of its own."""
    do = {"reading": prefill, "training": train_step}[work]
    model = make_model(replace(SIZES[size], cell=tuple(cell)), device)
    do(model, history, random_text(2 * model.config.chunk, device))  # loads libraries
    before, _ = bytes_held(model.device)
    do(model, history, random_text(length, device))
    return bytes_held(model.device)[1] - before


def print_peak() -> None:
    with command_line("bench.py", "--lengths or --size"):
        print(peak(*json.loads(sys.argv[1])))


def fresh_peak(*arguments) -> float:
    """MiB of `peak` in a fresh process. Raises UserError if that process is killed.

    There glibc takes pages for a large tensor when it is made and gives them back when it is
    freed, so that the peak is what was alive at once, and not what else the heap had kept.
    """
    code = "from experiments.bench import print_peak; print_peak()"
    child = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C goes to this process alone, which ends the other
    )
    if child.returncode < 0:  # by the system, as memory ran out
        work, history, length, size, *_ = arguments
        raise UserError(f"{work} {length} bytes as {size} under {history} needs more memory")
    if child.returncode:
        sys.exit(child.returncode)  # it has said why
    return int(child.stdout) / MIB


def memory(work: str, lengths: list[int], *machine) -> Iterator[dict]:
    """Peak memory beyond the weights, each side in a fresh process."""
    for length in lengths:
        full, sketch = (fresh_peak(work, side, length, *machine) for side in ("full", "sketch"))
        saved = 100 * (1 - sketch / full)
        yield {"bytes": length, "full MiB": full, "sketch MiB": sketch, "saved %": saved}


# ----------------------------------------------------------------------------------- counted


class WithoutEncoder(Vist2):
    """Encodes nothing: as every chunk is encoded alone, one that is counted apart tells of all."""

    def compress(self, chunks):
        c = self.config
        return torch.empty(*chunks.shape[:2], c.sketch_tokens, c.width, device="meta")


def count(model: WithoutEncoder, history: str, length: int, encoder: int) -> dict[str, float]:
    """FLOPs of reading a prompt of whole chunks and of writing a byte after it, on the meta
    device, and the cache between. encoder: FLOPs of encoding a chunk.

    Torch counts causal attention as if every query saw every key; "read" counts half of that.
    Writing is the mean over a chunk. Its cost is affine in the entries held, so a chunk's first
    byte, its last but one and its end are enough.
    """
    n, sessions, steps = model.config.chunk, [], []
    text = torch.empty(1, length, dtype=torch.long, device="meta")
    decoder, scores = flops(lambda: sessions.append(prefill(model, history, text)))
    [session] = sessions
    held = {"entries": session.cache_entries, "cache": session.cache_bytes}
    for skipped in (0, n - 3, 0):  # bytes between the ones that are counted
        session.count += skipped
        session.cache.length += skipped
        steps.append(flops(lambda: session.step(text[:, 0]))[0])
    first, last, end = steps
    encoder *= history == "sketch"
    total = decoder + length // n * encoder
    return held | {
        "read": total - scores / 2,
        "torch": total,
        "encoder": length // n * encoder,
        "write": ((n - 1) * (first + last) / 2 + end + encoder) / n,
    }


def count_deep(config: Config, history: str, length: int, encoder: int) -> dict[str, float]:
    """`count` for any depth in little time: every layer adds the same, so the second tells."""
    shallow = [replace(config, layers=layers) for layers in (1, 2)]
    models = [make_model(config, "meta", WithoutEncoder) for config in shallow]
    one, two = (count(model, history, length, encoder) for model in models)
    return {name: one[name] + (config.layers - 1) * (two[name] - one[name]) for name in one}


def encoder_flops(config: Config) -> int:
    """FLOPs of encoding a chunk, counted on the meta device."""
    chunk = torch.empty(1, 1, config.chunk, device="meta")
    return flops(lambda: make_model(config, "meta").compress(chunk))[0]


def counting(config: Config, lengths: list[int]) -> Iterator[dict]:
    """What reading, writing and the cache come to, counted on the meta device."""
    encoder = encoder_flops(config)
    for length in lengths:
        full, sketch = (count_deep(config, side, length, encoder) for side in SIDES[::2])
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


def count_paper(cell: tuple[int, int]) -> dict[str, list[dict]]:
    """The paper's sizes on the meta device, and the paper's own figures."""
    tables = {}
    for name in PAPER:
        config = replace(SIZES[name], cell=cell)
        weights = sum(p.numel() for p in make_model(config, "meta").parameters())
        title = f"{name}: {weights / 1e9:.2f} billion weights, float32 cache"
        tables[name] = show(title, counting(config, PAPER_LENGTHS))

    def span(name: str) -> str:
        values = [row[name] for table in tables.values() for row in table]
        return f"{min(values):.1f} to {max(values):.1f} %"

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


# ------------------------------------------------------------------------------ command line


def check(args: argparse.Namespace, device: torch.device) -> None:
    """Raises UserError for settings that make no sense or cannot fit into memory."""
    if args.size not in SIZES:
        raise UserError(f"--size is {args.size!r}, expected one of {', '.join(SIZES)}")
    config = replace(SIZES[args.size], cell=args.cell)
    check_range("--repeats", args.repeats, 1, 1000)
    multiples = [("--lengths", length, config.chunk) for length in args.lengths]
    for name, value, part in [*multiples, ("--written", args.written, SEGMENT)]:
        check_range(name, value, part)
        if value % part:
            raise UserError(f"{name} is {value}, expected a multiple of {part}")
    weights = sum(p.nbytes for p in make_model(config, "meta").parameters())
    entries = max(max(args.lengths) + SEGMENT, config.chunk + args.written)
    cache = 2 * config.layers * config.kv_heads * config.head_width * 4 * entries
    # a fresh process has weights of its own; writing, `full` and `prompt` each hold a cache
    needed = max(2 * weights + cache, weights + 2 * cache)
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:  # Windows: found out when it happens
        there = needed
    if needed > there:
        raise UserError(
            f"--size {args.size}, --lengths and --written take {needed / 2**30:,.0f} GiB of "
            f"weights and cache alone, here are {there / 2**30:,.0f} GiB"
        )


def measure(args: argparse.Namespace, device: torch.device, tables: dict[str, list]) -> None:
    """All tables of this machine, each put into `tables` when it is whole."""
    machine = (args.size, args.cell, str(device))
    model = make_model(replace(SIZES[args.size], cell=args.cell), device)
    lengths, n = sorted(set(args.lengths)), model.config.chunk
    large = [length for length in lengths if length >= 512]  # below, all is noise
    trained = [length for length in large if length <= 8192]

    def table(name: str, title: str, rows: Iterable[dict]) -> None:
        tables[name] = show(title, rows)

    def peaks(work: str, title: str, lengths: list[int]) -> None:
        if can_measure_peaks(device):
            table(f"{work} memory", title, memory(work, lengths, *machine))
        else:
            warn(f"peak memory of {work}: this system does not tell")

    title = "Reading: ms to the first byte after a prompt; = + + is where sketch spends them"
    table("reading", title, reading(model, lengths, args.repeats))
    peaks("reading", "Reading: peak memory beyond the weights", large)
    table("writing", f"Writing after a prompt of {n} bytes", writing(model, n, args.written))
    table("writing late", "Writing after the longest prompt", writing(model, lengths[-1], SEGMENT))
    title = "Training: forward and backward on one row"
    table("training", title, training(model, trained, args.repeats))
    peaks("training", "Training: peak memory beyond the weights, gradients included", trained)
    table("counted", "Counted: FLOPs and cache", counting(model.config, lengths))
    leads = {
        "reading": {row["bytes"]: row["full / sketch"] for row in tables["reading"]},
        "writing": {row["bytes"]: row["sketch / full"] for row in tables["writing"]},
        "training": {row["bytes"]: 1 / row["sketch / full time"] for row in tables["training"]},
    }
    title = f"Break-even: where one of full and sketch has over {MARGIN} times the other's speed"
    table("break-even", title, ({"at": at} | break_even(lead) for at, lead in leads.items()))


def run(args: argparse.Namespace) -> None:
    check_writable(args.json)
    device = torch.device("meta") if args.paper else find_device(args.device)
    if not args.paper:
        check(args, device)
    machine = this_machine(device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    sizes, tables = PAPER if args.paper else (args.size,), {}
    configs = {name: asdict(replace(SIZES[name], cell=args.cell)) for name in sizes}
    try:
        if args.paper:
            tables |= count_paper(args.cell)
        else:
            measure(args, device, tables)
    except KeyboardInterrupt:
        tables.clear()  # what a whole run has written before stays
        raise
    finally:  # a run without memory for its last table leaves the others
        if args.json and tables:
            content = {"machine": machine, "configs": configs, "seed": 0, "tables": tables}
            save_json(args.json, content)


def main(argv: list[str] | None = None) -> None:
    about = "What global compression saves and costs: full, prompt and sketch."
    parser = make_parser("bench", about, "--device", "--json")
    add = parser.add_argument
    about = "count the paper's sizes instead; only --cell and --json apply"
    add("--paper", action="store_true", help=about)
    add("--size", default="bench", help=f"of the model: {', '.join(SIZES)} (%(default)s)")
    about = f"pixels of a byte, the ratio's dial: {KNOWN_CELLS} (%(default)s)"
    add("--cell", type=parse_cell, default="16x4", help=about)
    about = "of the prompts; training takes those of 512 to 8192 (128 to 16384)"
    default = [2**k for k in range(7, 15)]
    add("--lengths", type=int, nargs="+", default=default, metavar="BYTES", help=about)
    add("--written", type=int, default=4096, help="bytes to write (%(default)s)")
    add("--repeats", type=int, default=3, help="of a timing (%(default)s)")
    args = parser.parse_args(argv)
    with command_line("bench.py", "--lengths or --size"):
        run(args)


if __name__ == "__main__":
    main()
