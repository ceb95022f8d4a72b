import math
import os

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from einops import rearrange

import vist2
from render import CELLS, render
from vist2 import (
    READ,
    START,
    Config,
    Vist2,
    block_masks,
    interleaved_attention,
    load_checkpoint,
    loss,
    places,
    save_checkpoint,
    visible,
)

N, n = 4, 16


def random_text(rows=2):
    return torch.randint(256, (rows, N, n))


def test_the_mask_is_the_one_drawn_in_its_docstring():
    picture = """
        x . . . . . . .
        x x . . . . . .
        . . x . . . . .
        . . x x . . . .
        . . x x x . . .
        . . x . . x . .
        . . x . . x x .
        . . x . . x x x"""
    ids, positions = places(3, 2, 1, 2)
    order = torch.tensor([2, 3, 0, 4, 5, 1, 6, 7])  # of reading; places() puts sketches first
    drawn = torch.tensor(
        [[mark == "x" for mark in line.split()] for line in picture.strip().splitlines()]
    )
    assert torch.equal(visible(ids[:, order], ids[:, order]), drawn)
    assert positions[order].tolist() == [0, 1, 1, 2, 3, 3, 4, 5]


def test_sketch_tokens_stand_where_their_patch_ends():
    _, positions = places(2, 64, 16, 1)
    assert positions[:16].tolist() == list(range(3, 64, 4))
    assert positions[16:].tolist() == list(range(128))  # the next opening stands at 64


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_blocks_of_text_change_nothing_against_the_whole_mask(blocks):
    m, S = 4, N - 1
    ids, _ = places(N, n, m, S)
    T = ids.shape[1]
    q, k, v = torch.randn(2, 4, T, 8), torch.randn(2, 2, T, 8), torch.randn(2, 2, T, 8)
    whole = F.scaled_dot_product_attention(q, k, v, attn_mask=visible(ids, ids), enable_gqa=True)
    masks = block_masks(ids, S, m, blocks)
    torch.testing.assert_close(interleaved_attention(q, k, v, S * m, masks), whole)


@pytest.mark.parametrize("history", ["sketch", "full", "none", "prompt"])
def test_nothing_looks_ahead(model, history):
    text = random_text(1)
    logits = model(text, history=history, prompt_chunks=2)
    for chunk, byte in [(0, 0), (0, n - 1), (1, 5), (2, 0), (2, n - 1), (3, 7)]:
        other = text.clone()
        other[0, chunk, byte] ^= 255
        changed = (model(other, history=history, prompt_chunks=2) - logits).abs().amax(
            -1
        ).flatten() > 0
        assert not changed[: chunk * n + byte + 1].any()
        later = (chunk + (byte == n - 1)) * n + (byte + 1) % n  # ... and what follows does see it
        if byte < n - 1 or history != "none":
            assert changed[later]


@pytest.fixture(params=[1, 2, 16])
def blocks(request, monkeypatch):
    """Attention in one block, where the mask alone hides other chunks' bytes, and in more."""
    monkeypatch.setattr(vist2, "BLOCKS", request.param)


def test_earlier_text_reaches_logits_only_through_its_sketch(model, blocks):
    text, memory = random_text(), model.remember(random_text())
    logits = model(text, memory=memory)
    other = text.clone()
    other[:, :2] = torch.randint(256, (2, 2, n))
    assert torch.equal(model(other, memory=memory)[:, 2:], logits[:, 2:])
    changed = model(text, memory=memory + torch.eye(N)[1][:, None, None])[:, 2:] - logits[:, 2:]
    assert (changed.abs().amax(-1) > 0).all()
    assert not torch.equal(model(other)[:, 2:], model(text)[:, 2:])  # through its sketch it does


def test_the_gradient_of_a_later_loss_stops_at_earlier_bytes_and_flows_into_their_sketch(
    model, blocks
):
    text, caught = random_text(1), []
    embed = model.embed

    def caught_embed(ids):
        x = embed(ids)
        x.retain_grad()
        caught.append(x)
        return x

    model.embed = caught_embed
    memory = model.remember(text).detach().requires_grad_()
    loss(model(text, memory=memory)[:, 3], text[:, 3]).backward()
    bytes_gradient = caught[0].grad[0].abs().amax(-1)  # (N, n)
    assert (bytes_gradient[:3] == 0).all() and (bytes_gradient[3] > 0).all()
    assert (memory.grad[0, :3].abs().amax(-1) > 0).all() and (memory.grad[0, 3] == 0).all()


def test_none_ignores_earlier_chunks(model):
    text = random_text()
    logits = model(text, history="none")
    assert torch.equal(model(text[:, 2:], history="none"), logits[:, 2:])
    for chunk in range(N):
        torch.testing.assert_close(
            model(text[:, chunk : chunk + 1], history="full")[:, 0], logits[:, chunk]
        )


