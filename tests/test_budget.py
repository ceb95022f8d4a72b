import json
from pathlib import Path

import pytest
import torch
from conftest import info, make_model

import evaluate
from common import save_checkpoint
from experiments import budget
from experiments.rivals import RIVALS
from questions import Example
from vist2 import Config

FULL, SKETCH = info(history="full"), info(max_window=8 * 16)


def test_a_budget_holds_the_open_chunk_and_sketches_of_chunks_as_many_as_training_saw():
    seen = info(max_window=2048)
    for config, held in ((Config(), [0, 4, 12, 28]), (Config(merge=4), [0, 16, 31, 31])):
        found = [budget.chunks_held(config, seen, entries) for entries in budget.BUDGETS]
        assert found == held
        for chunks, entries in zip(held, budget.BUDGETS, strict=True):
            assert chunks * config.sketch_tokens + config.chunk <= entries
    assert budget.chunks_held(Config(), info(max_window=0), 512) == 0  # stopped while it spelled


def test_a_context_is_cut_to_what_is_held_when_the_response_ends(model):
    context = bytes(range(32, 132))
    example = Example(context, ((b"key", b"value"),))  # 111 bytes in all: 7 chunks of 16
    cut = lambda info, entries: budget.cut(example, model, info, entries)
    assert cut(FULL, 111) == cut(SKETCH, 16 + 6 * 4) == cut(SKETCH, 999) == example
    assert cut(FULL, 51).context == context[60:] and cut(FULL, 51).length == 51
    assert cut(SKETCH, 16 + 2 * 4).context == context[4 * 16 :]
    assert cut(SKETCH, 16).context == context[6 * 16 :] and cut(FULL, 8).context == b""


def test_bits_are_those_of_the_last_chunk_with_no_more_past_than_fits(model):
    text = torch.randint(256, (3, 8 * 16))
    plain = evaluate.bits_of(model, text.unflatten(1, (-1, 16)), "sketch")[:, -1].mean().item()
    assert budget.bits_at(model, SKETCH, text, 999) == (8 * 16, pytest.approx(plain, abs=1e-4))
    seen, bits = budget.bits_at(model, FULL, text, 32)
    expected = []
    for end in (116, 120, 124, 128):  # four bytes each, of the newest 32
        window = text[:, None, end - 32 : end]
        expected.append(evaluate.bits_of(model, window, "full")[:, 0, -4:])
    assert (seen, bits) == (32, pytest.approx(torch.stack(expected).mean().item(), abs=1e-4))


@pytest.fixture
def arguments(tmp_path, small_file, monkeypatch) -> list[str]:
    small_file.write_bytes(5 * small_file.read_bytes())
    monkeypatch.setattr(budget, "DISTANCES", (1, 8))
    monkeypatch.setattr(budget, "BUDGETS", (16, 32))
    monkeypatch.chdir(tmp_path)
    for name in ("full", "sketch", "none"):
        save_checkpoint(name, make_model(), info(history=name))
    for name in ("slowfast", "prompt", "patches", "prune"):
        save_checkpoint(name, make_model(RIVALS[name].model), info(), settings={"rival": name})
    save_checkpoint("new", make_model(), info(), settings={"rival": "cnn"})
    save_checkpoint("long", make_model(chunk=32), info())
    return ["--questions", "2", "--data", str(small_file), "full", "sketch"]


def test_contexts_and_pasts_are_cut_to_what_fits(arguments, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(evaluate, "exact_match", lambda _, some, history: asked.append(some) or 0.5)
    budget.main(["--windows", "3", "--json", "out.json", *arguments])
    rows, said = json.loads(Path("out.json").read_text())["rows"], capsys.readouterr().out
    assert [(row["entries"], row["memory"]) for row in rows] == [
        (entries, history) for entries in (16, 32) for history in ("full", "sketch")
    ]
    assert [row["bytes seen, at most"] for row in rows] == [16, 16, 32, 4 * 16]
    assert f"| {' | '.join(rows[0])} |" in said
    budget.main(["--windows", "1", "--json", "out.json", *arguments[:4], "patches"])
    assert json.loads(Path("out.json").read_text())["rows"][0]["memory"] == "patches"
    lengths = [max(len(example.context) for example in some) for some in asked]
    assert max(lengths[:4]) < 16 and 16 < lengths[4] < 32 < lengths[7] <= 4 * 16


@pytest.mark.parametrize(
    "more, said",
    [
        (["none"], "none has history none, expected full or sketch"),
        (["slowfast"], "slowfast keeps text beside its sketches"),
        (["prompt"], "prompt keeps text beside its sketches"),
        (["prune"], "prune keeps fewer tokens than its config has"),
        (["long"], "long has chunks of 32 bytes, expected one divisor of 16 for all"),
        (["gone"], "gone is not there"),
        (["patches", "sketch"], "sketch is a second sketch 4x, expected one of each"),
        (["new"], "new is of cnn, expected one of none, full, sketch"),
        (["--windows", "0"], "--windows is 0"),
    ],
)
def test_bad_models_get_one_clear_line(arguments, more, said):
    with pytest.raises(SystemExit) as stopped:
        budget.main([*arguments, *more])
    assert said in str(stopped.value.code)
