import pytest
import torch
from conftest import info, make_model, piped

import generate
from common import load_checkpoint, save_checkpoint
from console import UserError
from experiments import sessions
from experiments.compare import CELLS, costs
from experiments.rivals import RIVALS, Leak, load_rival, see_newest_chunk
from mask import Layout, make_layout
from vist2 import READ, START, Config, Vist2, loss

N, n, m = 6, 16, 4
CLOSE = dict(atol=1e-4, rtol=1e-4)
WITH_MEMORY = [name for name, rival in RIVALS.items() if rival.history == "sketch"]


def dials(name: str, ratio: int = 4) -> dict:
    merge = RIVALS[name].merge
    return {"cell": CELLS[ratio // merge], "merge": merge}


def make_rival(name: str, ratio: int = 4, **changes) -> Vist2:
    return make_model(RIVALS[name].model, **dials(name, ratio), **changes)


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
}
SEEN |= {name: own_chunk for name in RIVALS if name not in SEEN}


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
    for ratio in [ratio for ratio in CELLS if ratio // RIVALS[name].merge in CELLS]:
        model = make_rival(name, ratio, chunk=64)
        memory = model.compress(torch.randint(256, (2, 3, 64)))
        assert memory.shape == (2, 3, 64 // ratio, model.config.width)
        spelled, tokens = model.predict_patch_bytes(memory), len(memory[0, 0].unique(dim=0))
        assert spelled.shape == (2, 3, 64, 256)
        share = {"gist": 0, "prune": 1 / 2, "pruned": 1 / 2}.get(name, 1)
        assert spelled.any(dim=-1).float().mean() == share  # of the bytes something is said
        assert tokens == (2 if name == "gist" else 64 // ratio)  # equal slots and the last byte


@pytest.mark.parametrize("name", ["meanpool", "conv", "queries", "patches"])
def test_a_token_stands_for_the_next_bytes_in_the_order_of_the_text(name):
    model, text = make_rival(name), random_text(32)[:, :1]
    memory, other = model.compress(text), text.clone()
    other[:, 0, 6] ^= 255  # of token 1
    moved = (model.compress(other) - memory).norm(dim=-1).mean((0, 1))
    assert moved[1] > 0
    if name not in ("queries", "patches"):  # which look at the whole chunk
        assert moved.argmax() == 1 and moved[3] == 0
    if name == "patches":
        fed: list[torch.Tensor] = []
        model.encoder.embed.register_forward_hook(lambda *call: fed.append(call[-1]))
        model.compress(text), model.compress(other)
        assert (fed[0] != fed[1]).any(-1).any(0).tolist() == [False, True, False, False]
    changed = memory.clone()
    changed[0, 0, 1] += torch.randn(model.config.width)
    spelled = (model.predict_patch_bytes(changed) != model.predict_patch_bytes(memory)).any(-1)
    assert spelled[0].flatten().nonzero().flatten().tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_all_that_makes_memory_learns_but_a_frozen_encoder(name):
    model, text = make_rival(name), random_text(2)
    loss(model(text, memory=model.compress(text)), text).backward()
    shared = ("decoder", "speller", "head", "embedding")
    makes = {k: p for k, p in model.named_parameters() if not k.startswith(shared)}
    learns = {k for k, p in makes.items() if p.grad is not None and p.grad.any()}
    assert learns == {k for k in makes if name != "frozen" or k.startswith("aligner")}


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_few_steps_lower_the_loss(name):
    model, text = make_rival(name), random_text(2)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(10):
        memory = model.compress(text[:, :-1])
        spelled = loss(model.predict_patch_bytes(memory), text[:, :-1])
        losses.append(loss(model(text, memory=memory), text) + spelled)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_patches_are_told_apart_by_their_place_and_train_the_embedding_that_text_has():
    model, text = make_rival("patches"), random_text()
    tokens = model.compress(text)
    swapped = model.compress(text.view(1, N, m, 4)[:, :, [1, 0, 2, 3]].flatten(2))
    assert not torch.allclose(swapped[:, :, [1, 0, 2, 3]], tokens, atol=1e-3)
    tokens.sum().backward()
    assert model.embedding.weight.grad.any()


def test_pooled_tokens_are_means_of_a_finer_sketchs():
    model, text = make_rival("poolsketch"), random_text()
    fine = make_model(cell=(16, 8))
    fine.load_state_dict({k: v for k, v in model.state_dict().items() if "speller" not in k}, False)
    tokens = fine.compress(text)  # (1, N, 2 m, C)
    torch.testing.assert_close(model.compress(text), (tokens[:, :, ::2] + tokens[:, :, 1::2]) / 2)


def test_pruning_keeps_the_patches_that_are_looked_at_most_in_order():
    model, text = make_rival("prune"), random_text()
    fine = make_model(cell=(16, 8))
    fine.load_state_dict(model.state_dict())  # all of them
    kept, tokens = model.compress(text), fine.compress(text)  # (1, N, m, C), (1, N, 2 m, C)
    queries = []
    attention = fine.encoder.transformer.blocks[-1].attention
    fine.encoder.attends[-1] = lambda q, k, v: queries.append((q, k)) or torch.zeros_like(q)
    fine.compress(text)
    (q, k), D = queries[0], attention.head_width
    received = (q @ k.mT / D**0.5).softmax(-1).sum((1, 2))  # (N, 2 m)
    for chunk in range(N):
        best = sorted(sorted(range(2 * m), key=lambda i: -received[chunk, i])[:m])
        torch.testing.assert_close(kept[0, chunk], tokens[0, chunk, best])


def test_a_contrastive_loss_changes_no_logit_and_joins_the_gradient():
    model, text = make_rival("contrast"), random_text(2)
    plain = make_model()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "match.weight"})
    memory, states = plain.compress(text), []
    model.decoder.register_forward_hook(lambda *call: states.append(call[-1]))
    logits = model(text, memory=memory, skip=2)
    assert torch.equal(logits, plain(text, memory=memory, skip=2))
    [state] = states  # (2, T, C): sketches of two chunks, then text and sketch of each, then text
    ends = [m - 1, 2 * m - 1] + [2 * m + (n + m) * k - 1 for k in (1, 2, 3)]
    layout = make_layout(N, n, m, N - 1, 2)
    assert layout.is_sketch[ends].all() and layout.position[ends].tolist() == [
        n * (k + 1) - 1 for k in range(N - 1)
    ]
    cosines = torch.nn.functional.cosine_similarity(
        model.match(state[:, ends[:-1]]).view(-1, 1, 48),  # after chunks 0 to N - 3
        memory[:, 1 : N - 1].mean(2).view(1, -1, 48),  # chunks 1 to N - 2
        dim=-1,
    )
    by_hand = -(10 * cosines).log_softmax(-1).diagonal().mean()
    expected = torch.autograd.grad(model.WEIGHT * by_hand, model.match.weight, retain_graph=True)
    logits.sum().backward()
    torch.testing.assert_close(model.match.weight.grad, *expected)


def entries(name: str, t: int) -> int:
    """The designs' formulas for t bytes."""
    finished, rest = divmod(t, n)
    if name in ("full", "none"):
        return 1 + (t if name == "full" else rest)
    text = min(finished, 1) if name == "slowfast" else 0
    return (finished - text) * m + text * n + 1 + rest


@pytest.mark.parametrize("name", [name for name, rival in RIVALS.items() if rival.writing])
def test_a_rolling_cache_equals_the_uncached_forward(name):
    model, text = make_rival(name), random_text(2).flatten(1)
    history = RIVALS[name].history
    model.decoder.rope_base = 10.0  # turns show in the logits
    with torch.inference_mode():
        exact = model(text.view(2, N, n), history=history).flatten(1, 2)  # [t]: after t bytes
        for begin in (3, n - 1, n, 2 * n, 3 * n + 5, 0):
            session = RIVALS[name].writing(model, 2, capacity=N * n)
            logits = [session.prefill(text[:, :begin])]
            end = begin + 2 * n if begin else N * n - 1  # past two edges of chunks, once past all
            for t in range(begin, end):
                assert session.cache_entries == entries(name, t)
                logits.append(session.step(text[:, t]))
            torch.testing.assert_close(torch.stack(logits, 1), exact[:, begin : end + 1], **CLOSE)
        fresh = RIVALS[name].writing(model, 2, capacity=N * n)
        after = session.step(text[:, -1])  # the capacity: the oldest half goes
        torch.testing.assert_close(after, fresh.prefill(text[:, N * n // 2 :]), **CLOSE)
        torch.testing.assert_close(session.step(text[:, 0]), fresh.step(text[:, 0]), **CLOSE)


@pytest.mark.parametrize("name", ["gist", "leak"])
def test_a_rolling_cache_reads_as_the_uncached_forward_does(name):
    model, text = make_rival(name), random_text(2)[:, :2]
    exact = model(text, torch.tensor([[START, READ]]).expand(2, -1))[:, 1]
    session = sessions.GistSession(model, 2, capacity=2 * n)
    logits = [session.prefill(text[:, 0], READ)]
    logits += [session.step(new) for new in text[:, 1, :-1].T]
    torch.testing.assert_close(torch.stack(logits, 1), exact, **CLOSE)


@pytest.mark.parametrize("name", ["patches", "gist", "recent"])
def test_a_checkpoint_of_a_rival_opens_as_that_rival(name, tmp_path):
    model = make_rival(name)
    save_checkpoint(tmp_path / "model.pt", model, info(), settings={"rival": name})
    again, known = load_rival(tmp_path / "model.pt")
    text, history = random_text(), RIVALS[name].history
    assert type(again) is type(model) and known["rival"] == name
    assert torch.equal(again(text, history=history), model(text, history=history))
    said = f"model.pt holds a {type(model).__name__}, expected a Vist2"
    with pytest.raises(UserError, match=said):  # some have the weights of a Vist2, and other eyes
        load_checkpoint(tmp_path / "model.pt")


def test_slow_and_fast_writes_what_the_uncached_forward_finds_likeliest(
    tmp_path, monkeypatch, capsys
):
    model, prompt, new = make_rival("slowfast"), b"def " * 12, 40
    save_checkpoint(tmp_path / "model.pt", model, info(), settings={"rival": "slowfast"})
    arguments = ["--checkpoint", str(tmp_path / "model.pt")]
    arguments += ["--prompt", prompt.decode(), "--history-chunks", str(N), "--stats"]
    arguments += ["--max-new-bytes", str(new), "--temperature", "0"]
    with pytest.raises(SystemExit):
        generate.main(arguments)
    monkeypatch.setattr(generate, "Session", generate.Session)
    monkeypatch.setattr(generate, "open_model", generate.open_model)
    written = piped(monkeypatch, arguments, sessions.main)
    save_checkpoint(tmp_path / "other.pt", make_model(), info())
    with pytest.raises(SystemExit, match="other.pt is of sketch, expected slowfast"):
        sessions.main([*arguments, "--checkpoint", str(tmp_path / "other.pt")])
    text = generate.as_row((prompt + written).ljust(N * n)).view(1, N, n)
    likeliest = model(text)[0].flatten(0, 1).argmax(-1)[len(prompt) :]
    assert list(written) == likeliest[:new].tolist()
    held = entries("slowfast", len(prompt) + new - 1)  # the last byte is not fed
    said = capsys.readouterr().err
    assert f"the cache holds {held} entries" in said and "training was under" not in said
    assert generate.generate(model, prompt, new, history_chunks=N) == written


def test_costs_are_those_of_the_default_model():
    entry = 2 * 4 * 4 * 64 * 4 / 1024  # KiB: keys and values, 4 layers, 4 heads of 64, float32
    kept = {name: costs(name, Config(**dials(name))) for name in RIVALS}
    expected = dict.fromkeys(RIVALS, (16, 16 * 128 * 4 / 1024))  # vectors of the decoder's width
    expected |= dict.fromkeys(("recent", "gist", "leak"), (16, 16 * entry))
    expected |= {"none": (0, 0), "full": (64, 64 * entry)}
    assert {name: (cost["entries"], cost["KiB"]) for name, cost in kept.items()} == expected
    text = {name: cost["text"] for name, cost in kept.items() if cost["text"]}
    assert text == {"slowfast": 64, "prompt": "all after the prompt"}
    assert kept["sketch"]["encoder weights"] == 426_368 + 16_512
    assert kept["gist"]["encoder MFLOP"] == 0 < kept["conv"]["encoder MFLOP"]
