import json
from pathlib import Path

import pytest
from conftest import info, make_model

import evaluate
from common import save_checkpoint
from data import load_corpus
from experiments import budget
from questions import Example
from vist2 import Config


def test_a_budget_holds_the_open_chunk_and_what_a_cache_would():
    for ratio, config in ((4, Config()), (16, Config(merge=4))):
        for entries in budget.BUDGETS:
            chunks = budget.reach(config, "sketch", entries)
            held = chunks * config.sketch_tokens + config.chunk
            assert held <= entries < held + config.sketch_tokens or entries == config.chunk
            assert chunks >= (ratio - 1) * budget.reach(config, "full", entries)
    assert [budget.reach(Config(), "full", entries) for entries in budget.BUDGETS] == [0, 1, 3, 7]


def test_a_context_is_cut_to_the_chunks_before_the_open_one():
    context = bytes(range(32, 132))
    example = Example(context, ((b"key", b"value"),))  # 111 bytes in all: 7 chunks of 16
    assert budget.cut(example, 16, 6) == budget.cut(example, 16, 99) == example
    assert budget.cut(example, 16, 2).context == context[4 * 16 :]
    assert budget.cut(example, 16, 0).context == context[6 * 16 :]


@pytest.fixture
def arguments(tmp_path, small_file, monkeypatch) -> list[str]:
    small_file.write_bytes(5 * small_file.read_bytes())
    load = lambda _, window: load_corpus(str(small_file), window)
    monkeypatch.setattr(budget, "load_corpus", load)
    monkeypatch.setattr(budget, "DISTANCES", (1, 8))
    monkeypatch.setattr(budget, "BUDGETS", (16, 32))
    monkeypatch.chdir(tmp_path)
    for name in ("full", "sketch", "none"):
        save_checkpoint(name, make_model(), info(history=name))
    save_checkpoint("long", make_model(chunk=32), info())
    return ["--questions", "2", "full", "sketch"]


def test_contexts_and_pasts_are_cut_to_what_fits(arguments, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(evaluate, "exact_match", lambda _, some, history: asked.append(some) or 0.5)
    budget.main(["--windows", "3", "--json", "out.json", *arguments])
    rows, said = json.loads(Path("out.json").read_text())["rows"], capsys.readouterr().out
    assert [(row["entries"], row["history"]) for row in rows] == [
        (entries, history) for entries in (16, 32) for history in ("full", "sketch")
    ]
    assert [row["bytes of past"] for row in rows] == [0, 0, 16, 4 * 16]
    assert f"| {' | '.join(rows[0])} |" in said
    lengths = [max(len(example.context) for example in some) for some in asked]
    assert max(lengths[:4]) < 16 <= lengths[4] < 32 and lengths[7] <= 5 * 16


@pytest.mark.parametrize(
    "more, said",
    [
        (["none"], "none keeps no past, expected history full or sketch"),
        (["long"], "long has chunks of 32 bytes, expected 16"),
        (["gone"], "gone is not there"),
        (["--windows", "0"], "--windows is 0"),
    ],
)
def test_bad_models_get_one_clear_line(arguments, more, said):
    with pytest.raises(SystemExit) as stopped:
        budget.main([*arguments, *more])
    assert said in str(stopped.value.code)
