import pytest
import torch
from conftest import make_model

import cache
from cache import KVCache, Session
from generate import generate
from render import CELLS
from vist2 import HISTORIES, READ, START

n, m = 16, 4
CLOSE = dict(atol=1e-4, rtol=1e-4)


def entries(history: str, sketched: int, t: int, n=n, m=m) -> int:
    """The design's formula for t bytes, the first `sketched` chunks of which are the prompt's."""
    if history == "none":
        return 1 + t % n
    if history == "sketch":
        return t // n * m + 1 + t % n
    sketched = sketched if history == "prompt" else 0
    return sketched * m + 1 + t - sketched * n


@torch.no_grad()
def uncached(model, text, history, prompt_chunks):
    """Logits (B, 256) of the byte after text (B, T), by one whole forward."""
    length = text.shape[1]
    padded = torch.cat([text, torch.zeros(len(text), n - length % n, dtype=torch.long)], dim=1)
    logits = model(padded.view(len(text), -1, n), history=history, prompt_chunks=prompt_chunks)
    return logits.flatten(1, 2)[:, length]


# ------------------------------------------------------------------------------- the kv cache


def test_a_cache_returns_all_that_it_holds_with_what_is_new(model):
    held = KVCache(model.config, batch=3, capacity=5, weight=torch.zeros(1))
    k, v = torch.randn(2, 2, 3, 2, 7, 16).unbind()  # (layer, B, KV, T, D)
    for layer in range(2):
        returned = held.append(layer, k[layer, :, :, :4], v[layer, :, :, :4])
        assert torch.equal(returned, torch.stack([k[layer, :, :, :4], v[layer, :, :, :4]]))
    assert held.length == 0  # all layers write at one length, which the session moves
    held.length = 2  # the rest is forgotten
    for layer in range(2):
        returned = held.append(layer, k[layer, :, :, 4:], v[layer, :, :, 4:])
        expected = torch.stack([k[layer], v[layer]])[:, :, :, [0, 1, 4, 5, 6]]
        assert torch.equal(returned, expected)
        assert returned.data_ptr() == held.buffer[:, layer].data_ptr()  # a view: nothing is copied
    assert held.buffer.dtype == torch.float32


def test_a_full_cache_takes_no_more(model):
    held = KVCache(model.config, batch=1, capacity=3, weight=torch.zeros(1))
    held.length = 2
    with pytest.raises(RuntimeError):
        held.append(0, torch.zeros(1, 2, 2, 16), torch.zeros(1, 2, 2, 16))