def test_full_equals_a_plain_causal_gpt_of_the_same_weights(model):
    """Written out once more, without a line of the model's code."""
    text, c = random_text(), model.config
    ids = torch.cat([torch.full((2, 1), START), text.flatten(1)[:, :-1]], 1)
    rms = lambda x: x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    T, D = ids.shape[1], c.head_width
    still = torch.zeros(D // 4)  # the slower half of the pairs
    angle = torch.outer(
        torch.arange(T), torch.cat([c.rope_base ** (-torch.arange(0, D // 2, 2) / D), still])
    )
    turn = torch.polar(torch.ones_like(angle), angle)

    def rotate(x):  # pairs of channels as complex numbers
        z = torch.complex(*x.chunk(2, -1)) * turn
        return torch.cat([z.real, z.imag], -1)

    x = rms(model.decoder.embed.weight[ids])
    for block in model.decoder.blocks:
        a, y = block.attention, rms(x)
        q, k, v = (
            (y @ p.weight.T).unflatten(-1, (-1, D)).transpose(1, 2)
            for p in (a.query, a.key, a.value)
        )
        q, k = rotate(rms(q) * a.gain), rotate(rms(k))
        k, v = (z.repeat_interleave(c.heads // c.kv_heads, 1) for z in (k, v))
        scores = (q @ k.mT / D**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ a.out.weight.T
        x = x + (rms(x) @ block.up.weight.T).relu() ** 2 @ block.down.weight.T
    plain = rms(x) @ model.decoder.head.weight.T
    torch.testing.assert_close(
        model(text, history="full").flatten(1, 2), plain, atol=1e-4, rtol=1e-4
    )


def test_prompt_is_sketch_over_the_prompt_and_full_after_it(model):
    text = random_text()
    prompt = model(text, history="prompt", prompt_chunks=2)
    torch.testing.assert_close(prompt[:, :3], model(text)[:, :3])
    torch.testing.assert_close(
        model(text, history="prompt", prompt_chunks=0), model(text, history="full")
    )
    torch.testing.assert_close(model(text, history="prompt", prompt_chunks=N), model(text))
    assert not torch.allclose(prompt[:, 3], model(text)[:, 3])


@pytest.mark.parametrize("history", ["sketch", "full", "none", "prompt"])
@pytest.mark.parametrize("first", [1, 8, 18, 23])
def test_leaving_out_the_text_of_the_first_chunks_changes_no_later_logit(model, history, first):
    """In 1, 16, 2 and 1 blocks; with two kinds of openings, in which chunks could be mixed up."""
    text, openings = torch.randint(256, (2, 24, n)), torch.tensor([START, READ]).repeat(2, 12)
    how = dict(history=history, prompt_chunks=2)
    late = model(text, openings, first=first, **how)
    torch.testing.assert_close(late, model(text, openings, **how)[:, first:])


def test_text_that_is_left_out_never_enters_the_decoder(model):
    """A prompt costs its sketches and no more."""
    text, lengths = random_text(), []
    model.decoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    model(text, first=2)
    assert lengths == [(N - 1) * 4 + (N - 2) * n]


def test_openings_reach_the_chunk_they_open(model):
    text, openings = random_text(), torch.full((2, N), START)
    openings[:, 2] = READ
    changed = (model(text, openings) - model(text)).abs().amax((0, 2, 3)) > 0
    assert changed.tolist() == [False, False, True, False]


def test_a_sketch_sees_its_own_chunk_only_in_the_encoder(model):
    text = random_text()
    alone = torch.cat([model.remember(text[:, i : i + 1]) for i in range(N)], 1)
    torch.testing.assert_close(model.remember(text), alone)
    assert alone.shape == (2, N, 4, model.config.width) and alone.abs().max() <= 1


@pytest.mark.parametrize("cell", CELLS)
def test_a_sketch_token_spells_the_bytes_that_are_drawn_in_its_patch(cell):
    model, text = make_model(cell=cell, chunk=64), torch.zeros(1, 1, 64, dtype=torch.long)
    memory, ratio = model.remember(text), model.config.ratio
    spelled, blank = model.spell(memory), render(text, cell)
    first = model.speller.weight[: model.config.width] @ memory[0, 0, 0]
    by_hand = 10 * F.cosine_similarity(first, model.decoder.embed.weight[:256])
    torch.testing.assert_close(spelled[0, 0, 0], by_hand)
    assert spelled.shape == (1, 1, 64, 256)
    for byte in range(64):
        ink = (render(text.index_fill(2, torch.tensor(byte), 255), cell) != blank)[0, 0]
        drawn = rearrange(ink, "(row h) (col w) -> (row col) (h w)", h=16, w=16).any(1)
        other = model.spell(memory + drawn[:, None])
        changed = (other != spelled).any(-1).flatten()
        assert drawn.sum() == 1 and changed[byte] and changed.sum() == ratio


def test_a_chunk_length_is_an_argument_of_the_call(model):
    text = torch.randint(256, (2, 64))
    for chunk in (4, 8, 16, 32):
        chunks = rearrange(text, "B (N n) -> B N n", n=chunk)
        assert model(chunks).shape == (2, 64 // chunk, chunk, 256)


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_works(cell):
    model = make_model(cell=cell, chunk=64)
    text = torch.randint(256, (1, 3, 64))
    assert model.remember(text).shape[2] == 64 // model.config.ratio
    assert model(text).isfinite().all()


def test_loss_counts_each_weighted_byte_once():
    logits, text = torch.randn(2, 3, 4, 256), torch.randint(256, (2, 3, 4))
    weights = torch.zeros(2, 3, 4)
    weights[1, 2, :2] = 1
    by_hand = -logits[1, 2, :2].log_softmax(-1).gather(-1, text[1, 2, :2, None]).mean()
    torch.testing.assert_close(loss(logits, text, weights), by_hand)
    torch.testing.assert_close(loss(logits, text), loss(logits, text, torch.ones_like(weights)))


def test_one_batch_is_overfitted_through_sketches_alone():
    """The first byte of a copy: with the sketch it can be read, without it the rows are alike."""
    model = Vist2(Config.preset("mini", chunk=8))
    rows = 16
    chunk = torch.randperm(256)[: rows * 8].view(rows, 1, 8)
    text, openings = chunk.repeat(1, 2, 1), torch.tensor([[START, READ]]).repeat(rows, 1)
    weights = torch.zeros(text.shape)
    weights[:, 1, 0] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nats = loss(model(text, openings), text, weights)
        nats.backward()
        optimizer.step()
    assert nats < 0.05
    memory = model.remember(text).mean(0, keepdim=True).expand(rows, -1, -1, -1)
    assert loss(model(text, openings, memory=memory), text, weights) > math.log(rows) - 0.01


def test_bf16_stays_close_to_float32(model):
    text = random_text()
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(text).float()
    exact = model(text)
    assert (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    "name, decoder, encoder",
    [
        ("0.6B", 0.44e9, 0.30e9),
        ("1.7B", 1.41e9, 0.30e9),
        ("4B", 3.63e9, 0.30e9),
        ("8B", 6.95e9, 0.30e9),
    ],
)
def test_the_papers_sizes_can_be_counted_without_memory(name, decoder, encoder):
    """Qwen3's weights without its embeddings, which bytes have no use for; ViT-L/16."""
    with torch.device("meta"):
        model = Vist2(Config.preset(name))
    count = lambda part: sum(p.numel() for p in part.parameters())
    assert count(model.decoder) == pytest.approx(decoder, rel=0.02)
    assert count(model.encoder) == pytest.approx(encoder, rel=0.02)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(chunk=63), "chunk 63"),
        (dict(cell=(5, 5)), "cell .* is unknown"),
        (dict(cell=[16, 4]), "cell .* is unknown"),
        (dict(cell=(8, 8)), "cell .* is unknown"),
        (dict(cell=(0, 4)), "cell .* is unknown"),
        (dict(width=0), "width is 0"),
        (dict(heads=4, kv_heads=3), "kv_heads is 3"),
        (dict(layers=1.5), "layers is 1.5"),
        (dict(head_width=6), "head_width is 6, expected a multiple of 4"),
        (dict(encoder_heads=3), "encoder_heads is 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Config(**changes)
    with pytest.raises(ValueError, match="preset 'huge' is unknown, expected one of tiny"):
        Config.preset("huge")
    with pytest.raises(ValueError, match="history is 'all', expected one of"):
        make_model()(random_text(), history="all")


def test_a_checkpoint_gives_the_same_model_back(model, tmp_path):
    info = {"step": 3, "history": "sketch"}
    save_checkpoint(tmp_path / "model.pt", model, info)
    again, loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded == info and again.config == model.config
    assert torch.equal(again(text := random_text()), model(text))


def test_what_cannot_be_opened_is_not_called_damaged(model, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "model.pt", model, {})

    def forbidden(*arguments, **more):
        raise PermissionError("not yours")

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(PermissionError, match="not yours"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_checkpoint_cut_anywhere_is_damaged(model, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, {})
    whole = path.read_bytes()
    for kept in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="damaged or not a checkpoint"):
            load_checkpoint(path)


def test_a_kill_while_saving_leaves_the_old_checkpoint_whole(model, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, {"step": 1})

    def killed(*arguments):
        raise SystemExit

    monkeypatch.setattr(os, "replace", killed)  # the new one is written, not yet in its place
    with pytest.raises(SystemExit):
        save_checkpoint(path, model, {"step": 2})
    assert load_checkpoint(path)[1] == {"step": 1}


def test_a_failed_write_leaves_the_old_checkpoint(model, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, {"step": 1})

    def full_disk(content, file):
        file.write(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="cannot write the checkpoint .*No space left"):
        save_checkpoint(path, model, {"step": 2})
    assert load_checkpoint(path)[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
