from functools import partial

import pytest
import torch
from conftest import make_model

from experiments.compare import CELLS
from experiments.rivals import RIVALS, SlowFast, costs, see_newest_chunk
from optim import make_optimizers
from vist2 import READ, START, Config, Vist2, loss

N, n, m = 6, 16, 4
THROUGH_MEMORY = ["sketch", "meanpool", "conv", "queries", "frozen", "prompt", "slowfast"]


def make_rival(name: str, **changes) -> Vist2:
    return make_model(RIVALS[name].model, **changes)


def random_text(rows: int = 1) -> torch.Tensor:
    return torch.randint(256, (rows, N, n))


@pytest.mark.parametrize("name", RIVALS)
def test_no_rival_looks_ahead_and_all_but_none_look_back(name):
    model, text = make_rival(name), random_text()
    history = RIVALS[name].history
    logits = model(text, history=history)
    for chunk, byte in [(0, 0), (1, n - 1), (2, 3), (4, 0)]:
        other = text.clone()
        other[0, chunk, byte] ^= 255
        changed = (model(other, history=history) - logits).abs().amax(-1).flatten() > 0
        assert not changed[: chunk * n + byte + 1].any()
        assert changed[(chunk + 1) * n :].any() == (name != "none")


@pytest.mark.parametrize("name", THROUGH_MEMORY)
def test_text_reaches_later_logits_through_its_memory_alone(name):
    model, text = make_rival(name, layers=1 if name == "slowfast" else 2), random_text()
    memory = model.compress(random_text())
    other = text.clone()
    other[:, :2] = torch.randint(256, (1, 2, n))
    # half of the chunks are the prompt; chunk 3 sees chunk 2, which opens with chunk 1's last byte
    first = {"prompt": 3, "slowfast": 4}.get(name, 2)
    kept = model(other, memory=memory)[:, first:] - model(text, memory=memory)[:, first:]
    assert (kept == 0).all()
    assert not torch.equal(model(other)[:, first:], model(text)[:, first:])


@pytest.mark.parametrize("name", RIVALS)
def test_no_rival_changes_later_logits_when_the_first_chunks_are_not_asked_for(name):
    model, text = make_rival(name), random_text(2)
    history = RIVALS[name].history
    late = model(text, history=history, skip=4)
    torch.testing.assert_close(late, model(text, history=history)[:, 4:])


@pytest.mark.parametrize("name", ["gist", "leak"])
def test_where_memory_reads_text_in_the_decoder_text_passes_by_a_fixed_memory(name):
    model, text = make_rival(name), random_text()
    memory, other = model.compress(text), text.clone()
    other[:, 0] ^= 255
    assert not torch.equal(model(other, memory=memory)[:, 2:], model(text, memory=memory)[:, 2:])


