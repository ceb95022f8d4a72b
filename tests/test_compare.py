import json
import signal
from dataclasses import replace

import pytest
import torch

import curriculum
import evaluate
import train
import vist2
from data import load_corpus
from experiments import compare
from experiments.compare import make_run
from render import render
from vist2 import Config

SMALL = dict(device="cpu", steps=8, lr=5e-3)


@pytest.fixture(autouse=True)
def miniature(monkeypatch):
    config = Config.preset("mini", chunk=16)
    monkeypatch.setattr(train.Settings, "config", property(lambda run: config))
    monkeypatch.setitem(curriculum.DEFAULTS, "tiny", curriculum.DEFAULTS["mini"])
    monkeypatch.setattr(evaluate, "QUESTIONS", 8)
    monkeypatch.setattr(compare, "QUICK", 3)


@pytest.fixture
def printed(small_file, tmp_path, capsys):
    """printed(*arguments) -> what compare.py prints of a comparison of miniatures."""
    small_file.write_bytes(5 * small_file.read_bytes())  # holds the longest questions

    def printed(*arguments):
        out = ["--data", str(small_file), "--out", str(tmp_path / "runs"), "--device", "cpu"]
        compare.main(["--quick", *out, *arguments])
        return capsys.readouterr().out

    return printed


def test_a_comparison_writes_all_it_prints_and_trains_nothing_twice(printed, tmp_path, monkeypatch):
    path, runs = tmp_path / "all.json", tmp_path / "runs"
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    arguments = ["--rivals", "sketch,none", "--seeds", "2", "--recall"]
    once = printed(*arguments, "--json", str(path))
    content = json.loads(path.read_text())
    for name in ("runs", "recall"):  # references first, as gaps need them
        assert [row["rival"] for row in content[name]] == ["none", "none", "sketch", "sketch"]
        assert [row["seed"] for row in content[name]] == [0, 1, 0, 1]
    assert content["settings"]["rival"] == "sketch" and "TOO FEW" in once and content["quick"]
    bits = [row["bpb"] for row in content["controls"]]
    assert len(set(bits)) == 7 and bits[0] == content["runs"][2]["bpb"]
    for name in ("controls", "recall"):
        assert f"| {' | '.join(content[name][0])} |" in once
    assert [line["step"] for line in content["runs"][3]["by step"]] == [2, 4]
    assert len(list(runs.iterdir())) == 4
    distances = [1, 2, 3, 4, 5, 6, 7, 8, 16]
    recalled = {f"recall {i}" for i in distances}
    assert content["recall"][3].keys() == {"rival", "ratio", "seed"} | recalled
    monkeypatch.setattr(compare, "train", None)  # a call would fail
    assert printed(*arguments) == once


def test_nothing_is_trained_but_what_was_asked_for(printed, tmp_path):
    once = printed("--rivals", "sketch")
    assert [path.name[:9] for path in (tmp_path / "runs").iterdir()] == ["sketch-4x"]
    assert "| as it is |" in once
    alone = printed("--rivals", "none", "--questions", "0")
    assert "alone, questions at 0 of their share: TOO FEW" in alone and "their share" not in once
    assert list((tmp_path / "runs").glob("none-questions-0-4x-seed0-*"))


