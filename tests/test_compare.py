import json
from dataclasses import replace

import pytest
import torch
from conftest import make_model

import compare
import train
from compare import RIVALS, Run, SlowFast
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
    history = RIVALS[name].training
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
    memory = model.remember(random_text())
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
    history = RIVALS[name].training
    late = model(text, history=history, first=4)
    torch.testing.assert_close(late, model(text, history=history)[:, 4:])


@pytest.mark.parametrize("name", ["gist", "leak"])
def test_where_memory_reads_text_in_the_decoder_text_passes_by_a_fixed_memory(name):
    model, text = make_rival(name), random_text()
    memory, other = model.remember(text), text.clone()
    other[:, 0] ^= 255
    assert not torch.equal(model(other, memory=memory)[:, 2:], model(text, memory=memory)[:, 2:])


@pytest.mark.parametrize("ratio", compare.CELLS)
@pytest.mark.parametrize("name", [k for k, v in RIVALS.items() if v.training == "sketch"])
def test_a_chunk_leaves_exactly_m_tokens_and_each_spells_its_bytes(name, ratio):
    model = make_rival(name, chunk=64, cell=compare.CELLS[ratio])
    memory = model.remember(torch.randint(256, (2, 3, 64)))
    assert memory.shape == (2, 3, 64 // ratio, model.config.width)
    assert model.spell(memory).shape == (2, 3, 64, 256)


@pytest.mark.parametrize("name", ["meanpool", "conv"])
def test_a_token_knows_its_own_bytes_first_of_all(name):
    model, text = make_rival(name), torch.randint(256, (1, 1, n))
    other = text.clone()
    other[0, 0, 5] ^= 255  # of token 1
    moved = (model.remember(other) - model.remember(text)).abs().amax(-1).flatten()
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


def test_a_window_of_all_chunks_equals_full_and_of_none_equals_sketch():
    model, text = make_model(), random_text(2)
    torch.testing.assert_close(model(text, window=N), model(text, history="full"))
    slowfast = SlowFast(model.config).eval()
    slowfast.load_state_dict(model.state_dict())
    assert not torch.allclose(slowfast(text), model(text))
    slowfast.window = 0
    torch.testing.assert_close(slowfast(text), model(text))


def test_slow_and_fast_reads_from_the_sketch_alone():
    model, text = make_rival("slowfast"), torch.randint(256, (1, 2, n))
    openings, memory = torch.tensor([[START, READ]]), model.remember(text)
    other = text.clone()
    other[:, 0] ^= 255
    read = model(other, openings, memory=memory)[:, 1]
    torch.testing.assert_close(read, model(text, openings)[:, 1])


@pytest.mark.parametrize("name", RIVALS)
def test_a_few_steps_lower_the_loss(name):
    torch.manual_seed(0)
    model = RIVALS[name].model(Config.preset("mini", chunk=n))
    optimizers, text = train.make_optimizers(model, 5e-3), random_text(2)
    losses = []
    for _ in range(8):
        nats = loss(model(text, history=RIVALS[name].training), text)
        nats.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(nats.item())
    assert losses[-1] < losses[0] - 0.1


def test_gap_closed_is_by_seed_and_blank_where_the_references_hardly_differ():
    run = lambda rival, seed, **bits: {"rival": rival, "seed": seed} | bits
    runs = [
        run("none", 0, **{"bpb": 2.0, "position 0": 4.0, "from 16 on": 1.51}),
        run("full", 0, **{"bpb": 1.0, "position 0": 2.0, "from 16 on": 1.50}),
        run("conv", 0, **{"bpb": 1.25, "position 0": 3.5, "from 16 on": 1.50}),
        run("conv", 1, **{"bpb": 1.25, "position 0": 3.5, "from 16 on": 1.50}),
    ]
    gaps = [{k: v for k, v in r.items() if "gap" in k} for r in compare.with_gaps(runs)]
    assert gaps[2] == {"gap all %": 75.0, "gap 0 %": 25.0} and gaps[3] == {}


@pytest.mark.parametrize("name", ["sketch", "conv", "queries", "gist", "frozen"])
def test_what_makes_memory_learns_but_for_the_frozen_encoder(name):
    torch.manual_seed(0)
    model, text = RIVALS[name].model(Config.preset("mini", chunk=n)), random_text(2)
    torch.nn.init.normal_(model.decoder.head.weight, std=0.2)
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


@pytest.fixture
def quick(monkeypatch, small_file, tmp_path, capsys):
    """Runs compare.py on a miniature: quick(*arguments) -> what it prints."""
    monkeypatch.setattr(Run, "config", property(lambda run: Config.preset("mini")))
    monkeypatch.setitem(train.DEFAULTS, "tiny", train.DEFAULTS["mini"])

    def quick(*arguments):
        out = ["--data", str(small_file), "--out", str(tmp_path / "runs"), "--device", "cpu"]
        compare.main(["--steps", "4", *out, *arguments])
        return capsys.readouterr().out

    return quick


def test_a_comparison_goes_on_where_it_stopped_and_writes_all_it_prints(
    quick, tmp_path, monkeypatch
):
    path = tmp_path / "all.json"
    once = quick("--rivals", "none,full,sketch,gist", "--seeds", "2", "--json", str(path))
    content = json.loads(path.read_text())
    runs = content["runs"]
    assert [(r["rival"], r["seed"]) for r in runs] == [
        (rival, seed) for rival in ("none", "full", "sketch", "gist") for seed in (0, 1)
    ]
    for r in runs:
        assert "gap all %" not in r  # after four steps the references hardly differ
    assert runs[4]["machine"] == content["machine"] and runs[4]["cell"] == [16, 4]
    assert content["settings"]["rival"] == "sketch" and not content["quick"]
    assert [row["writer"] for row in content["writing"]] == ["held-out text", "full", "sketch"]
    assert len(content["controls"]) == 4 and "| gist | 4x |" in once
    monkeypatch.setattr(compare, "train", None)  # a call would fail
    assert quick("--rivals", "none,full,sketch,gist", "--seeds", "2") == once


def test_rivals_are_taught_to_answer_from_where_their_run_ended(quick, sources, tmp_path):
    path = tmp_path / "all.json"
    arguments = ["--rivals", "none,conv,recent,gist", "--data", str(sources), "--recall", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "QUESTIONS", 4)
        once = quick(*arguments, "--json", str(path))
        patch.setattr(compare, "train", None)  # a call would fail
        assert quick(*arguments) == once
    rows = json.loads(path.read_text())["recall"]
    assert [row["rival"] for row in rows] == ["none", "conv", "recent", "gist"]
    assert all(row.keys() == {"rival", "1 back", "2 back", "3 back", "4 back"} for row in rows)
    for folder in (tmp_path / "runs").glob("*-seed0-*"):
        if not folder.name.startswith("full"):  # the judge of writing
            first, then = (
                torch.load(at / "model.pt", weights_only=True)
                for at in (folder, *folder.glob("instruct-4-*"))
            )
            (log,) = folder.glob("instruct-4-*/log.jsonl")
            assert "recall" in json.loads(log.open().readline())
            assert then["info"]["far"] == 32 and first["info"]["far"] == 0


def test_costs_are_those_of_the_default_model():
    entry = 2 * 4 * 4 * 64 * 4 / 1024  # keys and values, 4 layers, 4 heads of 64, fp32
    kept = {name: compare.costs(Run(name, 4, 0, 8, 5e-3)) for name in RIVALS}
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


def test_gist_reads_while_the_others_spell(small_file):
    corpus = compare.load_corpus(str(small_file), 64)
    ours, theirs = (
        Run(name, 4, 0, 60, 5e-3).settings(corpus, torch.device("cpu"))["stages"]
        for name in ("gist", "sketch")
    )
    assert [stage["spelling"] for stage in theirs] == [1, 0, 0, 0]
    assert [stage["spelling"] for stage in ours] == [0, 0, 0, 0]
    for our, their in zip(ours, theirs, strict=True):
        assert our["reading"] + our["spelling"] == their["reading"] + their["spelling"]
        assert our["steps"] == their["steps"]


def test_a_gap_that_some_seed_lacks_is_left_blank():
    run = Run("conv", 4, 0, 8, 5e-3)
    result = {"bpb": 2.0, "gap all %": 50.4}
    assert compare.row(run, [result, result | {"gap 16+ %": 9.0}])["gap 16+ %"] == ""
    assert compare.row(run, [result, result | {"gap all %": 60.0}])["gap all %"] == "55 ± 5"
    assert compare.row(run, [result])["bpb"] == "2.000"


def test_a_run_is_kept_under_all_its_settings(small_file, tmp_path, monkeypatch):
    corpus, cpu, run = (
        compare.load_corpus(str(small_file), 64),
        torch.device("cpu"),
        Run("conv", 4, 0, 8, 5e-3),
    )
    keys = [
        compare.folder_of(replace(run, **change), corpus, cpu, tmp_path).name[-8:]
        for change in (
            {},
            {"rival": "queries"},
            {"ratio": 8},
            {"seed": 1},
            {"steps": 9},
            {"lr": 1},
        )
    ]
    keys.append(compare.folder_of(run, corpus, torch.device("mps"), tmp_path).name[-8:])
    keys.append(compare.folder_of(run, replace(corpus, digest="?"), cpu, tmp_path).name[-8:])
    monkeypatch.setattr(compare, "VERSION", 0)
    keys.append(compare.folder_of(run, corpus, cpu, tmp_path).name[-8:])
    assert len(set(keys)) == 9


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--rivals", "sketch,cnn"], "'cnn' is no rival, expected some of none,full,sketch"),
        (["--ratios", "4,5"], "'5' is no ratio, expected some of 2,4,8,16"),
        (["--seeds", "0"], "--seeds is 0, expected 1 or more"),
        (["--recall", "0"], "--recall is 0, expected 1 or more"),
        (["--out", __file__], "a file, expected a folder"),
        (["--steps", "-3"], "--steps is -3, expected 1 or more"),
        (["--lr", "0"], "--lr is 0.0, expected more than 0 and finite"),
        (
            ["--json", "/nowhere/x.json"],
            "cannot write /nowhere/x.json, expected a file in a folder",
        ),
        (["--data", "/nowhere"], "/nowhere is not there, expected a file or a folder"),
    ],
)
def test_bad_settings_get_one_clear_line(quick, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        quick(*arguments)
    assert stopped.value.code not in (0, None)
    assert said in str(stopped.value.code) + capsys.readouterr().err
