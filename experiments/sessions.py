"""Rolling caches of rivals whose memory of a chunk is made while text is still in the cache.

    python -m experiments.sessions --checkpoint MODEL --prompt "def " --stats

Both read a prompt chunk by chunk, as they would write it. The command is `generate.py` for a
checkpoint of the rival `slowfast`, which has no default. Shapes are those of vist2.py.
"""

from functools import partial

import torch
from torch import Tensor

import generate
from cache import Session
from common import open_model
from console import UserError
from vist2 import START, Vist2


class ChunkwiseSession(Session):
    """Base: `_finish_chunk` says what becomes of the cache when a chunk is full. An opening
    that `prefill` is given opens the first chunk."""

    def __init__(self, model: Vist2, batch: int = 1, capacity: int | None = None):
        super().__init__(model, batch, "full", capacity)  # memory is never more than text
        self.history = "sketch"

    @torch.inference_mode()
    def _refill(self, text: Tensor, sketched: int, opening: int) -> Tensor:
        n = self.model.config.chunk
        self.text[:, : text.shape[1]] = text
        self.count = self.mark = self.cache.length = 0
        logits = self._open(torch.full((len(text), 1), opening, device=text.device))
        for start in range(0, text.shape[1], n):
            chunk = text[:, start : start + n]
            run = torch.cat([self.opening, chunk[:, : n - 1]], dim=1)
            x = self.model.embed_text(run, self.opening, skip=1)
            positions = torch.arange(x.shape[1], device=text.device) + start + 1
            self.count = start + chunk.shape[1]
            logits = self._feed(x, positions, opens=False)
            if self.count % n == 0:
                logits = self._finish_chunk()
        return logits

    def _open(self, opening: Tensor) -> Tensor:
        self.opening, self.closed = opening, self.count // self.model.config.chunk
        position = torch.tensor([self.count], device=opening.device)
        return self._feed(self.model.embed_text(opening, opening), position)

    def _add_sketch(self, end: int) -> None:
        """Append the sketch tokens of the chunk that ends at a byte."""
        chunks = end // self.model.config.chunk
        memory, positions = self._sketch(chunks - 1, chunks)
        self._feed(memory, positions, len(positions), opens=False)


class SlowFastSession(ChunkwiseSession):
    """A finished chunk stays text until the next one is finished, then turns into its sketch:

        [ sketches of chunks 0..i-2 | text of chunk i-1 | text of the open chunk i ]

    After t bytes, f = floor(t/n) of them in finished chunks, it holds max(f - 1, 0) m + min(f, 1) n
    + 1 + t mod n entries.
    """

    def _finish_chunk(self) -> Tensor:
        n, held = self.model.config.chunk, self.cache.buffer
        if self.count >= 2 * n:
            newest = held[..., self.mark + n : self.mark + 2 * n, :].clone()
            self.cache.length = self.mark
            self._add_sketch(self.count - n)
            held[..., self.mark : self.mark + n, :] = newest
            self.cache.length = self.mark + n
        return self._open(self.text[:, self.count - 1 : self.count])


class GistSession(ChunkwiseSession):
    """The tokens kept of a chunk read its text in the decoder; then they take the text's place.
    They are all that is left of it: floor(t/n) m + 1 + t mod n entries after t bytes.
    An opening that `prefill` is given opens the chunk after a prompt of whole chunks."""

    def _refill(self, text: Tensor, sketched: int, opening: int) -> Tensor:
        logits = super()._refill(text, sketched, START)
        if opening == START:
            return logits
        self.cache.length = self.mark  # the START that was fed goes
        return self._open(torch.full_like(self.opening, opening))

    def _finish_chunk(self) -> Tensor:
        m, held = self.model.config.sketch_tokens, self.cache.buffer
        mark, end = self.mark, self.cache.length
        self._add_sketch(self.count)
        held[..., mark : mark + m, :] = held[..., end : end + m, :].clone()
        self.cache.length = self.mark
        return self._open(torch.full_like(self.opening, START))


def main(argv: list[str] | None = None) -> None:
    from experiments.rivals import load_rival  # which imports this file

    def load(path, device):
        model, info = load_rival(path, device)
        if info["rival"] != "slowfast":
            raise UserError(f"{path} is of {info['rival']}, expected slowfast")
        return model, info

    def session(model, batch, history, capacity):
        kind = SlowFastSession if history == "sketch" else partial(Session, history=history)
        return kind(model, batch, capacity=capacity)

    # In place of what `generate` and `print_continuation` make; a sketch alone is read as ever.
    generate.Session = session
    generate.open_model = partial(open_model, load=load)
    generate.main(argv)


if __name__ == "__main__":
    main()
