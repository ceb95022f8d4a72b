"""Writing with a rolling cache: the past is kept as sketches while reading and while writing.

The cache of each layer is one preallocated buffer and one write position:

    [ sketch tokens of chunks 0..i-1 | START and bytes of the open chunk ]
                                     ^ mark

When a chunk's last byte arrives it is not fed as text: the chunk is rendered and encoded, the
write position goes back to the mark, the sketch tokens are written over the bytes, the mark moves
past them, and the next opening follows in the same pass. Forgetting is moving a pointer back.

    python generate.py --prompt "def " --stats
    python generate.py --read README.md
    python generate.py --ask "What does shlex.split do?" --context FILE --lines 1-40
"""

import argparse
import codecs
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from data import STOP, asked, refuse_roles
from render import read_bytes
from vist2 import BYTES, HISTORIES, READ, START, Vist2, load_checkpoint, sketch_positions

CHECKPOINT = "runs/sketch/model.pt"
ANSWERS = "runs/sketch-instruct/model.pt"
WEIGHTS = Path(__file__).parent / "weights/tiny.pt"  # come with the code; answer --ask, too
SIDES = ("full", "prompt", "sketch")  # the histories that bench.py sets side by side
GROUP = 64  # chunks that are encoded at a time, which bounds what the encoder needs