# ----------------------------------------------------------------------- cached equals uncached


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("prompt", [0, n - 1, n, 3 * n + 5])
def test_cached_equals_uncached_and_holds_not_an_entry_more(model, monkeypatch, history, prompt):
    monkeypatch.setattr(cache, "GROUP", 2)  # so that three chunks are encoded in two groups
    text = torch.randint(256, (2, 5, n))
    line = text.flatten(1)
    with torch.no_grad():
        expected = model(text, history=history, prompt_chunks=prompt // n).flatten(1, 2)
    session = Session(model, 2, history, capacity=6 * n)
    logits = session.prefill(line[:, :prompt])
    for t in range(prompt, 5 * n):
        torch.testing.assert_close(logits, expected[:, t], **CLOSE)
        assert session.cache_entries == entries(history, prompt // n, t)
        entry = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head width, bytes of a float
        assert session.cache_bytes == 2 * session.cache_entries * entry
        logits = session.step(line[:, t])


@pytest.mark.parametrize("chunk, cell", [(64, cell) for cell in CELLS] + [(12, (16, 4))])
def test_cached_equals_uncached_for_every_cell(chunk, cell):
    model, text = make_model(chunk=chunk, cell=cell), torch.randint(256, (1, 3, chunk))
    with torch.no_grad():
        expected = model(text).flatten(1, 2)
    session, m = Session(model), model.config.sketch_tokens
    logits = session.prefill(text.flatten(1)[:, : chunk + 2])
    for t in range(chunk + 2, 3 * chunk):
        torch.testing.assert_close(logits, expected[:, t], **CLOSE)
        assert session.cache_entries == entries("sketch", 0, t, chunk, m)
        logits = session.step(text.flatten(1)[:, t])


def test_reading_in_a_session_equals_the_training_pair(model):
    chunk = torch.randint(256, (3, n))
    openings = torch.tensor([[START, READ]]).repeat(3, 1)
    with torch.no_grad():
        pair = model(torch.stack([chunk, chunk], 1), openings)[:, 1]
    session = Session(model, 3)
    logits = session.prefill(chunk, READ)
    for k in range(n):
        torch.testing.assert_close(logits, pair[:, k], **CLOSE)
        logits = session.step(chunk[:, k])


def test_a_second_prefill_starts_anew(model):
    first, second = torch.randint(256, (2, 1, 3 * n + 3))
    session = Session(model)
    session.prefill(first)
    for t in range(2 * n + 1, 3 * n + 3):
        logits = session.prefill(second[:, :t])
        torch.testing.assert_close(logits, Session(model).prefill(second[:, :t]))
        assert session.cache_entries == entries("sketch", 0, t)
    assert session.capacity == 4 * n  # a training window


def test_a_session_keeps_no_graph(model):
    session = Session(model)
    logits = [session.prefill(torch.zeros(1, n - 1, dtype=torch.long))]
    logits += [session.step(torch.zeros(1, dtype=torch.long)) for _ in range(2)]
    assert not any(row.requires_grad for row in logits) and not session.cache.buffer.requires_grad


def test_a_session_in_bf16_stays_close_to_float32(model):
    text = torch.randint(256, (1, 4 * n))
    exact, rough = [], []
    for found, dtype in ((exact, torch.float32), (rough, torch.bfloat16)):
        session = Session(model.to(dtype), 1)
        found.append(session.prefill(text[:, : 2 * n]).float())
        found += [session.step(byte).float() for byte in text[:, 2 * n : 4 * n - 1].T]
        assert session.cache.buffer.dtype == dtype
    exact, rough = torch.cat(exact), torch.cat(rough)
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("history", HISTORIES)
def test_cached_writing_equals_uncached_byte_for_byte(model, history):
    for prompt in (b"", b"x" * 2 * n, bytes(range(44))):
        written = generate(model, prompt, 2 * n + 2, history=history, history_chunks=6)
        text = torch.tensor([[*prompt]], dtype=torch.long)
        for _ in range(2 * n + 2):
            logits = uncached(model, text, history, len(prompt) // n)
            text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=1)
        assert written == bytes(text[0, len(prompt) :].tolist())


# ----------------------------------------------------------------------------- past capacity


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("capacity", [2 * n, 4 * n, 5 * n, 5 * n + 3])
def test_past_its_capacity_a_session_equals_a_fresh_prefill_of_what_it_holds(
    model, history, capacity
):
    """The oldest half of the chunks goes, of five chunks three, and START opens the rest."""
    prompt_chunks = capacity // n - 1
    half = {2: 1, 4: 2, 5: 3}[capacity // n]
    text = torch.randint(256, (2, capacity + half * n + n + 1))
    session = Session(model, 2, history, capacity)
    session.prefill(text[:, : prompt_chunks * n + 3])
    buffer, begin, drops = session.cache.buffer.data_ptr(), 0, 0
    for t in range(prompt_chunks * n + 3, text.shape[1]):
        logits = session.step(text[:, t])
        dropped = t + 1 - begin == capacity
        if dropped:
            begin, prompt_chunks, drops = begin + half * n, max(0, prompt_chunks - half), drops + 1
        held = text[:, begin : t + 1]
        assert session.count == held.shape[1] < capacity
        assert session.cache_entries == entries(history, prompt_chunks, held.shape[1])
        if dropped or t % n in (0, 7, 15):
            expected = uncached(model, held, history, prompt_chunks)
            torch.testing.assert_close(logits, expected, **CLOSE)
        if dropped and history != "prompt":  # of which a fresh one sketches more
            fresh = Session(model, 2, history, capacity).prefill(held)
            torch.testing.assert_close(logits, fresh, **CLOSE)
    assert drops >= 2 and session.cache.buffer.data_ptr() == buffer  # the buffer is made once


@pytest.mark.parametrize("history", HISTORIES)
def test_the_largest_prompt_fits_and_one_byte_more_is_refused(model, history):
    session = Session(model, 1, history, capacity=3 * n)
    text = torch.randint(256, (1, 3 * n))
    logits = session.prefill(text[:, :-1])
    torch.testing.assert_close(logits, uncached(model, text[:, :-1], history, 2), **CLOSE)
    with pytest.raises(ValueError, match="the prompt is 48 bytes, expected under 48"):
        session.prefill(text)


def test_a_session_that_cannot_be_is_refused(model):
    with pytest.raises(ValueError, match="history is 'nine', expected one of sketch, full, "):
        Session(model, history="nine")
    with pytest.raises(ValueError, match="capacity is 31 bytes, expected at least two chunks, 32"):
        Session(model, capacity=2 * n - 1)
    Session(model, capacity=2 * n)
