import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_model

import curriculum
import evaluate
import train
from console import UserError
from data import load_corpus
from experiments import compare, sweep
from experiments.bench import count_deep, encoder_flops
from vist2 import Config

HOW = dict(device="cpu", steps=3, lr=5e-3)
COST = 0.0025  # GFLOP


@pytest.fixture(autouse=True)
def miniature(monkeypatch):
    mini = lambda run: Config.preset("mini", chunk=16, merge=run.merge)
    monkeypatch.setattr(train.Settings, "config", property(mini))
    monkeypatch.setitem(curriculum.DEFAULTS, "tiny", curriculum.DEFAULTS["mini"])
    monkeypatch.setattr(evaluate, "QUESTIONS", 4)
    monkeypatch.setattr(sweep, "PROMPT", 64)
    monkeypatch.setattr(sweep, "COSTS", (COST,))
    monkeypatch.setattr(sweep, "RATIOS", {ratio: sweep.RATIOS[ratio] for ratio in (1, 4, 16)})
    monkeypatch.setattr(sweep, "STEP", 32)  # counting takes a while, and is kept from test to test


@pytest.mark.parametrize("ratio", [1, 4, 16])
def test_a_run_is_the_widest_that_fits(ratio):
    run = sweep.fit_run(ratio, COST, **HOW)
    wider = replace(run, width=run.width + sweep.STEP, mlp=4 * (run.width + sweep.STEP))
    more = replace(run, mlp=run.mlp + sweep.STEP)
    costs = [sweep.count_costs(one.config, run.history)["read"] for one in (run, wider, more)]
    assert 0.9e9 * COST < costs[0] <= 1e9 * COST < min(costs[1:])
    assert run.config.width == run.width and run.config.mlp == run.mlp >= 4 * run.width
    assert ratio == 1 or run.config.ratio == ratio
    decoder = count_deep(run.config, run.history, 64, 0)["read"]
    encoder = encoder_flops(run.config) * 64 // 16 if run.history == "sketch" else 0
    assert costs[0] == decoder + encoder and (ratio == 1 or encoder > 0)


def test_all_that_fits_is_trained_scored_and_written(small_file, tmp_path, monkeypatch, capsys):
    small_file.write_bytes(5 * small_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    options = ["--data", str(small_file), "--steps", "3", "--device", "cpu", "--json", "sizes.json"]
    sweep.main([*options, "--sizes"])
    sizes = json.loads(Path("sizes.json").read_text())["rows"]
    assert [row["ratio"] for row in sizes] == list(sweep.RATIOS) and not Path("runs").exists()
    widths = [row["width"] for row in sizes]  # compressed text affords more parameters
    assert widths == sorted(widths) and widths[-1] > widths[0]
    sweep.main(options)
    rows = json.loads(Path("sizes.json").read_text())["rows"]
    assert [row["width"] for row in rows] == [row["width"] for row in sizes]
    assert all(row.keys() == rows[0].keys() for row in rows) and rows[1]["recall 4"] >= 0
    fitted = [sweep.fit_run(r, COST, **HOW, out="runs/sweep") for r in sweep.RATIOS]
    said = capsys.readouterr().out
    assert f"| {' | '.join(rows[0])} |" in said
    monkeypatch.setattr(compare, "train", None)  # a call would fail: all is kept
    sweep.main(options)
    corpus = load_corpus(str(small_file), 64)
    scores = [compare.score_or_load(run, corpus, None)["bpb"] for run in fitted]
    assert [row["bpb"] for row in rows] == scores and len(set(scores)) == 3
    assert make_model(merge=4).config.ratio == rows[-1]["ratio"]


def test_bad_settings_get_one_clear_line(tmp_path):
    with pytest.raises(SystemExit, match="sweep.py: --steps is 0"):
        sweep.main(["--steps", "0"])
    with pytest.raises(SystemExit, match="--out is .*, a file, expected a folder"):
        sweep.main(["--out", __file__])
    with pytest.raises(SystemExit, match="--out .* lies in --data"):
        sweep.main(["--data", str(tmp_path), "--out", str(tmp_path / "runs")])
    with pytest.raises(UserError, match="no decoder reads 64 bytes at 16x for 1e-06 GFLOP"):
        sweep.fit_run(16, 1e-6, **HOW)