class Session:
    """A batch of texts of equal length being read and written, and its cache.

    history: "sketch" turns every finished chunk into its sketch; "prompt" only the prompt's;
    "full" keeps all text, "none" the open chunk's. capacity: bytes of text the buffer is made for,
    by default the window that training saw. When it is reached, the oldest half of the chunks is
    dropped and the rest prefilled anew, so that the cache always equals a fresh prefill of what it
    holds.

    Raises ValueError for an unknown history and for too small a capacity.
    """

    def __init__(
        self, model: Vist2, batch: int = 1, history: str = "sketch", capacity: int | None = None
    ):
        config = model.config
        n, m = config.chunk, config.chunk // config.ratio
        capacity = config.chunks * n if capacity is None else capacity
        if history not in HISTORIES:
            raise ValueError(f"history is {history!r}, expected one of {', '.join(HISTORIES)}")
        if capacity < 2 * n:
            raise ValueError(
                f"capacity is {capacity} bytes, expected at least two chunks, {2 * n}"
            )
        self.model, self.history, self.capacity = model, history, capacity
        entries = capacity // n * m + n if history == "sketch" else capacity + 1
        weight = model.decoder.head.weight
        self.cache = torch.empty(  # keys and values: one buffer, made once
            2,
            config.layers,
            batch,
            config.kv_heads,
            entries,
            config.head_width,
            dtype=weight.dtype,
            device=weight.device,
        )
        self.text = torch.zeros(batch, capacity, dtype=torch.long, device=weight.device)
        self.count = self.sketched = self.entries = 0  # bytes, chunks as sketches, entries held

    @property
    def cache_entries(self) -> int:
        """Entries held per sequence after t bytes: floor(t/n) m + 1 + t mod n; "full": t + 1;
        "none": 1 + t mod n; "prompt", of S sketched chunks: S m + 1 + t - S n."""
        return self.entries

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values held, over all layers and the batch."""
        return self.cache[..., : self.entries, :].numel() * self.cache.element_size()

    def attend(self, layer, mask, q, k, v):
        """Append keys and values to the cache of a layer, and attend to all that it holds.

        What the buffer holds is in reading order, and a finished chunk's bytes are gone: what the
        interleave mask says in training is here just "nothing looks ahead".
        """
        old, new = self.entries, self.entries + q.shape[2]
        keys, values = self.cache[:, layer]
        keys[:, :, old:new], values[:, :, old:new] = k, v
        return F.scaled_dot_product_attention(
            q,
            keys[:, :, :new],
            values[:, :, :new],
            attn_mask=mask,
            is_causal=mask is None and q.shape[2] > 1,
            enable_gqa=True,
        )

    @torch.inference_mode()
    def _append(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Feed x (B, T, C): logits (B, 256) after its last token."""
        old, new = self.entries, self.entries + x.shape[1]
        mask = None  # a prefill is causal, and a single byte sees all that is held
        if old and new - old > 1:  # `is_causal` would align the mask of these to the top left
            mask = torch.ones(new - old, new, dtype=torch.bool, device=x.device).tril(old)
        attends = [partial(self.attend, layer, mask) for layer in range(self.model.config.layers)]
        x = self.model.decoder(x, positions, attends)
        self.entries = new
        return self.model.decoder.head(x[:, -1])

    @torch.inference_mode()
    def _fill(self, text: torch.Tensor, sketched: int, opening: int, memory=None) -> torch.Tensor:
        """Start anew from text (B, T) of which so many leading chunks are held as sketches."""
        config, (B, T) = self.model.config, text.shape
        n, m = config.chunk, config.chunk // config.ratio
        self.text[:, :T] = text
        self.count, self.sketched, self.entries = T, sketched, 0
        open_bytes = text[:, sketched * n :]
        first = torch.full((B, 1), opening, device=text.device)
        x = self.model.embed(torch.cat([first, open_bytes], dim=1))
        positions = torch.arange(sketched * n, T + 1, device=text.device)
        if sketched and self.history != "none":
            if memory is None:
                chunks = text[:, : sketched * n].reshape(B, sketched, n)
                memory = [self.model.remember(group) for group in chunks.split(GROUP, dim=1)]
                memory = torch.cat(memory, dim=1)
            x = torch.cat([memory.flatten(1, 2), x], dim=1)
            del memory  # as large as x, and no longer needed
            numbers = torch.arange(sketched, device=text.device)
            positions = torch.cat([sketch_positions(numbers, n, m), positions])
        return self._append(x, positions)

    def prefill(self, prompt: torch.Tensor, opening: int = START, memory=None) -> torch.Tensor:
        """Begin with a prompt: (B, T) bytes, 0 <= T < capacity -> (B, 256) next byte's logits.

        `opening` comes before the first byte that is held as text. memory: sketch tokens
        (B, S, m, C) of its finished chunks, to use instead of encoding them; "full" has none.
        """
        if prompt.shape[1] >= self.capacity:
            raise ValueError(
                f"the prompt is {prompt.shape[1]} bytes, expected under {self.capacity}, "
                "the capacity of this session"
            )
        sketched = 0 if self.history == "full" else prompt.shape[1] // self.model.config.chunk
        return self._fill(prompt.to(self.text.device), sketched, opening, memory)

    @torch.inference_mode()
    def step(self, new: torch.Tensor) -> torch.Tensor:
        """Go on by one byte, after prefill: (B,) bytes -> (B, 256) logits of the byte after."""
        n = self.model.config.chunk
        self.text[:, self.count] = new
        self.count += 1
        if self.count == self.capacity:
            dropped = -(-(self.count // n) // 2)  # chunks: the oldest half, rounded up
            kept = self.text[:, dropped * n : self.count].clone()
            sketched = (
                max(0, self.sketched - dropped)
                if self.history in ("full", "prompt")
                else kept.shape[1] // n
            )
            return self._fill(kept, sketched, START)
        place = torch.tensor([self.count], device=self.text.device)
        if self.history in ("full", "prompt") or self.count % n:
            return self._append(self.model.embed(new.to(self.text.device)[:, None]), place)
        opening = self.model.embed(torch.full((len(new), 1), START, device=self.text.device))
        if self.history == "none":
            self.entries = 0
            return self._append(opening, place)
        finished = self.text[:, self.count - n : self.count]
        memory = self.model.remember(finished[:, None])[:, 0]  # (B, m, C)
        m = memory.shape[1]
        positions = sketch_positions(place // n - 1, n, m)
        self.entries = self.sketched * m  # back to the mark: the chunk's text is gone
        self.sketched += 1
        return self._append(torch.cat([memory, opening], dim=1), torch.cat([positions, place]))

    def fork(self, k: int) -> "Session":
        """k copies of a batch of one, to write k continuations after one prefill."""
        session = Session(self.model, k, self.history, self.capacity)
        session.cache[..., : self.entries, :] = self.cache[..., : self.entries, :]
        session.text[:] = self.text
        session.count, session.sketched = self.count, self.sketched
        session.entries = self.entries
        return session


def pick(logits: torch.Tensor, temperature: float, top_k: int | None, generators) -> torch.Tensor:
    """The next byte of each row of (B, 256) logits: the likeliest at temperature 0, or drawn."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.cpu().double()  # MPS has no float64
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # stays finite near zero
    if top_k:
        least = logits.topk(min(top_k, BYTES)).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.cat(
        [
            torch.multinomial(row.softmax(-1), 1, generator=generator)
            for row, generator in zip(logits, generators)
        ]
    )


def write(
    session: Session,
    logits: torch.Tensor,
    max_new_bytes: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> Iterator[torch.Tensor]:
    """Yield (B,) bytes, one at a time; row i draws as a single text with seed + i would."""
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(logits))]
    for index in range(max_new_bytes):
        new = pick(logits, temperature, top_k, generators)
        yield new
        if index + 1 < max_new_bytes:
            logits = session.step(new)


def check(max_new_bytes: int, temperature: float, top_k: int | None) -> None:
    """Raises ValueError for settings of sampling that make no sense."""
    if max_new_bytes < 0:
        raise ValueError(f"the length is {max_new_bytes} bytes, expected 0 or more")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}, expected 0 (the likeliest byte) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top-k is {top_k}, expected 1 or more")


def check_seed(seed: int) -> None:
    """Raises ValueError for a --seed that torch cannot take."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed is {seed}, expected 0 to 2**63 - 1")


def newest(prompt: bytes, capacity: int, n: int) -> bytes:
    """The end of a prompt that a session has room for, cut from the left by whole chunks."""
    return prompt[max(0, len(prompt) // n - capacity // n + 1) * n :]


def as_rows(text: bytes) -> torch.Tensor:
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

    history_chunks: how far back the model sees, by default as many chunks as a training window
    holds; of a longer prompt the end is read. Raises ValueError for settings that make no sense.
    """
    check(max_new_bytes, temperature, top_k)
    config = model.config
    chunks = config.chunks if history_chunks is None else history_chunks
    session = Session(model, 1, history, chunks * config.chunk)
    logits = session.prefill(as_rows(newest(prompt, session.capacity, config.chunk)))
    written = bytearray()
    for new in write(session, logits, max_new_bytes, temperature, top_k, seed):
        if new.item() == stop:
            break
        written.append(new.item())
    return bytes(written)


def question_about(context: bytes, question: bytes) -> bytes:
    """The prompt that an answer follows. Raises ValueError for text that holds a role's byte."""
    refuse_roles(context)
    refuse_roles(question)
    return asked(context, question)


def answer(model: Vist2, context: bytes, question: bytes, max_new_bytes: int, **how):
    """(response, whether STOP ended it) to a question about a context. Raises ValueError for text
    that holds a role's byte. how: see generate."""
    prompt = question_about(context, question)
    chunks = -(-(len(prompt) + max_new_bytes) // model.config.chunk) + 1  # nothing is dropped
    response = generate(model, prompt, max_new_bytes + 1, stop=STOP, history_chunks=chunks, **how)
    return response[:max_new_bytes], len(response) <= max_new_bytes


def read_back(model: Vist2, text: bytes, batch: int = 64) -> bytes:
    """What the model reads from each whole chunk's sketch, free-running: its output fed back."""
    n = model.config.chunk
    chunks = as_rows(text[: len(text) // n * n]).view(-1, n)
    read = []
    for group in chunks.split(batch):
        session = Session(model, len(group), capacity=2 * n)
        logits = session.prefill(group, READ)
        read.append(torch.stack(list(write(session, logits, n, 0.0, None, 0)), dim=1).cpu())
    return bytes(torch.cat(read).flatten().tolist()) if read else b""


def printable(text: str) -> str:
    """Control characters in caret form or as hexadecimal, so that none reaches a terminal."""
    return "".join(
        f"^{chr(ord(c) ^ 64)}"
        if ord(c) < 32 and c not in "\n\t" or c == "\x7f"
        else f"<{ord(c):02x}>"
        if 0x80 <= ord(c) < 0xA0
        else c
        for c in text
    )


def one_line(text: bytes) -> str:
    """Printable, with newlines and tabs in caret form too."""
    return printable(text.decode("utf-8", "replace").replace("\n", "^J").replace("\t", "^I"))


class Out:
    """Standard output: raw bytes into a pipe, UTF-8 without control characters to a terminal."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.terminal = sys.stdout.isatty()

    def write(self, new: bytes) -> None:
        if self.terminal:
            sys.stdout.write(printable(self.decoder.decode(new)))
            sys.stdout.flush()
        else:
            sys.stdout.buffer.write(new)
            sys.stdout.buffer.flush()

    def end(self) -> None:
        if self.terminal:
            print(self.decoder.decode(b"", final=True), flush=True)


def print_reading(model: Vist2, text: bytes) -> None:
    """Each whole chunk, below it what the model reads from its sketch; what is misread most often,
    and the share that is right."""
    n = model.config.chunk
    read = read_back(model, text)
    for start in range(0, len(read), n):
        for label, side in (("text", text), ("read", read)):
            print(f"{label} |{one_line(side[start : start + n])}|")
    misread = Counter((a, b) for a, b in zip(text, read) if a != b)
    for (a, b), times in misread.most_common(5):
        print(f"{bytes([a])} read as {bytes([b])}, times: {times}")
    right = len(read) - misread.total()
    print(
        f"{right} of {len(read)} bytes right: {right / len(read):.4f}, free-running"
        f" ({len(text) - len(read)} bytes at the end, no whole chunk, left out)"
    )


def stretch(text: bytes, lines: str | None) -> bytes:
    """Lines A to B of a text, both included. Raises ValueError for what is no such range."""
    if lines is None:
        return text
    kept = text.splitlines(keepends=True)
    first, _, last = lines.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= len(kept)):
        raise ValueError(f"--lines is {lines!r}, expected A-B with 1 <= A <= B <= {len(kept)}")
    return b"".join(kept[int(first) - 1 : int(last)])


def held_prompt(prompt: bytes, chunks: int, n: int) -> bytes:
    """The end of a prompt that a history of so many chunks has room for."""
    held = newest(prompt, chunks * n, n)
    if len(held) < len(prompt):
        warn(
            f"the prompt is {len(prompt)} bytes, the history {chunks} chunks of {n}: "
            f"the first {len(prompt) - len(held)} bytes are cut"
        )
    return held


def held_context(context: bytes, model: Vist2, info: dict, checkpoint: str) -> bytes:
    """The end of a context, as long as training could see. Raises ValueError for a model that never
    learned to answer."""
    if not info.get("far"):
        raise ValueError(
            f"{checkpoint} never learned to answer, expected one that train.py --stage "
            "instruct has written"
        )
    most = (info["far"] + 1) * model.config.chunk - 1
    if len(context) > most:
        warn(
            f"the context is {len(context)} bytes, expected at most {most}: "
            f"the first {len(context) - most} bytes are cut, --lines chooses others"
        )
    return context[-most:]


def print_answer(model: Vist2, info: dict, args: argparse.Namespace) -> None:
    context = stretch(read_bytes(args.context), args.lines)
    response, ended = answer(
        model,
        held_context(context, model, info, args.checkpoint),
        os.fsencode(args.ask),
        args.max_new_bytes,
        temperature=args.temperature,
        top_k=args.top_k,
        seed=args.seed,
        history=args.history or info["history"],
    )
    print(printable(response.decode("utf-8", "replace")))
    if not ended:
        warn(f"cut at --max-new-bytes {args.max_new_bytes}, the answer had not ended")


def exit_if_out_of_memory(program: str, setting: str, error: RuntimeError) -> None:
    """Torch has no one exception for all devices: the CPU's is a plain RuntimeError."""
    signs = ("out of memory", "allocate memory", "not enough memory")
    if any(sign in str(error) for sign in signs):
        sys.exit(f"{program}: not enough memory, try a smaller {setting}")


@contextlib.contextmanager
def errors_in_one_line(program: str, setting: str, *more: type[Exception]):
    """Exit with one clear line for what a user can get wrong, `more`, and a want of memory; with
    none where the reader of what is printed, `head` say, has seen enough."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell has it of a program that a closed pipe has ended
    except (OSError, ValueError, *more) as error:
        sys.exit(f"{program}: {error}")
    except RuntimeError as error:
        exit_if_out_of_memory(program, setting, error)
        raise


def warn(words: str) -> None:
    """A line for the user that is no result."""
    print(f"{Path(sys.argv[0]).name}: {words}", file=sys.stderr)


def find_checkpoint(given: str | None, asks: bool) -> str:
    """The checkpoint given, else what train.py has written here, else the weights that come with
    the code; then it says so."""
    if given is not None:
        return given
    own = ANSWERS if asks else CHECKPOINT
    if Path(own).exists():
        return own
    warn(f"{own} is not there, so this is {WEIGHTS}")
    return str(WEIGHTS)


def check_writable(path: str | None) -> None:
    """Raises ValueError where no file can be written."""
    if path is None:
        return
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write {path}, expected a file in a folder that can be written to")


def find_device(name: str) -> torch.device:
    """'auto' takes CUDA, then Apple's MPS, then the CPU. Raises ValueError if it is not there."""
    there = {
        "cpu": True,
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available(),
    }
    if name == "auto":
        name = [device for device, is_there in there.items() if is_there][-1]
    if not there.get(name):
        here = ", ".join(device for device, is_there in there.items() if is_there)
        raise ValueError(f"device {name!r} is not there, expected auto or one of {here}")
    return torch.device(name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Continue a text with a trained model, or let it read a file's sketches.",
    )
    what = parser.add_argument_group("what to do (without any of these: continue standard input)")
    what = what.add_mutually_exclusive_group()
    what.add_argument("--prompt", help="text to continue, may be empty")
    what.add_argument(
        "--prompt-file", metavar="FILE", help="a file to continue, - for standard input"
    )
    what.add_argument(
        "--read", metavar="FILE", help="print what the model reads from a file's sketches"
    )
    what.add_argument(
        "--ask", metavar="QUESTION", help="answer from --context, seen as sketches alone"
    )
    parser.add_argument(
        "--context", metavar="FILE", help="what --ask is about, - for standard input"
    )
    parser.add_argument("--lines", metavar="A-B", help="of the context, from 1; default: all")
    parser.add_argument(
        "--checkpoint",
        help=f"what train.py wrote; default: {CHECKPOINT}, for --ask {ANSWERS}, or else the "
        "weights that come with the code",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    parser.add_argument(
        "--max-new-bytes", type=int, default=512, help="length of a continuation (%(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="0 takes the likeliest byte; default: 0.8, for --ask 0",
    )
    parser.add_argument("--top-k", type=int, help="sample among the k likeliest bytes only")
    parser.add_argument("--seed", type=int, default=0, help="sample i uses seed + i (%(default)s)")
    parser.add_argument(
        "--samples", type=int, default=1, help="continuations after one prefill (%(default)s)"
    )
    parser.add_argument(
        "--history",
        choices=HISTORIES,
        help="what the model sees of finished chunks; default: as in training",
    )
    parser.add_argument(
        "--history-chunks", type=int, help="how far back, 2 or more; default: as in training"
    )
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="weights and cache in bfloat16, half the memory; default: no",
    )
    parser.add_argument(
        "--stats", action="store_true", help="print what the cache holds, and speed"
    )
    args = parser.parse_args(argv)
    if args.temperature is None:
        args.temperature = 0.8 if args.ask is None else 0.0
    setting = "--samples or --history-chunks" if args.ask is None else "--max-new-bytes"
    try:
        with errors_in_one_line("generate.py", setting):
            run(args)
    except KeyboardInterrupt:
        sys.exit(130)


def run(args: argparse.Namespace) -> None:
    check(args.max_new_bytes, args.temperature, args.top_k)
    check_seed(args.seed)
    if args.samples < 1:
        raise ValueError(f"--samples is {args.samples}, expected 1 or more")
    if args.lines and args.ask is None:
        raise ValueError("--lines A-B is for --ask")
    if (args.ask is None) != (args.context is None):
        raise ValueError("--ask QUESTION and --context FILE, - for standard input, go together")
    continues = args.ask is None and args.read is None
    if not continues and (args.samples > 1 or args.stats or args.history_chunks is not None):
        raise ValueError("--samples, --stats and --history-chunks are for continuing a text")
    if args.read is not None and args.history:
        raise ValueError("--history is not for --read, which reads sketches")
    args.checkpoint = find_checkpoint(args.checkpoint, asks=args.ask is not None)
    model, info = load_checkpoint(args.checkpoint, find_device(args.device))
    if args.bf16:
        model.to(torch.bfloat16)
    n = model.config.chunk
    if args.read is not None:
        text = read_bytes(args.read)
        if len(text) < n:
            raise ValueError(
                f"{args.read} has {len(text)} bytes, expected at least one chunk, {n}"
            )
        if info["history"] != "sketch":
            warn(
                f"{args.checkpoint} was trained under history {info['history']!r}: it never "
                "learned to read"
            )
        return print_reading(model, text)

    if args.ask is not None:
        return print_answer(model, info, args)
    if args.prompt is not None:
        prompt = os.fsencode(args.prompt)
    elif args.prompt_file is not None or not sys.stdin.isatty():
        prompt = read_bytes(args.prompt_file or "-")
    else:
        prompt = b""
    chunks = model.config.chunks if args.history_chunks is None else args.history_chunks
    if chunks < 2:
        raise ValueError(f"--history-chunks is {chunks}, expected 2 or more")
    history = args.history or info["history"]
    began = time.perf_counter()
    session = Session(model, 1, history, chunks * n)
    logits = session.prefill(as_rows(held_prompt(prompt, chunks, n)))
    if args.samples > 1:
        session, logits = session.fork(args.samples), logits.expand(args.samples, -1)
    texts = write(session, logits, args.max_new_bytes, args.temperature, args.top_k, args.seed)
    rows, clock, out = [bytearray() for _ in range(args.samples)], [], Out()
    for new in texts:
        for row, byte in zip(rows, new.tolist(), strict=True):
            row.append(byte)
        clock.append(time.perf_counter())
        if args.samples == 1:
            out.write(rows[0][-1:])
    if args.samples == 1:
        out.end()
    else:
        for number, row in enumerate(rows):
            print(f"--- sample {number}", flush=True)
            out.write(bytes(row) + b"\n")
            out.end()
    if args.stats and clock:
        entries, full = session.cache_entries, session.count + 1
        size = session.cache_bytes / args.samples / 1024
        speed = (len(clock) - 1) * args.samples / max(clock[-1] - clock[0], 1e-9)
        print(
            f"\ncache of each text: {entries} entries, {size:.0f} KiB, for the {session.count} "
            f"bytes it holds; as full text {full} entries, {size * full / entries:.0f} KiB\n"
            f"first byte after {1000 * (clock[0] - began):.0f} ms, then {speed:.0f} bytes/s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
