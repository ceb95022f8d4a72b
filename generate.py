"""Write on, answer and read back, with a past that is kept as sketches.

    python generate.py --prompt "def " --watch --stats
    python generate.py --read README.md
    python generate.py --ask xi --context docs/facts.txt
"""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cache import GROUP, Session
from common import CHECKPOINT, WEIGHTS, find_device, open_model
from console import ByteWriter, UserError, check_range, command_line
from console import one_line, printable, read_file, warn
from questions import STOP, question_prompt, refuse_roles
from render import PAGE, half_blocks, render
from vist2 import BYTES, HISTORIES, READ, Config, Vist2


# ------------------------------------------------------------------------------------ sampling


def sample(logits: Tensor, temperature: float, top_k: int | None, rng) -> Tensor:
    """The next byte of each row of (B, 256) logits: the likeliest at temperature 0, or drawn."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.cpu().double()  # MPS has no float64
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # stays finite near zero
    if top_k:
        least = logits.topk(min(top_k, BYTES)).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=rng)[:, 0]


def write(
    session: Session, logits: Tensor, max_new_bytes: int, temperature=0.0, top_k=None, seed=0
) -> Iterator[Tensor]:
    """Yield (B,) bytes, one at a time. The settings are those of `check_writing`."""
    rng = torch.Generator().manual_seed(seed)
    for index in range(max_new_bytes):
        new = sample(logits, temperature, top_k, rng)
        yield new
        if index + 1 < max_new_bytes:
            logits = session.step(new)


def check_writing(max_new_bytes: int, temperature: float, top_k: int | None, seed: int) -> None:
    """Raises UserError for settings that make no sense."""
    check_range("--max-new-bytes", max_new_bytes, 0)
    check_range("--temperature", temperature, 0)
    check_range("--top-k", 1 if top_k is None else top_k, 1)
    check_range("--seed", seed, 0, 2**63 - 1)


def end_of_prompt(prompt: bytes, chunks: int, n: int) -> bytes:
    """What a history of so many chunks has room for, cut from the left by whole chunks."""
    return prompt[max(0, len(prompt) // n - chunks + 1) * n :]


def as_row(text: bytes) -> Tensor:
    """(1, T) bytes."""
    return torch.tensor(list(text), dtype=torch.long)[None]


def generate(
    model: Vist2,
    prompt: bytes,
    max_new_bytes: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    history: str = "sketch",
    stop: int | None = None,
    history_chunks: int | None = None,
) -> bytes:
    """Continue a prompt of any bytes, or none, until `stop` (left out) or so many new bytes.

    history_chunks: how far back the model sees, by default as many chunks as the shortest training
    window holds (the command line takes the longest); of a longer prompt the end is read. Raises
    UserError for settings that make no sense.
    """
    check_writing(max_new_bytes, temperature, top_k, seed)
    chunks = model.config.chunks if history_chunks is None else history_chunks
    session = Session(model, 1, history, chunks * model.config.chunk)
    logits = session.prefill(as_row(end_of_prompt(prompt, chunks, model.config.chunk)))
    written = bytearray()
    for new in write(session, logits, max_new_bytes, temperature, top_k, seed):
        if new.item() == stop:
            break
        written.append(new.item())
    return bytes(written)


def answer(model: Vist2, context: bytes, question: bytes, max_new_bytes: int, **how):
    """(response, whether STOP ended it) to a question about a context. Raises UserError for text
    that holds a role's byte. how: temperature, top_k, seed and history, as in `generate`."""
    check_range("--max-new-bytes", max_new_bytes, 0)
    refuse_roles(context)
    prompt = question_prompt(context, question)
    chunks = -(-(len(prompt) + max_new_bytes) // model.config.chunk) + 1  # nothing is dropped
    response = generate(model, prompt, max_new_bytes + 1, stop=STOP, history_chunks=chunks, **how)
    return response[:max_new_bytes], len(response) <= max_new_bytes


def read_groups(model: Vist2, text: bytes, session=Session) -> Iterator[bytes]:
    """What the model reads from each whole chunk's sketch, free-running, its own output fed back;
    GROUP chunks at a time."""
    n = model.config.chunk
    for chunks in as_row(text[: len(text) // n * n]).view(-1, n).split(GROUP):
        reader = session(model, len(chunks), capacity=2 * n)
        logits = reader.prefill(chunks, READ)
        yield bytes(torch.stack(list(write(reader, logits, n)), dim=1).flatten().tolist())


def read_back(model: Vist2, text: bytes, session=Session) -> bytes:
    """All of `read_groups`; a rest that is no whole chunk is left out."""
    return b"".join(read_groups(model, text, session)) if len(text) >= model.config.chunk else b""


# -------------------------------------------------------------------------------- command line


def print_reading(model: Vist2, text: bytes) -> None:
    """Each whole chunk, below it what the model reads from its sketch; what is misread most often,
    and the share that is right."""
    n, misread, start = model.config.chunk, Counter(), 0
    for read in read_groups(model, text):
        for at in range(0, len(read), n):
            print(f"text |{one_line(text[start + at : start + at + n])}|")
            print(f"read |{one_line(read[at : at + n])}|")
        misread.update((a, b) for a, b in zip(text[start : start + len(read)], read) if a != b)
        start += len(read)
    for (a, b), times in misread.most_common(5):
        print(f"{bytes([a])} read as {bytes([b])}, times: {times}")
    right = start - misread.total()
    print(
        f"{right} of {start} bytes right: {right / start:.4f}, free-running"
        f" ({len(text) - start} bytes at the end, no whole chunk, left out)"
    )


def fit_context(text: bytes, info: dict, name: str) -> bytes:
    """The end of a context, as long as training has seen. Raises UserError for a model that never
    learned to answer, for no text, and for a role's byte."""
    most = info["max_context"]
    if not most:
        expected = f"expected a model that did, such as --checkpoint {WEIGHTS}"
        raise UserError(f"{info['path']} never learned to answer, {expected}")
    if not text:
        raise UserError(f"{name} is empty, expected a text")
    if cut := max(0, len(text) - most):
        seen = f"the context is {len(text)} bytes, training saw at most {most}"
        warn(f"{seen}: the first {cut} bytes are cut")
    refuse_roles(text[cut:], name, cut)
    return text[cut:]


def print_answers(model: Vist2, info: dict, args: argparse.Namespace) -> None:
    context = fit_context(read_file(args.context), info, args.context)
    how = {name: getattr(args, name) for name in ("temperature", "top_k", "seed", "history")}
    for question in sys.stdin.buffer if args.ask == "-" else [os.fsencode(args.ask)]:
        question = question.rstrip(b"\r\n")
        response, ended = answer(model, context, question, args.max_new_bytes, **how)
        print(one_line(response) if args.ask == "-" else printable(response), flush=True)
        if not ended:
            warn(f"cut at --max-new-bytes {args.max_new_bytes}, the answer had not ended")


def fit_prompt(
    prompt: bytes, history_chunks: int | None, config: Config, info: dict
) -> tuple[bytes, int]:
    """The end of a prompt that a history has room for, and how many chunks that is."""
    seen = max(config.chunks, info["max_window"] // config.chunk)
    chunks = seen if history_chunks is None else history_chunks
    check_range("--history-chunks", chunks, 2, 2**20)
    if chunks > seen:
        warn(f"--history-chunks {chunks} is more than the {seen} that training saw")
    held = end_of_prompt(prompt, chunks, config.chunk)
    if cut := len(prompt) - len(held):
        room = f"the history {chunks} chunks of {config.chunk}"
        warn(f"the prompt is {len(prompt)} bytes, {room}: the first {cut} bytes are cut")
    return held, chunks


def print_continuation(model: Vist2, prompt: bytes, info: dict, args: argparse.Namespace) -> None:
    """One continuation, byte by byte."""
    prompt, chunks = fit_prompt(prompt, args.history_chunks, model.config, info)
    began = time.perf_counter()
    session = Session(model, 1, args.history, chunks * model.config.chunk)
    logits = session.prefill(as_row(prompt))
    times, out = [], ByteWriter()
    for new in write(session, logits, args.max_new_bytes, args.temperature, args.top_k, args.seed):
        if args.watch and out.terminal and times and session.count % model.config.chunk == 0:
            print_sketches(session)
        times.append(time.perf_counter())
        out.write(bytes(new.tolist()))
    out.end()
    if args.stats and times:
        entries, full, size = session.cache_entries, session.count + 1, session.cache_bytes / 1024
        first, rest = 1000 * (times[0] - began), times[-1] - times[0]
        speed = f", then {(len(times) - 1) / rest:.0f} bytes/s" if rest else ""
        warn(
            f"the cache holds {entries} entries, {size:.0f} KiB, for {session.count} "
            f"bytes; as full text {full} entries, {size * full / entries:.0f} KiB"
        )
        warn(f"first byte after {first:.0f} ms{speed}")


def print_sketches(session: Session) -> None:
    """The newest of a session's chunks, all whole, as many as stand side by side, and its cache."""
    config, columns = session.model.config, shutil.get_terminal_size().columns
    chunks = session.text[0, : session.count].view(-1, config.chunk)
    newest = chunks[-max(1, (columns + 1) // (PAGE + 1)) :]
    row = rearrange(F.pad(render(newest, config.cell), (0, 1)), "N H W -> H (N W)")[:, :-1]
    print(f"\n{half_blocks(row, columns)}")
    print(
        f"{config.chunk} bytes became {config.sketch_tokens} visual tokens: the cache holds "
        f"{session.cache_entries} entries; as full text {session.count + 1}"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Continue a text with a trained model, ask it about one, or let it read.",
    )
    what = parser.add_argument_group("what to do (without any of these: continue standard input)")
    add = what.add_mutually_exclusive_group().add_argument
    add("--prompt", help="text to continue, may be empty; --prompt=-x where it begins with -")
    add("--prompt-file", metavar="FILE", help="a file to continue, - for standard input")
    add("--read", metavar="FILE", help="print what the model reads from a file's sketches")
    asks = "answer from --context, seen as sketches; - takes a question a line, answers likewise"
    add("--ask", metavar="QUESTION", help=asks)
    add = parser.add_argument
    add("--context", metavar="FILE", help="what --ask is about, - for standard input")
    add("--checkpoint", help=f"default: {CHECKPOINT}, or the weights that come with the code")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (%(default)s)")
    add("--max-new-bytes", type=int, help="to write; default: 512, for --ask 128")
    add("--temperature", type=float, help="0 takes the likeliest byte; default: 0.8, for --ask 0")
    add("--top-k", type=int, help="sample among the k likeliest bytes only")
    add("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    add("--history", choices=HISTORIES, help="how finished chunks are kept; default: as trained")
    add("--history-chunks", type=int, help="how far back, 2 or more; default: as in training")
    add("--bf16", action=argparse.BooleanOptionalAction, default=False, help="halves the memory")
    add("--watch", action="store_true", help="on a terminal: show each chunk turn into its sketch")
    add("--stats", action="store_true", help="print what the cache holds, and speed")
    return parser.parse_args(argv)


def resolve(args: argparse.Namespace) -> None:
    """What was not said, filled in. Raises UserError for options that do not go together."""
    if (args.ask is None) != (args.context is None):
        raise UserError("--ask QUESTION and --context FILE, - for standard input, go together")
    if args.ask == args.context == "-":
        raise UserError("--ask - and --context - both read standard input, expected one of them")
    continues = args.ask is None and args.read is None
    if not continues and (args.watch or args.stats or args.history_chunks is not None):
        raise UserError("--watch, --stats and --history-chunks are for continuing a text")
    writing = (args.history, args.max_new_bytes, args.temperature, args.top_k)
    if args.read is not None and any(value is not None for value in writing):
        options = "--history, --max-new-bytes, --temperature and --top-k"
        raise UserError(f"{options} are not for --read, which reads every sketch as it is")
    if args.temperature is None:
        args.temperature = 0.8 if args.ask is None else 0.0
    if args.max_new_bytes is None:
        args.max_new_bytes = 512 if args.ask is None else 128
    check_writing(args.max_new_bytes, args.temperature, args.top_k, args.seed)


def run(args: argparse.Namespace) -> None:
    resolve(args)
    model, info = open_model(args.checkpoint, find_device(args.device))
    args.history = args.history or info["history"]
    if args.history != info["history"]:
        warn(f"--history {args.history}, but training was under {info['history']}")
    if args.watch and args.history != "sketch":
        raise UserError(f"--watch is for --history sketch, this is {args.history}")
    if args.bf16:
        model.to(torch.bfloat16)
    if args.ask is not None:
        return print_answers(model, info, args)
    if args.read is not None:
        text = read_file(args.read)
        if len(text) < (n := model.config.chunk):
            raise UserError(f"{args.read} has {len(text)} bytes, expected at least one chunk, {n}")
        if info["history"] != "sketch":
            warn(f"trained under history {info['history']!r}, it never learned to read")
        return print_reading(model, text)
    prompt = b""
    if args.prompt is not None:
        prompt = os.fsencode(args.prompt)
    elif args.prompt_file is not None or not sys.stdin.isatty():
        prompt = read_file("-" if args.prompt_file is None else args.prompt_file)
    print_continuation(model, prompt, info, args)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with command_line("generate.py", "--history-chunks, --max-new-bytes or file"):
        run(args)


if __name__ == "__main__":
    main()
