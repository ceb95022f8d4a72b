import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from einops import rearrange
from torch.utils._python_dispatch import TorchDispatchMode

from mask import may_attend
from render import CELLS, glyphs, render
from vist2 import (
    HISTORIES,
    PRESETS,
    READ,
    START,
    Config,
    Vist2,
    byte_losses,
    loss,
)

N, n = 4, 16
TINY = asdict(Config.preset("tiny"))  # what users run, with random weights
WINDOWS = pytest.mark.parametrize(
    "sizes, chunks",
    [(TINY, 8), (TINY, 7), ({}, 4), ({}, 7), ({}, 31), ({"chunk": 4}, 40), ({}, 1)],
    ids=["tiny 8", "tiny 7", "mini 4", "mini 7", "mini 31", "short 40", "mini 1"],
)


def random_text(rows=2, chunks=N):
    return torch.randint(256, (rows, chunks, n))


# ---------------------------------------------------------------------------- who moves whom


def moved(model, text, others, **how):
    """Which logits of (1, N, n) bytes are others under (P, N, n) changed ones: (P, N, n) bool."""
    with torch.no_grad():  # rows at the same places in a batch are equal bit for bit
        return (model(others, **how) != model(text.expand_as(others), **how)).any(-1)


def change_a_byte_here_and_there(text):
    """Each row of the result with one other byte, and where: (chunk, position) pairs."""
    chunks, n = text.shape[1:]
    some = {0, 1 % chunks, chunks // 2, chunks - 1}
    places = [(i, (7 * i) % n) for i in sorted(some)] + [(0, n - 1), (chunks - 1, 0)]
    others = text.repeat(len(places), 1, 1)
    for row, (chunk, byte) in zip(others, places):
        row[chunk, byte] ^= 255
    return others, places


@WINDOWS
@pytest.mark.parametrize("history", HISTORIES)
def test_a_byte_moves_what_follows_and_as_text_only_what_may_see_its_text(history, sizes, chunks):
    model = make_model(**sizes)
    n = model.config.chunk
    text = torch.randint(256, (1, chunks, n))
    others, places = change_a_byte_here_and_there(text)
    how = dict(history=history, prompt_chunks=3)
    sketched = {"sketch": chunks, "full": 0, "prompt": 3, "none": 0}[history]
    order, chunk = torch.arange(chunks * n).view(chunks, n), torch.arange(chunks)[:, None]
    memory = model.compress(text).expand(len(places), -1, -1, -1).detach()  # it stays as it was
    changed = moved(model, text, others, **how)
    as_text = moved(model, text, others, memory=memory, **how)
    for row, (i, byte) in enumerate(places):
        later, own = order > i * n + byte, chunk == i
        stays_text = own if history == "none" else own | (i >= sketched)
        assert torch.equal(as_text[row], later & stays_text)
        assert torch.equal(changed[row], later & own if history == "none" else later)


@WINDOWS
@pytest.mark.parametrize("history", ["sketch", "prompt"])
def test_a_sketch_moves_every_later_chunk_and_nothing_before(history, sizes, chunks):
    model = make_model(**sizes)
    text = torch.randint(256, (1, chunks, model.config.chunk)).repeat(chunks, 1, 1)
    memory = model.compress(text).detach()
    other = memory.clone()
    for chunk in range(chunks):
        other[chunk, chunk, chunk % memory.shape[2]] *= -1  # one token
    how = dict(history=history, prompt_chunks=3)
    with torch.no_grad():
        changed = (model(text, memory=other, **how) != model(text, memory=memory, **how)).any(-1)
    sketched = chunks if history == "sketch" else 3
    index = torch.arange(chunks)
    expected = (index > index[:, None]) & (index[:, None] < sketched)
    assert torch.equal(changed, expected[:, :, None].expand_as(changed))


LEAKS = {
    "every earlier byte": lambda query, key: (key.index <= query.index)
    & (key.is_sketch | ~query.is_sketch),
    "its own chunk's bytes to a sketch": lambda query, key: (key.index <= query.index)
    & (key.is_sketch | (query.chunk == key.chunk)),
    "everything behind": lambda query, key: key.index <= query.index,
    "the byte that comes next": lambda query, key: may_attend(query, key)
    | ~query.is_sketch & ~key.is_sketch & (key.index == query.index + 1),
    "no sketch but the last": lambda query, key: may_attend(query, key)
    & (~key.is_sketch | (key.chunk >= query.chunk - 1)),
}


@pytest.mark.parametrize("sizes, chunks", [(TINY, 8), ({}, 7), ({}, 31)], ids=["8", "7", "31"])
@pytest.mark.parametrize("rule", LEAKS)
def test_another_rule_moves_the_logits(monkeypatch, rule, sizes, chunks):
    model = make_model(**sizes)
    text = torch.randint(256, (1, chunks, model.config.chunk))
    with torch.no_grad():
        logits = model(text)
        assert torch.equal(model(text), logits)
        monkeypatch.setattr(Vist2, "may_attend", staticmethod(LEAKS[rule]))
        assert not torch.allclose(model(text)[:, -1], logits[:, -1], atol=1e-3)


@pytest.mark.parametrize("sizes, chunks", [(TINY, 8), ({}, 4)], ids=["tiny", "mini"])
def test_the_gradient_of_a_later_loss_stops_at_earlier_bytes_and_flows_into_their_sketch(
    sizes, chunks, monkeypatch
):
    model, caught = make_model(**sizes), []
    text = torch.randint(256, (1, chunks, model.config.chunk))
    embed = model.embed_text

    def caught_embed(*runs):
        caught.append(embed(*runs))
        caught[-1].retain_grad()
        return caught[-1]

    monkeypatch.setattr(model, "embed_text", caught_embed)
    memory = model.compress(text).detach().requires_grad_()
    loss(model(text, memory=memory)[:, -1], text[:, -1]).backward()
    last, earlier = (x.grad[0].abs().amax(-1) for x in caught)
    assert (earlier == 0).all() and (last > 0).all() and earlier.shape == (chunks - 1, *last.shape)
    assert (memory.grad[0, :-1].abs().amax(-1) > 0).all() and (memory.grad[0, -1] == 0).all()


def test_none_takes_every_chunk_for_a_text_of_its_own(model):
    text = random_text()
    logits = model(text, history="none")
    for chunk in range(N):
        alone = model(text[:, chunk : chunk + 1], history="full")[:, 0]
        torch.testing.assert_close(alone, logits[:, chunk])


@pytest.mark.parametrize("merge", [1, 2])
def test_full_equals_a_plain_causal_gpt_of_the_same_weights(merge):
    """Written out once more, without a line of the model's code."""
    model, text = make_model(merge=merge), random_text()
    c = model.config
    ids = torch.cat([torch.full((2, 1), START), text.flatten(1)[:, :-1]], 1)
    rms = lambda x: x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    T, D = ids.shape[1], c.head_width
    angle = torch.outer(torch.arange(T), c.rope_base ** (-torch.arange(0, D // 4, 2) / (D // 4)))
    turn = torch.polar(torch.ones_like(angle), angle)

    def rotate(x):  # pairs of channels of the first quarter as complex numbers
        z = torch.complex(*x[..., : D // 4].chunk(2, -1)) * turn
        return torch.cat([z.real, z.imag, x[..., D // 4 :]], -1)

    def offset(k):
        moved = k.clone()
        moved[:, :, 1:, D // 4 : 3 * D // 4] = k[:, :, :-1, D // 4 : 3 * D // 4]
        return moved

    e = rms(model.embedding.weight)[ids]
    x = e + e[:, :1]  # the opening
    for back, spell in enumerate(reversed(model.speller.weight.split(c.width))):
        x[:, back:] += e[:, : T - back] @ spell
    x = rms(x)
    for block in model.decoder.blocks:
        a, y = block.attention, rms(x)
        q, k, v = (
            (y @ p.weight.T).unflatten(-1, (-1, D)).transpose(1, 2)
            for p in (a.query, a.key, a.value)
        )
        q, k = rotate(rms(q) * a.query_gain), offset(rotate(rms(k)))
        k, v = (z.repeat_interleave(c.heads // c.kv_heads, 1) for z in (k, v))
        scores = (q @ k.mT / D**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ a.out.weight.T
        x = x + (rms(x) @ block.up.weight.T).relu() ** 2 @ block.down.weight.T
    plain = rms(x) @ model.head.weight.T
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


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("skip", [1, 8, 18, 23])
def test_skipping_the_first_chunks_changes_no_later_logit(model, history, skip):
    """With two kinds of openings, in which chunks could be mixed up."""
    text, openings = random_text(chunks=24), torch.tensor([START, READ]).repeat(2, 12)
    how = dict(history=history, prompt_chunks=2)
    late = model(text, openings, skip=skip, **how)
    torch.testing.assert_close(late, model(text, openings, **how)[:, skip:])


def test_text_that_is_skipped_never_enters_the_decoder(model):
    """A prompt costs its sketches and no more."""
    lengths = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    model(random_text(), skip=2)
    assert lengths == [(N - 1) * 4 + (N - 2) * n]


def test_openings_reach_the_chunk_they_open(model):
    text, openings = random_text(), torch.full((2, N), START)
    openings[:, 2] = READ
    changed = (model(text, openings) - model(text)).abs().amax((0, 2, 3)) > 0
    assert changed.tolist() == [False, False, True, False]


def test_a_chunk_length_is_an_argument_of_the_call(model):
    text = torch.randint(256, (2, 64))
    for chunk in (4, 8, 16, 32):
        chunks = rearrange(text, "B (N n) -> B N n", n=chunk)
        assert model(chunks).shape == (2, 64 // chunk, chunk, 256)


@pytest.mark.parametrize("cell", CELLS)
def test_bytes_have_the_code_of_the_patch_whose_last_line_they_are(cell):
    """By hand: the speller takes a token to each of its bytes; transposed, these to the token."""
    model, text = make_model(cell=cell, chunk=64), torch.randint(256, (1, 64))
    start, read = torch.tensor([[START]]), torch.tensor([[READ]])
    line = 16 // cell[1]
    looked = model.embed_text(text, start)[0, line + 2]
    e, parts = model.embed(text)[0, 3 : line + 3], model.speller.weight.split(model.config.width)
    code = sum(byte @ spell for byte, spell in zip(e, parts[-line:], strict=True))
    by_hand = F.rms_norm(e[-1] + model.embed(start)[0, 0] + code, (model.config.width,))
    torch.testing.assert_close(looked, by_hand)
    last = model.embed_text(text, start, skip=line + 2)
    torch.testing.assert_close(last, model.embed_text(text, start)[:, line + 2 :])
    assert (model.embed_text(text, read) != model.embed_text(text, start)).any(-1).all()


class Products(TorchDispatchMode):
    """Remembers what went into each matrix product."""

    def __init__(self):
        super().__init__()
        self.factors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default:
            self.factors += args
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_looking_back_takes_tensors_that_every_device_reads_right(cell, rows):
    """MPS has taken a tensor in strides for a contiguous one and given wrong values."""
    model, text = make_model(cell=cell, chunk=64, merge=2), torch.randint(256, (rows, 64))
    with Products() as products:
        model.embed_text(text, torch.full((rows, 1), START))
    assert len(products.factors) == 2  # a single product
    assert all(factor.is_contiguous() for factor in products.factors)


# ----------------------------------------------------------------------------------- sketches


def test_a_sketch_shows_its_own_chunk_and_no_other(model):
    text = random_text()
    alone = torch.cat([model.compress(text[:, i : i + 1]) for i in range(N)], 1)
    torch.testing.assert_close(model.compress(text), alone)
    assert alone.shape == (2, N, 4, model.config.width) and alone.abs().max() <= 1


@pytest.mark.parametrize("cell", CELLS)
def test_within_a_sketch_every_token_sees_every_patch(cell):
    model, text = make_model(cell=cell, chunk=64), torch.randint(256, (1, 1, 64))
    for byte in (0, 63):  # in the first patch and in the last
        other = text.clone()
        other[..., byte] ^= 255
        moved = (model.compress(other) - model.compress(text)).abs().amax(-1)
        assert (moved > 1e-4).all()


def test_the_encoder_knows_where_a_patch_is():
    """Without positions, tokens would change places with their patches and stay as they are."""
    model, text = make_model(chunk=64), torch.randint(256, (1, 1, 64))
    ratio = model.config.ratio
    first = model.compress(text)[0, 0]
    rolled = model.compress(text.roll(ratio, dims=-1))[0, 0].roll(-1, dims=0)
    assert ((rolled - first).abs().amax(-1) > 1e-4).all()  # rounding moves them by 1e-6


PAGES = [(cell, n) for cell in CELLS for n in (16, 32, 64, 128, 256)]
PAGES = [(cell, n) for cell, n in PAGES if n * cell[0] * cell[1] % 1024 == 0]  # whole rows


@pytest.mark.parametrize("merge", [1, 2, 4])
@pytest.mark.parametrize("cell, n", PAGES + [((16, 4), 12), ((4, 4), 32)])
def test_patch_to_text_finds_each_byte_where_it_is_drawn(cell, n, merge):
    """Cells of a patch are read line by line; each is recognised by its glyph."""
    if n * cell[0] * cell[1] // 256 % merge:
        pytest.skip("no whole number of tokens")
    model, text = make_model(cell=cell, chunk=n, merge=merge), torch.randperm(256)[:n].view(1, 1, n)
    h, w = cell
    patches = rearrange(
        render(text, cell), "1 1 (row H) (col W) -> (row col) H W", H=16, W=16
    )  # as the ViT cuts them
    cells = rearrange(patches, "m (line h) (byte w) -> m (line byte) 1 (h w)", h=h, w=w)
    drawn = (cells == glyphs(cell).flatten(1)).all(-1).int().argmax(-1)  # (m, ratio)
    of_tokens = lambda patches: rearrange(patches, "(m k) r -> 1 1 m (k r)", k=merge)
    found = model.patch_to_text(of_tokens(drawn))
    assert torch.equal(found[..., 0], text)
    two = model.patch_to_text(of_tokens(torch.stack([drawn, drawn + 1000], -1).flatten(1)))
    assert torch.equal(two, torch.stack([text, text + 1000], -1))  # C = 2


@pytest.mark.parametrize("merge", [1, 2, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_a_sketch_token_spells_the_bytes_of_its_patches(cell, merge):
    model, text = make_model(cell=cell, chunk=64, merge=merge), torch.randint(256, (1, 1, 64))
    memory, ratio, m = model.compress(text), model.config.ratio, model.config.sketch_tokens
    spelled = model.predict_patch_bytes(memory)
    first = model.speller.weight[: model.config.width] @ memory[0, 0, 0]
    by_hand = 10 * F.cosine_similarity(first, model.embedding.weight[:256])
    torch.testing.assert_close(spelled[0, 0, 0], by_hand)
    assert spelled.shape == (1, 1, 64, 256)
    for patch in range(m):
        other = memory.clone()
        other[0, 0, patch] *= -1
        changed = (model.predict_patch_bytes(other) != spelled).any(-1).flatten()
        numbers = torch.zeros(m, ratio).index_fill(0, torch.tensor(patch), 1)
        assert torch.equal(changed, model.patch_to_text(numbers[None, None]).flatten() > 0)


@pytest.mark.parametrize("merge", [1, 2, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_works(cell, merge):
    model = make_model(cell=cell, chunk=64, merge=merge)
    assert model.config.ratio == merge * 1024 // (cell[0] * cell[1]) // 4
    text = torch.randint(256, (1, 3, 64))
    assert model.compress(text).shape[2] == 64 // model.config.ratio
    assert model(text).isfinite().all()


# --------------------------------------------------------------------------- loss and training


def test_a_loss_counts_each_weighted_byte_once():
    logits, text = torch.randn(2, 3, 4, 256), torch.randint(256, (2, 3, 4))
    weights = torch.zeros(2, 3, 4)
    weights[1, 2, :2] = torch.tensor([1.0, 3.0])
    nats = -logits[1, 2, :2].log_softmax(-1).gather(-1, text[1, 2, :2, None]).squeeze(-1)
    torch.testing.assert_close(loss(logits, text, weights), (nats[0] + 3 * nats[1]) / 4)
    torch.testing.assert_close(loss(logits, text), loss(logits, text, torch.ones_like(weights)))
    torch.testing.assert_close(byte_losses(logits, text)[1, 2, :2], nats)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loss_is_in_float32_whatever_the_logits_are(dtype, autocast):
    logits, text = (3 * torch.randn(2, 8, 256)).to(dtype), torch.randint(256, (2, 8))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, mean = byte_losses(logits, text), loss(logits, text)
    assert found.dtype == mean.dtype == torch.float32
    assert torch.equal(found, byte_losses(logits.float(), text))


def test_a_new_model_predicts_every_byte_alike():
    model, text = Vist2(Config.preset("mini", chunk=n)), random_text()
    assert (model(text) == 0).all()
    assert loss(model(text), text).item() == pytest.approx(math.log(256))
    assert (model.decoder.blocks[0].attention.query_gain == 2).all()


def test_what_is_evaluated_first_can_be_trained_on_afterwards():
    """Masks are cached, and those of inference mode cannot serve a gradient."""
    model, text = make_model(chunk=32), torch.randint(256, (1, 5, 32))
    for history in HISTORIES:
        with torch.inference_mode():
            model(text, history=history, prompt_chunks=2)
        loss(model(text, history=history, prompt_chunks=2), text).backward()
    assert model.embedding.weight.grad.isfinite().all()


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
    memory = model.compress(text).mean(0, keepdim=True).expand(rows, -1, -1, -1)
    assert loss(model(text, openings, memory=memory), text, weights) > math.log(rows) - 0.01


def test_bf16_stays_close_to_float32(model):
    text, exact = random_text(), None
    with torch.no_grad():
        exact = model(text)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(text).float()
        whole = model.to(torch.bfloat16)(text)
    assert whole.dtype == torch.bfloat16
    for rough in (mixed, whole.float()):
        assert 0 < (rough - exact).norm() / exact.norm() < 0.05


# ------------------------------------------------------------------------------------- config


def test_sizes_follow_from_the_cell():
    for cell, ratio in zip(CELLS, (2, 4, 8, 16)):
        config = Config(cell=cell)
        assert (config.ratio, config.sketch_tokens) == (ratio, 64 // ratio)
    for name in PRESETS:
        assert Config.preset(name, chunk=32).chunk == 32


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(merge=3), "merge is 3, expected a power of two"),
        (dict(merge=32), "a power of two that divides a chunk's 16 patches"),
        (dict(merge=0), "merge is 0, expected int from 1"),
        (dict(chunk=63), "chunk 63 does not divide"),
        (dict(chunk=24), "chunk 24 does not divide"),  # six patches
        (dict(cell=(5, 5)), "cell .* is unknown"),
        (dict(cell=[16, 4]), "cell .* is unknown"),
        (dict(cell=(8, 8)), "cell .* is unknown"),
        (dict(width=0), "width is 0, expected int from 1 to 1,048,576"),
        (dict(width=-128), "width is -128"),
        (dict(layers=1.5), "layers is 1.5, expected int from 1"),
        (dict(layers=10**9), "layers is 1000000000, expected int from 1 to 1,024"),
        (dict(encoder_layers=10**9), "encoder_layers is 1000000000"),
        (dict(mlp=2**64), "mlp is"),
        (dict(width="128"), "width is '128'"),
        (dict(rope_base=float("nan")), "rope_base is nan"),
        (dict(rope_base=0.5), "rope_base is 0.5, expected float from 1 to"),
        (dict(heads=4, kv_heads=3), "heads is 4, expected a multiple of 3"),
        (dict(head_width=12), "head_width is 12, expected a multiple of 8"),
        (dict(encoder_heads=3), "encoder_width is 128, expected a multiple of 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Config(**changes)


def test_what_is_unknown_is_refused_with_what_is_known(model):
    with pytest.raises(ValueError, match="preset 'huge' is unknown, expected one of tiny, small"):
        Config.preset("huge")
    with pytest.raises(ValueError, match="history is 'all', expected one of sketch, full, prompt"):
        model(random_text(), history="all")
