"""What a model reaches on held-out files: bits per byte, reading, and recall by distance.

Nothing here draws from a random state that training uses, so evaluating changes no training.
"""

import math

import torch
from torch import Tensor
from tqdm import tqdm

from console import one_line, printable
from data import Corpus, generator, pair_batch
from generate import generate, read_back
from questions import SHORTEST, Example, question_batch, recall_example
from vist2 import BYTES, READ, Vist2, byte_losses

DISTANCES = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)  # chunks
QUESTIONS = 200  # at each distance
WINDOWS = 64  # held out, that are evaluated for the log


@torch.inference_mode()
def bits_of(model: Vist2, windows: Tensor, history: str, shown: Tensor | None = None) -> Tensor:
    """Bits of each byte of windows (K, N, n): the same shape.

    shown: windows for the sketches to show in place of the text, as a control.
    """
    bits = []
    for start in tqdm(range(0, len(windows), 16), "evaluating", leave=False, delay=5):
        text, memory = windows[start : start + 16].to(model.device), None
        if shown is not None:
            memory = model.compress(shown[start : start + 16].to(model.device))
        logits = model(text, history=history, memory=memory)
        bits.append(byte_losses(logits, text).cpu() / math.log(2))
    return torch.cat(bits)


def held_out_windows(model: Vist2, corpus: Corpus, count: int | None = None) -> Tensor:
    """All held-out windows of the config's length, or the first `count`: (K, N, n)."""
    return corpus.held_out.windows()[:count].view(-1, model.config.chunks, model.config.chunk)


def bits_by_position(bits: Tensor) -> Tensor:
    """The mean at each position in a chunk, in the later half of a window: (K, N, n) -> (n,)."""
    return bits[:, bits.shape[1] // 2 :].mean(dim=(0, 1))


def summarize(bits: Tensor) -> dict[str, float]:
    """Means of (K, N, n) bits: over all, and by position in a chunk in the later half."""
    later = bits_by_position(bits)
    result = {"bpb": bits.mean(), "position 0": later[0], "first 4": later[:4].mean()}
    if len(later) > 16:
        result["from 16 on"] = later[16:].mean()
    return {name: value.item() for name, value in result.items()}


@torch.inference_mode()
def reading_accuracy(model: Vist2, corpus: Corpus, chunks: int) -> dict[str, float]:
    """Share of bytes that READ gets right, teacher-forced, on `chunks` of noise and of text."""
    rng, n = generator("evaluation"), model.config.chunk
    noise = torch.randint(BYTES, (chunks, n), generator=rng)
    page = torch.cat([noise, corpus.held_out.sample(chunks, n, rng)])
    text, openings, *_ = pair_batch(page, page, READ)
    groups = zip(text.to(model.device).split(32), openings.to(model.device).split(32))
    right = torch.cat([model(t, o)[:, 1].argmax(-1) == t[:, 1] for t, o in groups]).float()
    noise, real = right[:chunks].mean().item(), right[chunks:].mean().item()
    return {"reading noise": noise, "reading text": real}


def score(model: Vist2, corpus: Corpus, history: str, bits: Tensor) -> dict[str, float]:
    """A summary of bits (K, N, n); under "sketch" also of reading min(K, 128) chunks a kind."""
    result = summarize(bits)
    if history == "sketch":
        result |= reading_accuracy(model, corpus, min(len(bits), 128))
    return result


def evaluate(model: Vist2, corpus: Corpus, history: str, count: int | None = None):
    """The score on held-out windows (all, or the first `count`)."""
    bits = bits_of(model, held_out_windows(model, corpus, count), history)
    return score(model, corpus, history, bits)


@torch.inference_mode()
def exact_match(model: Vist2, examples: list[Example], history: str) -> float:
    """Share of examples, of one turn each, whose response and STOP are all the likeliest bytes
    after the true ones before them: so what is written at temperature 0 is the response."""
    right = 0
    for first in range(0, len(examples), 16):
        batch = question_batch(examples[first : first + 16], model.config.chunk)
        text, openings, weights = (part.to(model.device) for part in batch[:3])
        predicted = model(text, openings, history, skip=batch.skip).argmax(-1)
        wrong = (predicted != text[:, batch.skip :]) & (weights[:, batch.skip :] > 0)
        right += (~wrong.flatten(1).any(dim=1)).sum().item()
    return right / len(examples)


def sample_questions(corpus: Corpus, chunk: int, distance: int, count: int) -> list[Example]:
    """Fresh questions about plain facts alone, in contexts of eight chunks or of `distance`."""
    rng, chunks = generator("evaluation", "recall", distance), max(8, distance)
    text = corpus.held_out
    return [recall_example(text, rng, chunk, chunks, distance) for _ in range(count)]


def recall_by_distance(
    model: Vist2, corpus: Corpus, history: str, farthest: int, count: int
) -> dict[str, float]:
    """Exact match of recall at each of DISTANCES up to `farthest`, `count` questions each."""
    result = {}
    for distance in DISTANCES:
        if distance <= farthest:
            questions = sample_questions(corpus, model.config.chunk, distance, count)
            result[f"recall {distance}"] = exact_match(model, questions, history)
    return result


def evaluate_briefly(model: Vist2, corpus: Corpus, history: str, recalls: bool) -> dict:
    """For the log."""
    result = evaluate(model, corpus, history, WINDOWS)
    if recalls:
        result |= recall_by_distance(model, corpus, history, 8, QUESTIONS // 8)
    return {name: round(value, 4) for name, value in result.items()}


def report(model: Vist2, corpus: Corpus, info: dict) -> None:
    """What a person wants to see at the end."""
    history, n = info["history"], model.config.chunk
    print(
        f"\nheld-out files of {corpus.name} (digest {corpus.digest}), history {history}, "
        f"{info['step']} steps"
    )
    units = {
        "reading noise": "of random bytes right, teacher-forced",
        "reading text": "of text right, teacher-forced: some of it could be guessed",
    }
    for name, value in evaluate(model, corpus, history).items():
        print(f"  {name:14} {value:6.3f} {units.get(name, 'bits per byte')}")
    if info["max_context"] and n >= SHORTEST:
        print(f"  values recalled exactly, {QUESTIONS} questions at each distance in chunks:")
        for name, value in recall_by_distance(model, corpus, history, 32, QUESTIONS).items():
            print(f"  {name:14} {value:6.3f}")
    window = bytes(corpus.held_out.windows()[0].tolist())
    if history == "sketch":
        print(f"\na chunk       |{one_line(window[:n])}|")
        print(f"read from it  |{one_line(read_back(model, window[:n]))}|")
    prompt = window[: len(window) // 2]
    written = generate(model, prompt, len(window) // 2, temperature=0.8, history=history)
    print(f"\nprompt: ...{printable(prompt[-2 * n :])}")
    print(f"--- continued, at temperature 0.8:\n{printable(written)}")
