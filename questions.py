"""Questions about a past: facts to recall, passages to repeat, and the user's own examples.

A fact is a key and its value, `key=value` on a line or in any other style. The question is the
key, the response the value. Whatever asks and answers is told apart by bytes that text may not
hold, the roles.
"""

import json
import re
import string
from dataclasses import dataclass

import torch
from torch import Generator

from console import UserError, read_file
from data import Batch, Text, draw, language_batch
from vist2 import BYTES

# ASCII's own enquiry, acknowledge and end of transmission say who speaks; each has its glyph.
QUESTION, ANSWER, STOP = 0x05, 0x06, 0x04
ROLE = re.compile(rb"[\x04-\x06]")
NOT_THERE = b"not there"  # the response to a key without a fact
MAX_TURNS = 40  # questions for values in a row
MAX_FACTS = 400  # in a context: more than most hold
MAX_PASSAGES = 4  # to repeat in a row
FILLER = bytes(range(BYTES))  # not zeros: pages of them might come to mean an answer's end
QUOTED = 16  # bytes of the line from which to repeat
TRIES = 1000  # to find a line to repeat from; ten times as many to fit a fact
SHORTEST = 16  # bytes of a chunk that facts of all styles fit


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


def refuse_roles(text: bytes, name: str = "the text", start: int = 0) -> None:
    """Raises UserError for text that holds a role's byte, which would be taken for a role.
    name, start: where the text comes from, and where it starts there."""
    found = ROLE.search(text)
    if found:
        raise UserError(
            f"byte {start + found.start()} of {name} is {found[0][0]:#04x}, which marks a role: "
            "expected text without the bytes 0x04, 0x05 and 0x06"
        )


def question_prompt(context: bytes, question: bytes) -> bytes:
    """What a model reads before it answers. Raises UserError for a question with a role's byte."""
    refuse_roles(question, "the question")
    return context + bytes([QUESTION]) + question + bytes([ANSWER])


