import json
import os
import runpy
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from experiments import bench, report
from vist2 import Config

ROOT = Path(__file__).parent.parent
MACHINE = ("tiny", (16, 4), "cpu")


@pytest.fixture
def printed(monkeypatch, capsys):
    """printed(*arguments) -> what bench.py prints of a miniature."""
    monkeypatch.setattr(bench, "SEGMENT", 32)
    monkeypatch.setitem(bench.SIZES, "mini", Config.preset("mini", chunk=16))
    monkeypatch.setattr(bench, "fresh_peak", lambda work, history, *rest: len(history) * 1.0)
    monkeypatch.setattr(bench, "count_deep", lambda *_: defaultdict(lambda: 1))  # is slow

    def printed(*arguments):
        small = ["--size", "mini", "--lengths", "512", "64", "--written", "64", "--repeats", "1"]
        bench.main([*small, "--device", "cpu", *arguments])
        return capsys.readouterr().out

    return printed


def test_every_table_is_printed_and_written_as_json(printed, tmp_path):
    once = printed("--json", str(tmp_path / "cost.json"))
    content = json.loads((tmp_path / "cost.json").read_text())
    assert content["machine"]["threads"] == torch.get_num_threads() and content["seed"] == 0
    assert content["configs"]["mini"] == vars(bench.SIZES["mini"]) | {"cell": [16, 4]}
    tables = content["tables"]
    names = {"reading", "reading memory", "writing", "writing late", "training"}
    assert tables.keys() == names | {"training memory", "counted", "break-even"}
    for table in tables.values():
        assert f"| {' | '.join(table[0])} |" in once
    assert [row["bytes"] for row in tables["reading"]] == [64, 512]
    assert [row["bytes"] for row in tables["training"]] == [512]
    assert tables["training memory"][0]["saved %"] == -50  # of "full", "sketch"
    parts = map(tables["reading"][0].get, ("= render", "+ encoder", "+ decoder"))
    assert sum(parts) == pytest.approx(tables["reading"][0]["sketch ms"])
    row = tables["writing"][-1]  # 16 bytes were read before, 64 written
    held = [row[f"{side} {kind}"] for side in bench.SIDES for kind in ("entries", "most")]
    assert held == [81, 81, 4 + 65, 4 + 65, 5 * 4 + 1, 4 * 4 + 16]  # as sketch: most, then least
    for even, field in zip(tables["break-even"], ("full / sketch", "sketch / full"), strict=False):
        leads = {row["bytes"]: row[field] for row in tables[even["at"]]}
        assert even == {"at": even["at"]} | bench.break_even(leads)


def test_every_length_stands_in_break_even_once_and_where_its_own_speed_puts_it():
    found = bench.break_even({512: 1.05, 1024: 1.3, 2048: 1.05, 4096: 1 / 1.05, 8192: 2.0})
    assert found == {"faster": "1,024 8,192", "level": "512 2,048 4,096", "slower": "never"}
    assert bench.break_even({64: 0.5})["slower"] == "64"
    assert report.written(0.00001234) == "0.00001234"  # never an exponent


def test_flops_are_those_counted_by_hand():
    config, length = Config.preset("mini", chunk=16), 16 * 65  # more chunks than a group
    n, m, C = 16, 4, config.width
    model = bench.make_model(config, "meta")
    weights = sum(p.numel() for p in model.decoder.blocks.parameters() if p.ndim == 2)
    scores = 4 * config.layers * config.heads * config.head_width  # for one pair of tokens
    chunk = torch.empty(1, 1, n, dtype=int, device="meta")
    encoder = report.flops(lambda: model.compress(chunk))[0]

    def decoder(tokens, entries, text):  # of which so many look back, at four bytes
        look_back = text * 2 * 4 * C * C
        return tokens * 2 * weights + 2 * C * 256 + tokens * entries * scores + look_back

    full, sketch = (bench.count_deep(config, side, length, encoder) for side in ("full", "sketch"))
    T, S = length + 1, length // n * m + 1
    assert full["torch"] == decoder(T, T, T) and full["encoder"] == 0
    assert full["read"] == decoder(T, T, T) - T * T * scores / 2
    assert sketch["encoder"] == length // n * encoder > 0
    assert sketch["torch"] == decoder(S, S, 1) + sketch["encoder"]
    assert sketch["read"] == decoder(S, S, 1) - S * S * scores / 2 + sketch["encoder"]
    end = decoder(m + 1, S + m, 1) + encoder  # of a chunk: its sketch comes in place of its bytes
    write = end + sum(decoder(1, S + 1 + k, 1) for k in range(n - 1))
    assert sketch["write"] == write / n
    assert full["write"] == sum(decoder(1, T + 1 + k, 1) for k in range(n)) / n
    entry = 2 * config.layers * config.kv_heads * config.head_width * 4  # bytes
    assert (full["entries"], sketch["entries"]) == (T, S)
    assert full["cache"] == T * entry and sketch["cache"] == S * entry