@pytest.mark.parametrize("ratio", CELLS)
@pytest.mark.parametrize("name", [k for k, v in RIVALS.items() if v.history == "sketch"])
def test_a_chunk_leaves_exactly_m_tokens_and_each_spells_its_bytes(name, ratio):
    model = make_rival(name, chunk=64, cell=CELLS[ratio])
    memory = model.compress(torch.randint(256, (2, 3, 64)))
    assert memory.shape == (2, 3, 64 // ratio, model.config.width)
    assert model.predict_patch_bytes(memory).shape == (2, 3, 64, 256)


@pytest.mark.parametrize("name", ["meanpool", "conv"])
def test_a_token_knows_its_own_bytes_first_of_all(name):
    model, text = make_rival(name), torch.randint(256, (1, 1, n))
    other = text.clone()
    other[0, 0, 5] ^= 255  # of token 1
    moved = (model.compress(other) - model.compress(text)).abs().amax(-1).flatten()
    assert moved.argmax() == 1 and moved[3] == 0


def test_recent_sees_as_many_bytes_as_there_would_be_tokens():
    model, text = make_rival("recent", layers=1), random_text()  # one layer: nothing in between
    logits = model(text)
    chunk, seen = 3, 3 * m
    for back in (seen + 1, seen):  # bytes before the newest, which opens the chunk
        other = text.flatten(1).clone()
        other[0, chunk * n - 1 - back] ^= 255
        changed = not torch.equal(model(other.view_as(text))[:, chunk], logits[:, chunk])
        assert changed == (back == seen)


def test_a_window_of_all_chunks_is_a_plain_gpt_and_of_none_is_sketch(monkeypatch):
    model, text = make_model(), random_text(2)
    openings = torch.cat([torch.full((2, 1), START), text[:, :-1, -1]], dim=1)
    slowfast = SlowFast(model.config).eval()
    slowfast.load_state_dict(model.state_dict())
    assert not torch.allclose(slowfast(text), model(text))
    for window, history in ((N, "full"), (0, "sketch")):
        rule = partial(see_newest_chunk, window=window)
        monkeypatch.setattr("experiments.rivals.see_newest_chunk", rule)
        torch.testing.assert_close(slowfast(text), model(text, openings, history))


@pytest.mark.parametrize("name", ["recent", "slowfast", "leak", "gist"])
def test_at_the_default_window_a_byte_sees_what_its_rival_keeps(name):
    """By perturbing: how far back a byte of the sixth chunk sees text past a fixed memory."""
    model = make_rival(name, chunk=64, chunks=8, layers=1)
    text = torch.randint(256, (1, 8, 64))
    memory = None if name == "recent" else model.compress(text)
    more = {"history": RIVALS[name].history, "memory": memory}
    logits = model(text, **more)[0, 5]
    seen = set()
    for chunk in range(5):
        other = text.clone()
        other[0, chunk, :-1] ^= 255
        if not torch.equal(model(other, **more)[0, 5], logits):
            seen.add(chunk)
    assert seen == {"recent": {3, 4}, "slowfast": {4}}.get(name, set())


def test_slow_and_fast_reads_from_the_sketch_alone():
    model, text = make_rival("slowfast"), torch.randint(256, (1, 2, n))
    openings, memory = torch.tensor([[START, READ]]), model.compress(text)
    other = text.clone()
    other[:, 0] ^= 255
    read = model(other, openings, memory=memory)[:, 1]
    torch.testing.assert_close(read, model(text, openings)[:, 1])


@pytest.mark.parametrize("name", RIVALS)
def test_a_few_steps_lower_the_loss(name):
    torch.manual_seed(0)
    model = RIVALS[name].model(Config.preset("mini", chunk=n))
    optimizers, text = make_optimizers(model, 5e-3), random_text(2)
    losses = []
    for _ in range(8):
        nats = loss(model(text, history=RIVALS[name].history), text)
        nats.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(nats.item())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", ["sketch", "conv", "queries", "gist", "frozen"])
def test_what_makes_memory_learns_but_for_the_frozen_encoder(name):
    torch.manual_seed(0)
    model, text = RIVALS[name].model(Config.preset("mini", chunk=n)), random_text(2)
    torch.nn.init.normal_(model.head.weight, std=0.2)
    makes_memory = {
        key: value
        for key, value in model.named_parameters()
        if key.startswith(("encoder", "query", "slot"))
    }
    assert makes_memory
    loss(model(text), text).backward()
    for value in makes_memory.values():
        assert (value.grad is None) == (name == "frozen")
        assert name == "frozen" or value.grad.abs().sum() > 0


def test_costs_are_those_of_the_default_model():
    entry = 2 * 4 * 4 * 64 * 4 / 1024  # keys and values, 4 layers, 4 heads of 64, fp32
    kept = {name: costs(name, Config()) for name in RIVALS}
    assert {name: (cost["entries"], cost["KiB"]) for name, cost in kept.items()} == {
        "none": (0, 0),
        "full": (64, 64 * entry),
        "sketch": (16, 16 * 128 * 4 / 1024),
        "recent": (16, 16 * entry),
        "meanpool": (16, 8),
        "conv": (16, 8),
        "queries": (16, 8),
        "gist": (16, 16 * entry),
        "slowfast": (16, 8),
        "prompt": (16, 8),
        "leak": (16, 16 * entry),
        "frozen": (16, 8),
    }
    assert kept["slowfast"]["text"] == 64 and kept["sketch"]["text"] == 0
    assert kept["sketch"]["encoder weights"] == 426_368 + 16_512
    assert kept["gist"]["encoder MFLOP"] == 0 < kept["conv"]["encoder MFLOP"]


