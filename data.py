"""Text to learn from: a corpus that needs no download, and the batches of each task.

The default corpus is the Python standard library's own sources and its language reference, about
9 MB of code and English on every machine that can run this project. A batch is a function of
the seed, the task and a running number: so a resumed run sees what an unbroken one does.
"""

import ast
import hashlib
import json
import os
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from einops import rearrange

from render import read_bytes
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

    def __init__(self, files: dict[str, bytes], window: int):
        """Raises ValueError if no file holds a window of so many bytes."""
        self.files = {name: file for name, file in files.items() if len(file) >= window}
        if not self.files:
            raise ValueError(f"no file is as long as one training window, {window} bytes")
        self.bytes = torch.frombuffer(bytearray(b"".join(self.files.values())), dtype=torch.uint8)
        self.window = window
        self.lengths = torch.tensor([len(file) for file in self.files.values()])
        self.starts = self.lengths.cumsum(0) - self.lengths

    def sample(self, rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """(rows, length) bytes from random places of files as long as that; every place is as
        likely. Raises ValueError if no file is."""
        places = (self.lengths - length + 1).clamp(min=0)
        last = places.cumsum(0)  # of how many places each file is the last
        if not last[-1]:
            raise ValueError(f"no file is as long as an example's text, {length} bytes")
        place = torch.randint(int(last[-1]), (rows,), generator=generator)
        file = torch.searchsorted(last, place, right=True)
        start = self.starts[file] + place - (last - places)[file]
        return self.bytes[start[:, None] + torch.arange(length)].long()

    @cached_property
    def sentences(self) -> list["Sentence"]:
        """What the docstrings of all files begin with, as far as a question can ask for it."""
        return [
            found for name, file in self.files.items() for found in first_sentences(name, file)
        ]

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
    own: list["Example"] = field(default_factory=list)  # of the user


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
    train = sorted(files, key=lambda key: hashlib.sha256(os.fsencode(key)).digest())
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
        b"".join(os.fsencode(key) + hashlib.sha256(files[key]).digest() for key in sorted(files))
    ).hexdigest()
    return Corpus(
        name,
        digest[:16],
        Text({key: files[key] for key in train}, window),
        Text({key: files[key] for key in held_out}, window),
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


# ------------------------------------------------------------------------------ instructions

# ASCII's own enquiry, acknowledge and end of transmission say who speaks; each has its glyph.
QUESTION, ANSWER, STOP = 0x05, 0x06, 0x04
ROLE = re.compile(rb"[\x04-\x06]")
KINDS = (b"0123456789", b"0123456789abcdef", b"abcdefghijklmnopqrstuvwxyz")  # of a fact's value
VALUE = 4  # characters
TURNS = 40  # questions for values in a row, at most
PASSAGES = 4  # to repeat in a row, at most
QUOTED = 16  # characters of the line from which to repeat
TRIES = 10_000  # to find a place to ask for


@dataclass(frozen=True)
class Example:
    """A context and what is asked of it: turns of (question, response)."""

    context: bytes
    turns: tuple[tuple[bytes, bytes], ...]

    def __post_init__(self):
        for part in (self.context, *(text for turn in self.turns for text in turn)):
            refuse_roles(part)

    @property
    def length(self) -> int:
        """Bytes, with the three roles of each turn."""
        return len(self.context) + sum(len(q) + len(r) + 3 for q, r in self.turns)


def refuse_roles(text: bytes) -> None:
    """Raises ValueError for text that holds a role's byte, which would be taken for a role."""
    found = ROLE.search(text)
    if found:
        raise ValueError(
            f"byte {found.start()} of the text is {found[0][0]:#04x}, which marks a role: "
            "expected text without the bytes 0x04, 0x05 and 0x06"
        )


def asked(context: bytes, question: bytes) -> bytes:
    """What a model reads before it answers."""
    return context + bytes([QUESTION]) + question + bytes([ANSWER])


def instruct_batch(examples: list[Example], chunk: int):
    """One example a row: text (B, N, n), openings (B, N), weights like text, one on the bytes of
    responses and on the STOP after each, zero elsewhere. Shorter rows end in zeros."""
    rows = []
    for example in examples:
        text, answers = example.context, []
        for question, response in example.turns:
            text = asked(text, question)
            answers.append((len(text), len(text) + len(response) + 1))
            text += response + bytes([STOP])
        rows.append((text, answers))
    length = max(2, *(-(-len(text) // chunk) for text, _ in rows)) * chunk  # one sketch at least
    batch, weights = torch.zeros(len(rows), length).long(), torch.zeros(len(rows), length)
    for row, (text, answers) in enumerate(rows):
        batch[row, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        for first, last in answers:
            weights[row, first:last] = 1
    text, openings, _ = language_batch(batch, chunk)
    return text, openings, weights.view_as(text)


def draw(rng: torch.Generator, count: int) -> int:
    """One of range(count)."""
    return int(torch.randint(count, (), generator=rng))


def plain(text: Text, length: int, rng: torch.Generator) -> bytes:
    """Some stretch of the text without a role's byte."""
    for _ in range(TRIES):
        stretch = bytes(text.sample(1, length, rng)[0].tolist())
        if not ROLE.search(stretch):
            return stretch
    raise ValueError("found no text without the bytes 0x04, 0x05 and 0x06, which mark roles")


def recall_example(text: Text, rng: torch.Generator, chunk: int, far: int, distance: int = 0):
    """Lines of `key=value`, about eight a chunk, in one context of four two with text between
    them, and up to TURNS questions for values. Or one question, about eight facts a chunk, for a
    value whose line begins `distance` chunks before the question's own. Raises ValueError if none
    does."""
    for _ in range(TRIES):
        size = far * chunk + draw(rng, chunk)
        dense = distance or draw(rng, 4)
        context = bytearray()
        facts: dict[bytes, bytes] = {}
        asked_for: list[bytes] = []  # keys
        while len(context) < size:
            key = bytes(KINDS[2][draw(rng, 26)] for _ in range(1 + draw(rng, 3)))
            kind = KINDS[draw(rng, len(KINDS))]
            if key in facts:
                continue
            back = size // chunk - len(context) // chunk
            facts[key] = bytes(kind[draw(rng, len(kind))] for _ in range(VALUE))
            context += key + b"=" + facts[key] + b"\n"
            if len(context) <= size and distance in (0, back):
                asked_for.append(key)
            if not dense:
                context += plain(text, 1 + draw(rng, chunk // 2), rng) + b"\n"
        if asked_for:
            order = torch.randperm(len(asked_for), generator=rng)[: 1 if distance else TURNS]
            turns = tuple((asked_for[i], facts[asked_for[i]]) for i in order.tolist())
            return Example(bytes(context[:size]), turns)
    raise ValueError(f"no fact fits {far} chunks of {chunk} bytes at distance {distance or 'any'}")


@dataclass(frozen=True)
class Sentence:
    """The first sentence of a docstring: bytes `start` to `end` of a file, about `name`, whose
    definition begins at byte `defined`."""

    file: str
    name: str  # such as "shlex.shlex.get_token"
    defined: int
    start: int
    end: int


QUOTES = re.compile(
    rb"""[rR]?("{3}|'{3}|"|')\s*(?P<sentence>[^\n\\\x04-\x06]{8,}?(?<!e\.g|i\.e)\.)(?=\s|\1)"""
)


def first_sentences(file: str, source: bytes) -> Iterator[Sentence]:
    """Of each function and class whose docstring begins with a sentence on one line. A name that
    is defined twice is left out: nobody could know which is meant."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file's syntax
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # no Python
        return
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    times: Counter[str] = Counter()  # that a name is defined

    def visit(node: ast.AST, name: str) -> Iterator[Sentence]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from visit(child, name)
                continue
            inner = f"{name}.{child.name}"
            times[inner] += 1
            if ast.get_docstring(child) is not None:
                quoted = child.body[0].value
                found = QUOTES.match(source, lines[quoted.lineno - 1] + quoted.col_offset)
                if found:
                    defined = lines[child.lineno - 1] + child.col_offset
                    yield Sentence(file, inner, defined, *found.span("sentence"))
            yield from visit(child, inner)

    try:
        sentences = list(visit(tree, module))
    except RecursionError:
        return
    yield from (sentence for sentence in sentences if times[sentence.name] == 1)


def docs_example(text: Text, rng: torch.Generator, chunk: int, far: int, distance: int = 0):
    """A stretch of a module and the question what a function or class does, whose first sentence
    begins `distance` chunks before the question's own (drawn from 1 to far if 0). Shorter at a
    module's begin, longer for a long definition. Raises ValueError if there is no such place."""
    distance = distance or 1 + draw(rng, far)
    for _ in range(TRIES if text.sentences else 0):
        found = text.sentences[draw(rng, len(text.sentences))]
        begin = found.start - (far - distance) * chunk - draw(rng, chunk)
        begin = max(0, min(begin, found.defined))
        last = (found.start - begin) // chunk + distance
        end = begin + last * chunk + draw(rng, chunk)
        source = text.files[found.file]
        context = source[begin:end]
        if found.end <= end <= len(source) and not ROLE.search(context):
            question = f"What does {found.name} do?".encode()
            return Example(context, ((question, source[found.start : found.end]),))
    raise ValueError("found no function with a docstring to ask for: expected Python sources")


def repeat_example(text: Text, rng: torch.Generator, chunk: int, far: int, distance: int = 0):
    """A stretch of text and up to PASSAGES questions to repeat it from a line on. Or one question,
    for a line that begins `distance` chunks before the question's own. A response has a chunk's
    length, or ends with the text. Raises ValueError if there is no such line."""
    most = 1 if distance else PASSAGES
    for _ in range(TRIES):
        context = plain(text, far * chunk + draw(rng, chunk), rng)
        turns: list[tuple[bytes, bytes]] = []
        for at in torch.randperm(far * chunk, generator=rng).tolist():
            if context[at - 1 : at] != b"\n" or distance not in (0, far - at // chunk):
                continue
            line = context[at : at + QUOTED].split(b"\n")[0]
            if len(line.strip()) >= QUOTED // 2 and context.count(line) == 1:
                turns.append((b"Repeat from: " + line, context[at : at + chunk]))
            if len(turns) == most:
                break
        if turns:
            return Example(context, tuple(turns))
    raise ValueError("found no line to repeat from: expected text in lines")


EXAMPLES = {"recall": recall_example, "docs": docs_example, "repeat": repeat_example}
FIELDS = ("context", "prompt", "response")


def read_examples(path: str, longest: int) -> list[Example]:
    """A user's own examples, shortest first: a file of JSON objects, one a line, of three strings,
    FIELDS. Raises ValueError, which names the line, for anything else, for a role's byte and for
    an example of more than `longest` bytes; OSError for what cannot be read."""
    examples = []
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict) or sorted(fields) != sorted(FIELDS):
                raise ValueError(f"expected an object of {', '.join(FIELDS)}")
            if not all(isinstance(value, str) for value in fields.values()):
                raise ValueError("expected strings")
            context, prompt, response = (fields[name].encode() for name in FIELDS)
            example = Example(context, ((prompt, response),))
            if not response:
                raise ValueError("the response is empty")
            if example.length > longest:
                raise ValueError(f"{example.length} bytes in all, expected at most {longest}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        examples.append(example)
    if not examples:
        raise ValueError(f"{path} is empty, expected a JSON object a line")
    return sorted(examples, key=lambda example: example.length)


def alike(examples: list[Example], size: int, rng: torch.Generator) -> list[Example]:
    """One of a list that is sorted by length, and the next longer ones that `size` bytes hold."""
    first = last = draw(rng, len(examples))
    while last < len(examples) and examples[last].length * (last + 1 - first) <= size:
        last += 1
    return examples[first : max(last, first + 1)]
