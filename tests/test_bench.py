import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import make_model

from experiments import bench, report
from vist2 import Config


@pytest.fixture
def quick(monkeypatch, capsys):
    """Runs bench.py on a miniature: quick(*arguments) -> what it prints."""
    monkeypatch.setattr(bench, "SEGMENT", 64)
    monkeypatch.setitem(bench.SIZES, "mini", Config.preset("mini"))
    monkeypatch.setattr(bench, "fresh_peak", lambda work, history, *rest: len(history) * 1.0)

    def quick(*arguments):
        bench.main(
            ["--size", "mini", "--device", "cpu", "--lengths", "64", "512", "--repeats", "1"]
            + ["--written", "128", *arguments]
        )
        return capsys.readouterr().out

    return quick


def test_every_table_is_printed_and_written_as_json(quick, tmp_path):
    printed = quick("--json", str(tmp_path / "cost.json"))
    content = json.loads((tmp_path / "cost.json").read_text())
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert (
        content["configs"]["mini"]["width"] == Config.preset("mini").width and content["seed"] == 0
    )
    names = {"reading", "reading memory", "writing", "writing late", "training"}
    assert content["tables"].keys() == names | {"training memory", "counted", "break-even"}
    for table in content["tables"].values():
        assert f"| {' | '.join(table[0])} |" in printed
    assert [row["bytes"] for row in content["tables"]["reading"]] == [64, 512]
    assert [row["bytes"] for row in content["tables"]["training"]] == [512]
    assert content["tables"]["training memory"][0]["saved %"] == -50  # "full", "sketch"


