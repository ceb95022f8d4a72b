"""Long writing: what becomes of a text when each memory lives on its own output.

Texts go on for 32 chunks after four of held-out text. `full` reads them and tells bits per byte;
names tell whether what stood early is still spelled right late.
"""

import statistics
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from cache import Session
from data import Corpus
from evaluate import bits_of
from experiments.kinds import NAME
from experiments.rivals import RIVALS
from generate import write
from vist2 import Vist2

TEXTS = 32
LENGTH = 8  # stretches that are written, each of half a training window
BEGUN = 4  # letters by which a name is told to be meant


def continue_texts(session: Session, prompts: Tensor, length: int) -> Tensor:
    """(B, T) prompts -> (B, T + length), drawn at temperature 0.8."""
    new = list(write(session, session.prefill(prompts), length, temperature=0.8))
    return torch.cat([prompts, torch.stack(new, dim=1).cpu()], dim=1)


def judge_texts(judge: Vist2, text: Tensor, half: int) -> dict[str, float]:
    """Bits per byte of texts (B, k half) after their first `half` bytes, under a model that sees
    `half` or more bytes before each: of the first and last stretch of `half` bytes and of all;
    and the share of 16-byte strings that have come before in their stretch."""
    windows = text.unfold(1, 2 * half, half).flatten(0, 1)  # (B (k - 1), 2 half)
    chunks = windows.unflatten(1, (-1, judge.config.chunk))
    bits = bits_of(judge, chunks, "full").flatten(1)[:, half:]
    stretches = bits.view(len(text), -1, half).mean(dim=(0, 2))
    repeated = []
    for row in text[:, half:].unfold(1, half, half).flatten(0, 1).tolist():
        strings = [bytes(row[i : i + 16]) for i in range(len(row) - 15)]
        repeated.append(1 - len(set(strings)) / len(strings))
    return {
        "judge bpb, first": stretches[0].item(),
        "judge bpb, last": stretches[-1].item(),
        "judge bpb, all": bits.mean().item(),
        "repeated %": 100 * statistics.mean(repeated),
    }


def copies_of_names(text: bytes, chunk: int) -> list[bool]:
    """Whether it is spelled right, of each name of the later half whose first letters begin a name
    of the earlier half: one of these, or none. What stands in the first chunk of the later half, is
    cut by the end, or has a name that begins so before it in this half, does not count."""
    half, found = len(text) // 2, list(NAME.finditer(text))
    early = {name[0] for name in found if name.end() <= half}
    meant, right = {name[:BEGUN] for name in early}, []
    for name in (name for name in found if name.start() >= half):
        if name[0][:BEGUN] in meant:
            meant.remove(name[0][:BEGUN])
            if name.start() >= half + chunk and name.end() < len(text):
                right.append(name[0] in early)
    return right


def writing_rows(
    writers: Iterable[tuple[str, Vist2]], judge: Vist2, corpus: Corpus
) -> Iterator[dict]:
    """A row for real text and one for each writer, which lives on the memory of its own output.
    Nothing is dropped: writers hold 36 chunks, training's longest windows have 32."""
    n, chunks = judge.config.chunk, judge.config.chunks
    half, length = chunks // 2 * n, LENGTH * (chunks // 2) * n
    windows = corpus.held_out.windows(half + length)
    rng = torch.Generator().manual_seed(0)
    real = windows[torch.randperm(len(windows), generator=rng)[:TEXTS]]

    def row(name: str, text: Tensor) -> dict:
        copies = [right for one in text.tolist() for right in copies_of_names(bytes(one), n)]
        share = sum(copies) / len(copies) if copies else ""
        names = {"names again": len(copies), "spelled right": share}
        return {"writer": name} | judge_texts(judge, text, half) | names

    yield row("held-out text", real)
    for name, model in writers:
        session = RIVALS[name].writing(model, len(real), capacity=half + length + n)
        yield row(name, continue_texts(session, real[:, :half], length))
