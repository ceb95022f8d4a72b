"""Text to learn from: a corpus that needs no download, and the batches of each task.

The default corpus is the Python standard library's own sources and its language reference, about
9 MB of code and English on every machine that can run this project. A batch is a function of
the seed, the task and a running number: so a resumed run sees what an unbroken one does.
"""

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange

from vist2 import BYTES, READ, START

HELD_OUT = 0.05  # share of the bytes
# Tests and tables resemble each other across any split, topics are read apart, the rest is not
# the library's own.
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "encodings",
    "pydoc_data",
    "site-packages",
    "dist-packages",
}


class Text:
    """Files end to end, and the windows that do not cross from one file into the next."""

    def __init__(self, files: list[bytes], window: int):
        """Raises ValueError if no file holds a window of so many bytes."""
        files = [file for file in files if len(file) >= window]
        if not files:
            raise ValueError(f"no file is as long as one training window, {window} bytes")
        self.bytes = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
        self.window = window
        self.lengths = torch.tensor([len(file) for file in files])
        self.starts = self.lengths.cumsum(0) - self.lengths

    def sample(self, rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """(rows, length) bytes from random places; every place is as likely, length <= window."""
        last = (self.lengths - length + 1).cumsum(0)  # of how many places each file is the last
        place = torch.randint(int(last[-1]), (rows,), generator=generator)
        file = torch.searchsorted(last, place, right=True)
        start = self.starts[file] + place - (last - (self.lengths - length + 1))[file]
        return self.bytes[start[:, None] + torch.arange(length)].long()

    def windows(self) -> torch.Tensor:
        """(K, window) bytes: each file cut from its beginning, no overlap, its rest left out."""
        starts = torch.cat(
            [
                start + torch.arange(0, length - self.window + 1, self.window)
                for start, length in zip(self.starts.tolist(), self.lengths.tolist())
            ]
        )
        return self.bytes[starts[:, None] + torch.arange(self.window)].long()


@dataclass
class Corpus:
    name: str
    digest: str  # of the names and bytes of all files of at least one window
    train: Text
    held_out: Text


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
    """A file, or every file of a folder that is not hidden; fewer than 20 are each cut into 20."""
    if path.is_dir():
        names = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
        files = {
            name.as_posix(): (path / name).read_bytes()
            for name in names
            if not any(part.startswith(".") for part in name.parts)
        }
    elif path.is_file():
        files = {path.name: path.read_bytes()}
    else:
        raise ValueError(f"{path} is not there, expected a file or a folder")
    if len(files) >= 20:
        return files
    return {
        f"{name}#{i:02}": text[i * len(text) // 20 : (i + 1) * len(text) // 20]
        for name, text in files.items()
        for i in range(20)
    }


def load_corpus(path: str | None, window: int) -> Corpus:
    """The default corpus if `path` is None, else the user's file or folder.

    Held out are the files whose names have the lowest hashes, until they make up HELD_OUT of the
    bytes; a file of more than twice that is never held out. Files shorter than a window are of no
    use. Raises ValueError, or OSError for what cannot be read.
    """
    files = user_files(Path(path)) if path else python_files()
    name = path or f"Python {platform.python_version()} standard library"
    files = {key: text for key, text in files.items() if len(text) >= window}
    share = HELD_OUT * sum(map(len, files.values()))
    train = sorted(files, key=lambda key: hashlib.sha256(key.encode()).digest())
    held_out: list[str] = []
    for key in list(train):
        if len(files[key]) <= 2 * share and sum(len(files[key]) for key in held_out) < share:
            held_out.append(key)
            train.remove(key)
    if not held_out:
        raise ValueError(
            f"{name} is too short: expected 20 files of at least one training window, {window} "
            f"bytes, or fewer files of 20 windows, {20 * window} bytes"
        )
    digest = hashlib.sha256(
        b"".join(key.encode() + hashlib.sha256(files[key]).digest() for key in sorted(files))
    ).hexdigest()
    return Corpus(
        name,
        digest[:16],
        Text([files[key] for key in train], window),
        Text([files[key] for key in held_out], window),
    )


def generator(*key) -> torch.Generator:
    """A stream of random numbers of its own for each key, such as (seed, task, number)."""
    seed = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))


def language_batch(windows: torch.Tensor, chunk: int):
    """Windows of text (B, N n), cut: text (B, N, n), openings (B, N) and weights like text."""
    text = rearrange(windows, "B (N n) -> B N n", n=chunk)
    return text, torch.full(text.shape[:2], START), torch.ones(text.shape)


def spelling_batch(text: Text, rows: int, chunk: int, rng: torch.Generator):
    """Single chunks: text (rows, 1, chunk), openings (rows, 1) and weights like text. The first
    half of the rows is uniformly random bytes, which nobody can guess, the rest text."""
    noise = torch.randint(BYTES, (rows // 2, chunk), generator=rng)
    chunks = torch.cat([noise, text.sample(rows - rows // 2, chunk, rng)])[:, None]
    return chunks, torch.full((rows, 1), START), torch.ones(chunks.shape)


def reading_batch(text: Text, rows: int, chunk: int, rng: torch.Generator):
    """Pairs of such a chunk and READ with its copy: text (rows, 2, chunk), openings (rows, 2) and
    weights like text, one on the copy."""
    pairs = spelling_batch(text, rows, chunk, rng)[0].repeat(1, 2, 1)  # (rows, 2, chunk)
    weights = torch.zeros(pairs.shape)
    weights[:, 1] = 1
    return pairs, torch.tensor([START, READ]).repeat(rows, 1), weights
