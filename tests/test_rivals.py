import pytest
import torch
from conftest import make_model

from experiments.compare import CELLS
from experiments.rivals import RIVALS, Leak, costs, see_newest_chunk
from mask import Layout, make_layout
from vist2 import READ, START, Config, Vist2, loss

N, n, m = 6, 16, 4
WITH_MEMORY = [name for name, rival in RIVALS.items() if rival.history == "sketch"]


def make_rival(name: str, **changes) -> Vist2:
    return make_model(RIVALS[name].model, **changes)


def random_text(rows: int = 1) -> torch.Tensor:
    return torch.randint(256, (rows, N, n))


# Three chunks of two bytes, two sketch tokens; a row sees the keys marked, left to right.
SLOWFAST_AND_LEAK = """
t x . . . . . . .   t x . . . . . . .
t x x . . . . . .   t x x . . . . . .
s . . x . . . . .   s x x x . . . . .
t x x . x . . . .   t . . x x . . . .
t x x . x x . . .   t . . x x x . . .
s . . x . . x . .   s . . x x x x . .
t . . x x x . x .   t . . x . . x x .
t . . x x x . x x   t . . x . . x x x
"""


@pytest.mark.parametrize("column, rule", [(0, see_newest_chunk), (9, Leak.may_attend)])
def test_a_rule_is_the_one_drawn(column, rule):
    rows = [row.split()[column:][:9] for row in SLOWFAST_AND_LEAK.strip().split("\n")]
    layout = make_layout(3, 2, 1, 2)
    assert [row[0] == "s" for row in rows] == layout.is_sketch.tolist()
    seen = rule(Layout(*(field[:, None] for field in layout)), layout)
    assert torch.tensor([[mark == "x" for mark in row[1:]] for row in rows]).equal(seen)


def own_chunk(k, q):  # whose first input is START, so no byte
    return (k // 64 == q // 64) & (k % 64 > 0)


SEEN = {  # by a byte at q, as text, in one layer: the input at k, which is the byte before k
    "full": lambda k, q: k <= q,
    "recent": lambda k, q: k >= q - q % 64 - q // 64 * 16 - 4,  # the oldest looks back itself
    "slowfast": lambda k, q: q // 64 - k // 64 <= 1,
    "prompt": lambda k, q: own_chunk(k, q) | (k > 4 * 64),  # of eight chunks four are the prompt
} | dict.fromkeys(("none", "sketch", "leak", "gist", "conv"), own_chunk)


@pytest.mark.parametrize("name", SEEN)
def test_at_the_default_window_a_byte_moves_what_sees_it_as_text_and_nothing_else(name):
    model, history = make_rival(name, chunk=64, chunks=8, layers=1), RIVALS[name].history
    text = torch.randint(256, (1, 8, 64))
    at = torch.tensor([0, 46, 47, 62, 63, 64, 150, 191, 238, 239, 255, 256, 300, 399, 447, 500])
    others = text.flatten(1).repeat(len(at), 1)
    others[torch.arange(len(at)), at] ^= 255
    text, others = text.expand(len(at), -1, -1), others.view(-1, 8, 64)
    more = {"memory": model.compress(text)} if name in WITH_MEMORY else {}
    moved = model(others, history=history, **more) != model(text, history=history, **more)
    q, k = torch.arange(512), at[:, None] + 1
    assert torch.equal(moved.any(-1).flatten(1), SEEN[name](k, q) & (k <= q))


@pytest.mark.parametrize("name", RIVALS)
def test_a_byte_moves_nothing_before_it_and_later_chunks_but_under_none(name):
    model, text, history = make_rival(name), random_text(), RIVALS[name].history
    logits = model(text, history=history)
    for chunk, byte in [(0, 0), (1, n - 1), (2, 3), (4, 0)]:
        other = text.clone()
        other[0, chunk, byte] ^= 255
        moved = (model(other, history=history) != logits).any(-1).flatten()
        assert not moved[: chunk * n + byte + 1].any()
        assert moved[(chunk + 1) * n :].any() == (name != "none")


@pytest.mark.parametrize("name", RIVALS)
def test_chunks_that_are_skipped_change_no_later_logit(name):
    model, text, history = make_rival(name), random_text(2), RIVALS[name].history
    for skip in (1, 4):
        late = model(text, history=history, skip=skip)
        torch.testing.assert_close(late, model(text, history=history)[:, skip:])


def test_slow_and_fast_reads_from_the_sketch_alone():
    model, text = make_rival("slowfast"), random_text()[:, :2]
    openings, other = torch.tensor([[START, READ]]), text.clone()
    other[:, 0] ^= 255
    read = model(other, openings, memory=model.compress(text))[:, 1]
    torch.testing.assert_close(read, model(text, openings)[:, 1])


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_chunk_leaves_exactly_m_tokens_which_spell_its_bytes(name):
    for ratio, cell in CELLS.items():
        model = make_rival(name, chunk=64, cell=cell)
        memory = model.compress(torch.randint(256, (2, 3, 64)))
        assert memory.shape == (2, 3, 64 // ratio, model.config.width)
        spelled, tokens = model.predict_patch_bytes(memory), len(memory[0, 0].unique(dim=0))
        assert spelled.shape == (2, 3, 64, 256) and spelled.any() == (name != "gist")
        assert tokens == (2 if name == "gist" else 64 // ratio)  # equal slots and the last byte


@pytest.mark.parametrize("name", ["meanpool", "conv", "queries"])
def test_a_token_stands_for_the_next_bytes_in_the_order_of_the_text(name):
    model, text = make_rival(name), random_text(32)[:, :1]
    memory, other = model.compress(text), text.clone()
    other[:, 0, 6] ^= 255  # of token 1
    moved = (model.compress(other) - memory).norm(dim=-1).mean((0, 1))
    assert moved[1] > 0 and (name == "queries" or moved.argmax() == 1 and moved[3] == 0)
    changed = memory.clone()
    changed[0, 0, 1] += torch.randn(model.config.width)
    spelled = (model.predict_patch_bytes(changed) != model.predict_patch_bytes(memory)).any(-1)
    assert spelled[0].flatten().nonzero().flatten().tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_all_that_makes_memory_learns_but_a_frozen_encoder(name):
    model, text = make_rival(name), random_text(2)
    loss(model(text), text).backward()
    shared = ("decoder", "speller", "head", "embedding")
    makes = {k: p for k, p in model.named_parameters() if not k.startswith(shared)}
    learns = {k for k, p in makes.items() if p.grad is not None and p.grad.any()}
    assert learns == {k for k in makes if name != "frozen" or k.startswith("aligner")}


def test_costs_are_those_of_the_default_model():
    entry = 2 * 4 * 4 * 64 * 4 / 1024  # KiB: keys and values, 4 layers, 4 heads of 64, float32
    kept = {name: costs(name, Config()) for name in RIVALS}
    expected = dict.fromkeys(RIVALS, (16, 16 * 128 * 4 / 1024))  # vectors of the decoder's width
    expected |= dict.fromkeys(("recent", "gist", "leak"), (16, 16 * entry))
    expected |= {"none": (0, 0), "full": (64, 64 * entry)}
    assert {name: (cost["entries"], cost["KiB"]) for name, cost in kept.items()} == expected
    text = {name: cost["text"] for name, cost in kept.items() if cost["text"]}
    assert text == {"slowfast": 64, "prompt": "all after the prompt"}
    assert kept["sketch"]["encoder weights"] == 426_372 + 16_512
    assert kept["gist"]["encoder MFLOP"] == 0 < kept["conv"]["encoder MFLOP"]