def test_the_cache_holds_what_the_formula_says_and_prompt_saves_nothing_while_writing(
    monkeypatch,
):
    model = make_model(chunk=16)
    n, m = 16, 4
    monkeypatch.setattr(bench, "SEGMENT", 40)
    rows = list(bench.writing(model, 32, 120))
    assert [row["bytes"] for row in rows] == [72, 112, 152]
    for row in rows:
        t = row["bytes"]
        assert row["sketch most"] == max(u // n * m + 1 + u % n for u in range(t - 39, t + 1))
        assert row["sketch entries"] == t // n * m + 1 + t % n
        assert row["full entries"] == t + 1
        assert row["prompt entries"] == 2 * m + 1 + t - 32


@pytest.mark.parametrize("length", [64, 128, 16 * 65])
def test_flops_are_those_counted_by_hand(length):
    config = Config.preset("mini", chunk=16)
    n, m, C = 16, 4, config.width
    model = bench.make_model(config, "meta")
    weights = sum(p.numel() for p in model.decoder.parameters() if p.ndim == 2)
    head = 2 * C * 256
    scores = 4 * config.layers * config.heads * config.head_width  # for one pair of tokens
    chunk = torch.empty(1, 1, n, dtype=int, device="meta")
    encoder = report.flops(lambda: model.compress(chunk))[0]

    def decoder(tokens, entries):
        return tokens * 2 * weights + head + tokens * entries * scores

    full, sketch = (bench.count_deep(config, side, length, encoder) for side in ("full", "sketch"))
    T, S = length + 1, length // n * m + 1
    assert full["torch"] == decoder(T, T) and full["encoder"] == 0
    assert full["read"] == decoder(T, T) - T * T * scores / 2
    assert sketch["encoder"] == length // n * encoder > 0
    assert sketch["torch"] == decoder(S, S) + sketch["encoder"]
    text = torch.empty(1, length, dtype=int, device="meta")
    assert sketch["torch"] == report.flops(lambda: bench.prefill(model, "sketch", text))[0]
    assert sketch["read"] == decoder(S, S) - S * S * scores / 2 + sketch["encoder"]
    steps = [decoder(1, T + 1 + k) for k in range(n)]
    assert full["write"] == pytest.approx(sum(steps) / n)
    steps = [decoder(1, S + 1 + k) for k in range(n - 1)]
    end = decoder(m + 1, S + m) + encoder
    assert sketch["write"] == pytest.approx((sum(steps) + end) / n)
    entry = 2 * config.layers * config.kv_heads * config.head_width * 4  # bytes
    assert (full["entries"], sketch["entries"]) == (T, S)
    assert full["cache"] == T * entry and sketch["cache"] == S * entry


def test_the_papers_sizes_are_counted_beside_its_claims(monkeypatch, capsys):
    monkeypatch.setattr(bench, "PAPER", {"0.6B": bench.PAPER["0.6B"]})
    monkeypatch.setattr(bench, "PAPER_LENGTHS", [4096])
    tables = bench.count_paper((16, 4))
    printed = capsys.readouterr().out
    assert "0.74 billion weights" in printed and "FLOPs 74 % fewer" in printed
    [row] = tables["0.6B"]
    assert 50 < row["saved %"] < 75 < row["as torch counts %"] < 78
    assert 74 < row["cache saved %"] < 75 and row["of it encoder"] > 0


def test_sides_take_turns_after_a_warm_up():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = bench.timed(torch.device("cpu"), 3, sides)
    assert "".join(calls) == "abababab" and [len(t) for t in times.values()] == [3, 3]


def test_a_prompts_time_is_split_without_a_rest():
    [row] = bench.reading(make_model(chunk=16), [64], 1)
    parts = row["= render"] + row["+ encoder"] + row["+ decoder"]
    assert parts == pytest.approx(row["sketch ms"])


def test_a_process_that_is_killed_gets_one_clear_line(monkeypatch):
    killed = subprocess.CompletedProcess([], returncode=-9)  # by the system, out of memory
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(bench.UserError, match="reading 64 bytes as tiny under full needs more mem"):
        bench.fresh_peak("reading", "full", 64, "tiny", (16, 4), "cpu")


def test_numbers_are_written_without_exponents():
    assert [report.written(x) for x in (0.12345, 12345.6, 12345, "at")] == [
        "0.1235",
        "12,346",
        "12,345",
        "at",
    ]


def test_peak_memory_is_that_of_a_fresh_process(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    small, large = (
        bench.fresh_peak("reading", "full", length, "tiny", (16, 4), "cpu")
        for length in (64, 16384)
    )
    assert small < 32 and large > 64  # MiB: the cache of 16 Ki bytes alone
    assert "GLIBC_TUNABLES" not in os.environ


def test_every_length_stands_in_break_even_once_and_where_its_own_speed_puts_it():
    found = bench.break_even({512: 0.5, 1024: 1.3, 2048: 1.05, 4096: 1 / 1.05, 8192: 2.0})
    assert found == {"faster": "1,024 8,192", "level": "2,048 4,096", "slower": "512"}
    assert bench.break_even({64: 2.0})["slower"] == "never"


def test_nothing_that_only_unix_has_is_needed_to_import_anything():
    """resource, fcntl and msvcrt are imported where they are used."""
    folder = os.path.dirname(os.path.dirname(bench.__file__))
    names = [f"experiments.{name}" for name in ("bench", "compare", "figures")] + ["train"]
    code = "import sys; sys.modules.update(resource=None, fcntl=None, pwd=None); import "
    subprocess.run([sys.executable, "-c", code + ", ".join(names)], check=True, cwd=folder)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lengths", "100"], "--lengths is 100, expected a multiple of 64"),
        (["--lengths", "0"], "--lengths is 0, expected"),
        (["--written", "65"], "--written is 65, expected"),
        (["--repeats", "0"], "--repeats is 0, expected"),
        (["--lengths", str(10**9 // 64 * 64), "--size", "8B"], "GiB of weights and cache alone, here are"),
        (["--lengths", str(2**36)], "--lengths is 68719476736, expected 64 to"),
        (["--size", "huge"], "--size is 'huge', expected one of tiny, small"),
        (["--device", "abacus"], "device 'abacus' is not there"),
        (
            ["--json", "no/such/folder/cost.json"],
            "cannot write no/such/folder/cost.json, expected a file",
        ),
        (["--json", "."], "expected a file in a folder"),
    ],
)
def test_bad_settings_get_one_clear_line(quick, arguments, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        quick(*arguments)
    assert stopped.value.code.startswith("bench.py: ") and "\n" not in stopped.value.code