def question_batch(examples: list[Example], chunk: int) -> Batch:
    """One example a row; responses and the STOP after each count. Shorter rows end in FILLER."""
    rows, counted = [], []
    for example in examples:
        text, weights = example.context, [0] * len(example.context)
        for question, response in example.turns:
            prompt = question_prompt(text, question)
            text = prompt + response + bytes([STOP])
            weights += [0] * (len(prompt) - len(weights)) + [1] * (len(response) + 1)
        rows.append(text)
        counted.append(weights)
    length = max(2, *(-(-len(text) // chunk) for text in rows)) * chunk  # one sketch at least
    padded = [list((text + FILLER * (length // BYTES + 1))[:length]) for text in rows]
    text, openings, _, _ = language_batch(torch.tensor(padded), chunk)
    weights = torch.tensor([w + [0] * (length - len(w)) for w in counted], dtype=torch.float32)
    longest = max(len(example.context) for example in examples)
    return Batch(text, openings, weights.view_as(text), longest)


def sample_without_roles(text: Text, length: int, rng: Generator) -> bytes:
    """Sample text with a blank for each role's byte."""
    return ROLE.sub(b" ", bytes(text.sample(1, length, rng)[0].tolist()))


def sample_piece(text: Text, most: int, rng: Generator) -> bytes:
    """Sample up to `most` bytes of text."""
    return sample_without_roles(text, 1 + draw(rng, min(most, int(text.lengths.max()))), rng)


# ------------------------------------------------------------------------------------- facts

LETTERS, DIGITS = string.ascii_lowercase.encode(), string.digits.encode()
CAPITALS = string.ascii_uppercase.encode()
HELD_BACK = b"@$%^|>"  # in no style: what a model makes of them shows what it has understood
MARKS = bytes(c for c in string.punctuation.encode() if c not in HELD_BACK)
WORDS = LETTERS.replace(b"s", b"")  # of separators; without an s, so that ` is ` is none of them


@dataclass(frozen=True)
class Style:
    """How the facts of a context look; as it is, plain: lines of `key=value`."""

    separator: bytes = b"="
    end: bytes = b"\n"
    key_letters: bytes = LETTERS
    key_lengths: tuple[int, int] = (1, 3)  # from, to
    joint: bytes = b""  # between the halves of a key
    values: tuple[bytes, ...] = (DIGITS, DIGITS + b"abcdef", LETTERS)  # alphabets, one a value
    value_lengths: tuple[int, int] = (4, 4)
    facts: int = MAX_FACTS  # at most
    gap: int = 0  # most bytes of text before each fact; after the last up to the context's end
    alike: int = 0  # of four keys, so many have the letters of another one, and perhaps one more
    twice: int = 0  # of eight facts, so many give a key a new value, which is the one that counts
    absent: int = 0  # 1: of q questions up to 1 + q // 4 are for keys that are not there

    def key(self, rng: Generator, others: list[bytes]) -> bytes:
        if others and draw(rng, 4) < self.alike:
            other = one_of(rng, *others)
            letters = bytes(other[i] for i in torch.randperm(len(other), generator=rng).tolist())
            return letters + draw_bytes(rng, self.key_letters, (0, 1))
        key = draw_bytes(rng, self.key_letters, self.key_lengths)
        return key[: len(key) // 2] + self.joint + key[len(key) // 2 :]

    def value(self, rng: Generator) -> bytes:
        return draw_bytes(rng, one_of(rng, *self.values), self.value_lengths)


def one_of(rng: Generator, *options):
    return options[draw(rng, len(options))]


def draw_bytes(rng: Generator, alphabet: bytes, lengths: tuple[int, int]) -> bytes:
    """So many of an alphabet, both ends included."""
    count = lengths[0] + draw(rng, lengths[1] - lengths[0] + 1)
    return bytes(alphabet[draw(rng, len(alphabet))] for _ in range(count))


def draw_style(rng: Generator, chunk: int) -> Style:
    """Half of all punctuation is common, the other half drawn at random."""
    separator, end = one_of(rng, b"=", b": ", b" = ", b":", b" ", b"\t"), b"\n"
    if draw(rng, 2):
        marks, word = draw_bytes(rng, MARKS, (1, 3)), draw_bytes(rng, WORDS, (1, 4))
        separator = one_of(rng, b"%s" % marks, b"%s " % marks, b" %s " % marks, b" %s " % word)
    if draw(rng, 2):
        rest = bytes(c for c in MARKS if c not in separator)
        end = one_of(rng, b"%s", b"%s ", b"%s\n") % draw_bytes(rng, rest, (1, 1))
    used = separator + end
    characters = one_of(rng, MARKS + LETTERS + DIGITS + CAPITALS, bytes(range(ord("!"), BYTES)))
    free = bytes(c for c in characters if c not in used + HELD_BACK)
    letters = one_of(rng, LETTERS, CAPITALS, LETTERS + CAPITALS, LETTERS + DIGITS, DIGITS)
    values = (DIGITS, LETTERS, CAPITALS, LETTERS + DIGITS, LETTERS + CAPITALS)
    longest = 1 + draw(rng, 12)
    return Style(
        separator=separator,
        end=end,
        key_letters=letters,
        key_lengths=(1, 1 + draw(rng, 12)),
        joint=one_of(rng, b"", b"", *(bytes([c]) for c in b"._" if c not in used)),
        values=(one_of(rng, *values, *3 * [draw_bytes(rng, free, (2, 32))]),),
        value_lengths=(one_of(rng, 1, longest), longest),
        facts=one_of(rng, MAX_FACTS, 1 + draw(rng, 4), 1 + draw(rng, 32)),
        gap=one_of(rng, 0, 0, chunk // 2, 16 * chunk),
        alike=one_of(rng, 0, 1),
        twice=one_of(rng, 0, 1, 2),
        absent=one_of(rng, 0, 1, 1),
    )


def draw_plain_style(rng: Generator, chunk: int) -> Style:
    """Lines of `key=value`, in a quarter of the contexts with text between them, in up to half with
    keys that stand twice, in up to half with questions for keys that are not there."""
    gap = one_of(rng, 0, 0, 0, chunk // 2)
    return Style(gap=gap, twice=one_of(rng, 0, 1), absent=one_of(rng, 0, 1))


def write_facts(
    text: Text, rng: Generator, size: int, style: Style
) -> tuple[bytes, dict[bytes, bytes], dict[bytes, int]]:
    """(context, facts, places): up to `size` bytes; the value of each key, even of one that is
    cut; where each fact begins that is whole and the last of its key."""
    context, facts, places = bytearray(), {}, {}
    for _ in range(4 * style.facts):  # there may be fewer keys than facts
        known = list(facts)
        again = known and draw(rng, 8) < style.twice
        key = one_of(rng, *known) if again else style.key(rng, known)
        if key in facts and not again:
            continue
        if style.gap:
            context += sample_piece(text, style.gap, rng) + b"\n"
        if len(context) >= size or len(facts) == style.facts:
            break
        facts[key], places[key] = style.value(rng), len(context)
        context += key + style.separator + facts[key] + style.end
        if len(context) > size:
            del places[key]
    if style.gap and len(context) < size:
        context += sample_piece(text, size - len(context), rng)
    return bytes(context[:size]), facts, places


def recall_example(
    text: Text, rng: Generator, chunk: int, chunks: int, distance=0, style: Style | None = None
) -> Example:
    """Facts in a context of up to `chunks` chunks and an open one, and up to MAX_TURNS questions
    for values, in a plain style if none is given. Or, given a distance, one question for a value
    whose fact begins so many chunks before the question's own. Raises UserError if no fact fits.
    Text may hold a fact by chance: one question in some thousands."""
    for _ in range(10 * TRIES):  # in chunks of 16 bytes some styles fit once in 400
        size = chunks * chunk + draw(rng, chunk)
        how = style or (Style(facts=size) if distance else draw_plain_style(rng, chunk))
        context, facts, places = write_facts(text, rng, size, how)
        own = len(context) // chunk  # the question's own chunk
        asked = [key for key, at in places.items() if distance in (0, own - at // chunk)]
        if not asked:
            continue
        order = torch.randperm(len(asked), generator=rng).tolist()
        turns = [(asked[i], facts[asked[i]]) for i in order[: 1 if distance else MAX_TURNS]]
        for _ in range(draw(rng, 2 + len(turns) // 4) * how.absent):
            key = how.key(rng, list(facts))
            if key not in facts and not (how.gap and key + how.separator in context):
                turns[draw(rng, len(turns))] = (key, NOT_THERE)
        return Example(context, tuple(turns))
    raise UserError(f"no fact fits {chunks} chunks of {chunk} bytes at distance {distance}")


def styled_example(text: Text, rng: Generator, chunk: int, chunks: int) -> Example:
    """`recall_example` in a style that is drawn."""
    return recall_example(text, rng, chunk, chunks, style=draw_style(rng, chunk))


# ---------------------------------------------------------------------------------- passages


def repeat_example(text: Text, rng: Generator, chunk: int, chunks: int, tries=TRIES) -> Example:
    """Text of `chunks` chunks and an open one, and up to MAX_PASSAGES questions to repeat it
    from a line on, up to a chunk's length. Raises UserError if no such line is found."""
    for _ in range(tries):
        context = sample_without_roles(text, chunks * chunk + draw(rng, chunk), rng)
        turns: list[tuple[bytes, bytes]] = []
        for start in torch.randperm(chunks * chunk, generator=rng).tolist():
            if context[start - 1 : start] != b"\n":
                continue
            line = context[start : start + QUOTED].split(b"\n")[0]
            if len(line.strip()) >= QUOTED // 2 and context.count(line) == 1:
                turns.append((b"Repeat from: " + line, context[start : start + chunk]))
            if len(turns) == MAX_PASSAGES:
                break
        if turns:
            return Example(context, tuple(turns))
    raise UserError("found no line to repeat from: expected text in lines")


EXAMPLES = {"recall": recall_example, "styled": styled_example, "repeat": repeat_example}

# ------------------------------------------------------------------------------- own examples

FIELDS = ("context", "prompt", "response")


def read_examples(path: str, longest: int) -> list[Example]:
    """A user's own examples, shortest first: a file of JSON objects, one a line, of three strings,
    FIELDS. Raises UserError, which names the line, for anything else, for a role's byte and for
    an example of more than `longest` bytes; OSError for what cannot be read."""
    examples = []
    for number, line in enumerate(read_file(path).splitlines(), start=1):
        try:
            fields = json.loads(line.decode())
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
            raise UserError(f"{path}, line {number}: {error}") from None
        examples.append(example)
    if not examples:
        raise UserError(f"{path} is empty, expected a JSON object a line")
    return sorted(examples, key=lambda example: example.length)


def sample_of_similar_length(examples: list[Example], size: float, rng: Generator) -> list[Example]:
    """One of a list that is sorted by length, and the next longer ones that `size` bytes hold."""
    first = last = draw(rng, len(examples))
    while last < len(examples) and examples[last].length * (last + 1 - first) <= size:
        last += 1
    return examples[first : max(last, first + 1)]
