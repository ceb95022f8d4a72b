"""Text to learn from: a corpus that needs no download, and the batches of each task.

The default corpus is the Python standard library's own sources and its language reference, about
9 MB of code and English on every machine that can run this project. A batch is a function of the
seed, the task and the step: so a resumed run sees what an unbroken one does.
"""

import hashlib
import os
import platform
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Generator, Tensor

from console import UserError, one_line, warn
from vist2 import BYTES, READ, START

HELD_OUT = 0.05  # share of the bytes
PIECES = 20  # the fewest files that a split is made of; each of fewer is cut into so many
# Tests and tables resemble each other across any split, topics are read apart, site-packages and
# dist-packages are not the library's own.
LEFT_OUT = {"test", "tests", "idlelib", "encodings", "pydoc_data", "site-packages", "dist-packages"}


class Text:
    """Files end to end, and the windows that do not cross from one file into the next."""

    def __init__(self, files: list[bytes], window: int):
        self.bytes = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
        self.window = window
        self.lengths = torch.tensor([len(file) for file in files])
        self.starts = self.lengths.cumsum(0) - self.lengths

    def sample(self, rows: int, length: int, rng: Generator) -> Tensor:
        """Sample (rows, length) bytes uniformly over all valid offsets. Raises UserError if no
        file is long enough."""
        offsets = (self.lengths - length + 1).clamp(min=0)  # in each file
        ends = offsets.cumsum(0)
        if not ends[-1]:
            raise UserError(f"no file has the {length} bytes that an example takes")
        drawn = torch.randint(int(ends[-1]), (rows,), generator=rng)
        file = torch.searchsorted(ends, drawn, right=True)
        start = self.starts[file] + drawn - (ends - offsets)[file]
        return self.bytes[start[:, None] + torch.arange(length)].long()

    def windows(self, size: int | None = None) -> Tensor:
        """(K, window) bytes, or (K, size): each file cut from its beginning, no overlap, its rest
        left out."""
        size = size or self.window
        files = self.bytes.split(self.lengths.tolist())
        return torch.cat([f[: len(f) // size * size].view(-1, size) for f in files]).long()


@dataclass
class Corpus:
    name: str
    digest: str  # of the names and bytes of all that is kept
    train: Text
    held_out: Text
    own_examples: list = field(default_factory=list)  # the user's, questions.Example


def python_files() -> dict[str, bytes]:
    """The standard library's sources and the topics of the language reference, by name."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    files = {}
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        # _sysconfigdata holds one machine's own settings
        if not LEFT_OUT & set(name.parts) and not name.name.startswith("_sysconfigdata"):
            files[name.as_posix()] = path.read_bytes()
    return files | {f"topics/{name}": text.encode() for name, text in topics.items()}


def user_files(path: Path) -> dict[str, bytes]:
    """A file, or every file of a folder that is not hidden, by name."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    if not path.is_dir():
        is_there = "is no file and no folder" if path.exists() else "is not there"
        raise UserError(f"{path} {is_there}, expected a file or a folder")
    names = (entry.relative_to(path) for entry in path.rglob("*") if entry.is_file())
    shown = (name for name in names if not any(part.startswith(".") for part in name.parts))
    return {name.as_posix(): (path / name).read_bytes() for name in shown}


def load_corpus(path: str | None, window: int) -> Corpus:
    """The default corpus if `path` is None, else the user's file or folder.

    Held out are the files whose names have the lowest hashes, until they make up HELD_OUT of the
    bytes; a file of more than twice that is never held out. Files shorter than a window are
    left out. Where fewer than PIECES stay, each is cut into PIECES of a window or more, or left out
    too. Warns of the user's files that are too short. Raises UserError, or OSError.
    """
    if path == "":
        raise UserError("the name of the data is empty, expected a file or a folder")
    found = python_files() if path is None else user_files(Path(path))
    name = one_line(path) if path else f"Python {platform.python_version()} standard library"
    cut = sum(len(text) >= window for text in found.values()) < PIECES
    least = PIECES * window if cut else window
    files = {key: text for key, text in found.items() if len(text) >= least}
    short = [len(text) for text in found.values() if len(text) < least]
    if path is not None and short:
        warn(f"left out, too short: {len(short)} of {len(found)} files, {sum(short):,} bytes")
    if cut:
        files = {
            f"{key}#{i:02}": text[i * len(text) // PIECES : (i + 1) * len(text) // PIECES]
            for key, text in files.items()
            for i in range(PIECES)
        }
    share = int(HELD_OUT * sum(map(len, files.values())))  # of one file, its shortest piece
    order = sorted(files, key=lambda key: hashlib.sha256(os.fsencode(key)).digest())
    held_out, size = {}, 0
    for key in order:
        if len(files[key]) <= 2 * share and size < share:
            held_out[key] = files[key]
            size += len(files[key])
    if not held_out:
        raise UserError(
            f"{name} is too short: expected {PIECES} files of at least one training window, "
            f"{window} bytes, or fewer files of {PIECES} windows, {PIECES * window} bytes"
        )
    digest = hashlib.sha256(
        b"".join(os.fsencode(key) + hashlib.sha256(files[key]).digest() for key in sorted(files))
    ).hexdigest()
    train = [files[key] for key in order if key not in held_out]
    return Corpus(name, digest[:16], Text(train, window), Text([*held_out.values()], window))


# ----------------------------------------------------------------------------------- batches


class Batch(NamedTuple):
    text: Tensor  # (B, N, n) bytes
    openings: Tensor  # (B, N)
    weights: Tensor  # (B, N, n), of each byte's loss
    longest_context: int = 0  # bytes that a question is about

    @property
    def skip(self) -> int:
        """Chunks before the first in which a byte counts."""
        return int(self.weights.amax(dim=(0, 2)).nonzero()[0])


def generator(*key) -> Generator:
    """A stream of random numbers of its own for each key, such as (seed, task, step)."""
    seed = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(seed[:7], "big"))


def draw(rng: Generator, count: int) -> int:
    """One of range(count)."""
    return int(torch.randint(count, (), generator=rng))


def language_batch(windows: Tensor, chunk: int) -> Batch:
    """Windows of text (B, N n), cut into chunks; every byte counts."""
    text = rearrange(windows, "B (N n) -> B N n", n=chunk)
    return Batch(text, torch.full(text.shape[:2], START), torch.ones(text.shape))


def sample_noise(text: Text, rows: int, chunk: int, rng: Generator) -> Tensor:
    """Sample (rows, chunk) bytes that nobody can guess. Half of the rows are uniform. The others
    draw from an alphabet of 1 to 256 bytes, its size log-uniform, each byte of it from text or any;
    a quarter of these rows has runs of equal bytes, a quarter a period."""
    noise = torch.randint(BYTES, (rows, chunk), generator=rng)
    for row in noise:
        if draw(rng, 2):
            continue
        count = round(BYTES ** torch.rand((), generator=rng).item())
        alphabet = text.bytes[torch.randint(len(text.bytes), (count,), generator=rng)].long()
        anything = torch.randint(BYTES, (count,), generator=rng)
        alphabet = alphabet.where(torch.rand(count, generator=rng) < 0.5, anything)
        drawn = alphabet[torch.randint(count, (chunk,), generator=rng)]
        length, shape = 1 + draw(rng, 16), draw(rng, 4)
        if shape == 0:
            drawn = drawn.repeat_interleave(length)
        elif shape == 1:
            drawn = drawn[:length].repeat(chunk)
        row[:] = drawn[:chunk]
    return noise


def sample_chunks(text: Text, rows: int, chunk: int, rng: Generator) -> Tensor:
    """Sample (rows, chunk) bytes: one half noise, the other text."""
    noise = sample_noise(text, rows // 2, chunk, rng)
    return torch.cat([noise, text.sample(rows - rows // 2, chunk, rng)])


def spelling_batch(text: Text, rows: int, chunk: int, rng: Generator) -> Batch:
    """Single chunks of `sample_chunks`, (rows, 1, chunk)."""
    return language_batch(sample_chunks(text, rows, chunk, rng), chunk)


def pair_batch(first: Tensor, second: Tensor, opening: int) -> Batch:
    """Pairs of chunks (rows, chunk), the second after an opening; it alone counts."""
    weights = torch.stack([torch.zeros(first.shape), torch.ones(first.shape)], dim=1)
    openings = torch.tensor([START, opening]).repeat(len(first), 1)
    return Batch(torch.stack([first, second], dim=1), openings, weights)


def reading_batch(text: Text, rows: int, chunk: int, rng: Generator) -> Batch:
    """Pairs (rows, 2, chunk) of a chunk of `sample_chunks` and READ with its copy. The copy has
    faults: a share of its bytes, drawn for each row, is random. So the past of the copy cannot
    tell what comes next as well as the place in the sketch can. The target is the chunk itself
    (train.task_losses)."""
    chunks = sample_chunks(text, rows, chunk, rng)
    faulty = torch.rand(chunks.shape, generator=rng) < torch.rand(rows, 1, generator=rng)
    noise = torch.randint(BYTES, chunks.shape, generator=rng)
    return pair_batch(chunks, torch.where(faulty, noise, chunks), READ)


def copy_batch(text: Text, rows: int, chunk: int, rng: Generator) -> Batch:
    """Pairs (rows, 2, chunk) of a chunk of `sample_chunks` and the same, begun at any of its bytes
    and wound round, after START: its own past alone tells what comes next, as in recall."""
    chunks = sample_chunks(text, rows, chunk, rng)
    turns = torch.randint(chunk, (rows, 1), generator=rng)
    return pair_batch(chunks, chunks.gather(1, (torch.arange(chunk) + turns) % chunk), START)