def test_the_papers_sizes_are_counted_as_ever_beside_its_claims(monkeypatch, capsys):
    monkeypatch.setattr(bench, "PAPER", {"0.6B": bench.PAPER["0.6B"]})
    monkeypatch.setattr(bench, "PAPER_LENGTHS", [4096])
    bench.main(["--paper"])
    once = capsys.readouterr().out
    assert "0.75 billion weights" in once and "FLOPs 74 % fewer" in once
    counts = "5,568 | 1,646 | 622.8 | 70.44 | 76.42 | 1,837 | 1,564 | 4,097 | 1,025 | 896.2 | 224.2"
    assert f"| 4,096 | {counts} | 74.98 |" in once


def test_sides_take_turns_after_a_warm_up():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = bench.timed(torch.device("cpu"), 3, sides)
    assert "".join(calls) == "abababab" and [len(t) for t in times.values()] == [3, 3]


def test_peak_memory_is_that_of_a_fresh_process_and_of_the_work_alone():
    mib = bench.fresh_peak("reading", "full", 2048, *MACHINE)
    cache = 2048 * 8192 / 2**20  # keys and values: 4 layers, 4 heads of 64, float32
    assert cache < mib < 4 * cache  # torch alone takes more
    trained = bench.fresh_peak("training", "full", 128, "bench", [16, 4], "cpu")
    assert trained > 26_500_000 * 4 / 2**20  # gradients, though the warm-up had as many


@pytest.mark.parametrize("environment", [{}, {"GLIBC_TUNABLES": ""}])
def test_a_killed_process_gets_one_clear_line_and_the_environment_stays(monkeypatch, environment):
    monkeypatch.setattr(os, "environ", dict(environment))
    killed = subprocess.CompletedProcess([], returncode=-9)  # by the system, out of memory
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(bench.UserError, match="reading 64 bytes as tiny under full needs more mem"):
        bench.fresh_peak("reading", "full", 64, *MACHINE)
    assert os.environ == environment


def test_what_is_measured_is_kept_where_a_later_table_fails(printed, tmp_path, monkeypatch):
    def fails(work, *_):
        if work == "training":
            raise bench.UserError("no memory")
        return 1.0

    monkeypatch.setattr(bench, "fresh_peak", fails)
    with pytest.raises(SystemExit, match="no memory"):
        printed("--json", str(tmp_path / "cost.json"))
    tables = json.loads((tmp_path / "cost.json").read_text())["tables"]
    assert "training" in tables and "training memory" not in tables


def test_nothing_that_only_unix_has_is_needed_to_import_any_file(monkeypatch):
    for name in ("resource", "fcntl", "pwd", "grp", "termios"):
        monkeypatch.setitem(sys.modules, name, None)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("experiments/*.py")):
        runpy.run_path(str(path))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--lengths 100", "--lengths is 100, expected a multiple of 16"),
        ("--lengths 960000000 --size 8B", "GiB of weights and cache alone, here are"),
        ("--json no/cost.json", "cannot write no/cost.json, expected a file in a folder"),
    ],
)
def test_bad_settings_get_one_clear_line(printed, arguments, message):
    with pytest.raises(SystemExit, match=f"^bench.py: .*{message}[^\n]*$"):
        printed(*arguments.split())