def test_a_stopped_run_goes_on_to_what_the_core_measures(small_file, tmp_path, monkeypatch, capsys):
    corpus, run = load_corpus(str(small_file), 64), make_run("gist", 4, **SMALL, out=str(tmp_path))
    expected = compare.train_or_load(run, corpus).state_dict()
    run = replace(run, out=str(tmp_path / "again"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "check_finite", lambda *_: signal.raise_signal(signal.SIGTERM))
        compare.score_or_load(run, corpus, 8)  # stops after the first step
    assert "--resume" not in capsys.readouterr().err  # an option of train.py
    score, model = compare.score_or_load(run, corpus, 8), compare.train_or_load(run, corpus)
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    bits = evaluate.bits_of(model, evaluate.held_out_windows(model, corpus, 8), "sketch")
    assert score["by position"] == bits[:, 2:].mean(dim=(0, 1)).tolist()
    assert score["by chunk"] == bits.mean(dim=(0, 2)).tolist()
    assert evaluate.evaluate(model, corpus, "sketch", 8).items() <= score.items()


def test_no_control_shows_a_chunk_before_its_place(monkeypatch):
    text, shown = torch.randint(256, (6, 4, 16)), []
    monkeypatch.setattr(evaluate, "held_out_windows", lambda *_: text)
    page, drawn = torch.randint(256, (16,)), []
    plain = render(page, (16, 4))

    def bits_of(model, text, history, other):
        shown.append(other)
        drawn.append(vist2.render(page, (16, 4)))

    monkeypatch.setattr(evaluate, "bits_of", bits_of)
    monkeypatch.setattr(evaluate, "summarize", lambda _: {})
    names = [row["control of sketch"] for row in compare.controls(None, None, None)]
    same = torch.stack([(page[:, :, None] == text[:, None]).all(-1) for page in shown])
    assert len(names) == 7 and not same.triu(1).any()  # (controls, K, place, chunk)
    assert same[names.index("sketches one place late"), :, 2, 1].all()
    shifted, noisy = drawn[names.index("pixels shifted by one")], drawn[-1]
    assert torch.equal(shifted[:, 1:], plain[:, :-1]) and 0.2 < (noisy - plain).std() < 0.4
    assert all(torch.equal(one, plain) for one in drawn[:5])


def test_pruned_has_the_weights_of_a_finer_sketch(small_file, tmp_path, monkeypatch):
    mini = lambda run: Config.preset("mini", chunk=16, cell=run.cell, merge=run.merge)
    monkeypatch.setattr(train.Settings, "config", property(mini))
    corpus, how = load_corpus(str(small_file), 64), dict(SMALL, out=str(tmp_path))
    pruned = compare.train_or_load(make_run("pruned", 4, **how), corpus)
    monkeypatch.setattr(compare, "train", None)  # a call would fail
    finer = compare.train_or_load(make_run("sketch", 2, **how), corpus).state_dict()
    assert all(torch.equal(weight, finer[name]) for name, weight in pruned.state_dict().items())
    assert pruned.compress(torch.zeros(1, 1, 16, dtype=torch.long)).shape[2] == 4


def test_gaps_are_those_of_each_seed_and_blank_where_references_hardly_differ(monkeypatch):
    known = {"none": (2.0, 4.0, 1.51), "full": (1.0, 2.0, 1.50), "conv": (1.25, 3.5, 1.50)}

    def score(run, corpus, windows):  # of seed 1 all is a bit more
        bits = zip(("bpb", "position 0", "from 16 on"), known[run.rival], strict=True)
        return {name: value + run.seed / 8 for name, value in bits}

    monkeypatch.setattr(compare, "score_or_load", score)
    scores: list[dict] = []
    lines = [[make_run(name, 8, **SMALL, seed=seed) for seed in (0, 1)] for name in known]
    rows = list(compare.score_rows(lines, None, None, scores))
    assert [(s["rival"], s["seed"]) for s in scores] == [(r, s) for r in known for s in (0, 1)]
    assert all(s["gap all %"] == 75 and s["gap 0 %"] == 25 for s in scores[-2:])
    assert rows[2]["bpb"] == "1.312 ± 0.062" and rows[2]["gap all %"] == "75 ± 0"
    assert rows[2]["gap 16+ %"] == "" and "gap 16+ %" not in scores[-1]


def test_all_settings_name_a_run_and_gist_reads_while_others_spell(small_file, monkeypatch):
    monkeypatch.undo()  # the true config, which tells ratios apart
    corpus, run = load_corpus(str(small_file), 64), make_run("conv", 4, **SMALL)
    runs = [run, make_run("queries", 4, **SMALL), make_run("conv", 8, **SMALL)]
    changes = ({"seed": 1}, {"steps": 9}, {"lr": 1.0}, {"device_type": "mps"}, {"version": 0})
    runs += [replace(run, **change) for change in changes]
    keys = {run.key(corpus) for run in runs} | {run.key(replace(corpus, digest="?"))}
    assert len(keys) == 9
    assert make_run("full", 8, **SMALL) == make_run("full", 2, **SMALL)  # trained once
    ours, theirs = (make_run(name, 4, **SMALL).stages(corpus) for name in ("gist", "sketch"))
    assert theirs[0].spelling and ours == [replace(theirs[0], spelling=0, reading=1), *theirs[1:]]


def test_with_fewer_questions_a_run_has_the_same_stages_but_for_these(small_file, monkeypatch):
    monkeypatch.undo()
    corpus = load_corpus(str(small_file), 64)
    for name in ("sketch", "gist", "none", "recent"):
        asked, half, unasked = (make_run(name, 4, questions=q, **SMALL) for q in (1, 0.5, 0))
        stages = asked.stages(corpus)
        assert any(stage.questions for stage in stages)
        without = [replace(stage, recall=0, styled=0, repeat=0) for stage in stages]
        assert unasked.stages(corpus) == without and unasked.key(corpus) != asked.key(corpus)
        assert unasked.folder(corpus).name.startswith(f"{name}-questions-0-4x-seed0-")
        for stage, ours in zip(stages, half.stages(corpus), strict=True):
            parts = {task: share / 2 for task, share in stage.questions.items()}
            assert ours.questions == parts and ours == replace(stage, **parts)
        assert half.folder(corpus).name.startswith(f"{name}-questions-0.5-4x-seed0-")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--rivals", "sketch,cnn"], "'cnn' is unknown, expected some of none,full,sketch"),
        (["--steps", "3"], "not allowed with argument --quick"),
        (["--questions", "2"], "--questions is 2.0, expected 0 to 1"),
        (["--rivals", "prune", "--ratios", "2"], "prune at 2x takes a sketch of 1x, there is none"),
    ],
)
def test_bad_settings_get_one_clear_line(printed, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        printed(*arguments)
    assert stopped.value.code not in (0, None)
    assert said in str(stopped.value.code) + capsys.readouterr().err
