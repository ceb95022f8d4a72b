import json
from dataclasses import replace

import pytest
import torch

import curriculum
import evaluate
import train
from data import load_corpus
from experiments import compare
from experiments.compare import make_run
from vist2 import Config

SMALL = dict(device="cpu", steps=8, lr=5e-3)


@pytest.fixture(autouse=True)
def miniature(monkeypatch):
    monkeypatch.setattr(train.Settings, "config", property(lambda run: Config.preset("mini")))
    monkeypatch.setitem(curriculum.DEFAULTS, "tiny", curriculum.DEFAULTS["mini"])
    monkeypatch.setattr(evaluate, "QUESTIONS", 4)


@pytest.fixture
def quick(small_file, tmp_path, capsys):
    """Runs compare.py on a miniature: quick(*arguments) -> what it prints."""

    def quick(*arguments):
        out = ["--data", str(small_file), "--out", str(tmp_path / "runs"), "--device", "cpu"]
        compare.main(["--steps", "4", *out, *arguments])
        return capsys.readouterr().out

    return quick


def trained(folder) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


def test_gap_closed_is_in_percent_and_blank_where_the_references_hardly_differ():
    none = {"bpb": 2.0, "position 0": 4.0, "from 16 on": 1.51}
    full = {"bpb": 1.0, "position 0": 2.0, "from 16 on": 1.50}
    conv = {"bpb": 1.25, "position 0": 3.5, "from 16 on": 1.50}
    assert compare.gaps(conv, none, full) == {"gap all %": 75.0, "gap 0 %": 25.0}
    assert compare.gaps(conv, none, None) == compare.gaps(conv, None, full) == {}


def test_a_gap_that_some_seed_lacks_is_left_blank():
    run, result = make_run("conv", 4, **SMALL), {"bpb": 2.0, "gap all %": 50.4}
    row = compare.make_row(run, [result, result | {"gap 16+ %": 9.0}])
    assert row["gap 16+ %"] == "" and row["gap all %"] == "50 ± 0"
    assert compare.make_row(run, [result, result | {"gap all %": 60.0}])["gap all %"] == "55 ± 5"
    assert compare.make_row(run, [result])["bpb"] == "2.000"


def test_a_comparison_goes_on_where_it_stopped_and_writes_all_it_prints(
    quick, tmp_path, monkeypatch
):
    path, rivals = tmp_path / "all.json", ("none", "full", "sketch", "gist")
    arguments = ["--rivals", ",".join(rivals), "--seeds", "2", "--writing"]
    once = quick(*arguments, "--json", str(path))
    content = json.loads(path.read_text())
    runs = content["runs"]
    order = [(rival, seed) for rival in rivals for seed in (0, 1)]
    assert [(r["rival"], r["seed"]) for r in runs] == order
    assert all("gap all %" not in r for r in runs)  # after four steps references hardly differ
    assert runs[4]["machine"] == content["machine"] and runs[4]["cell"] == [16, 4]
    assert content["settings"]["rival"] == "sketch" and not content["quick"]
    assert [row["writer"] for row in content["writing"]] == ["held-out text", "full", "sketch"]
    assert len(content["controls"]) == 4 and "| gist | 4x |" in once
    judge = ["full"]  # of writing, by a seed of its own
    assert trained(tmp_path / "runs") == sorted(2 * [*rivals] + judge)
    monkeypatch.setattr(compare, "train", None)  # a call would fail
    assert quick(*arguments) == once


def test_nothing_is_trained_but_what_was_asked_for(quick, tmp_path):
    printed = quick("--rivals", "sketch")
    assert trained(tmp_path / "runs") == ["sketch"] and "Long writing" not in printed


def test_rivals_are_taught_to_answer_from_where_their_run_ended(
    quick, small_file, tmp_path, monkeypatch
):
    path, long = tmp_path / "all.json", tmp_path / "long.txt"
    long.write_bytes(5 * small_file.read_bytes())  # which holds the longest examples
    arguments = ["--rivals", "none,conv,recent,gist", "--recall", "4", "--data", str(long)]
    once = quick(*arguments, "--json", str(path))
    monkeypatch.setattr(compare, "train", None)  # a call would fail
    assert quick(*arguments) == once
    rows = json.loads(path.read_text())["recall"]
    assert [row["rival"] for row in rows] == ["none", "conv", "recent", "gist"]
    assert all(row.keys() == {"rival", *(f"recall {i}" for i in range(1, 5))} for row in rows)
    for folder in (tmp_path / "runs").iterdir():
        first, then = (
            torch.load(at / "model.pt", weights_only=True)
            for at in (folder, *folder.glob("instruct-4-*"))
        )
        (log,) = folder.glob("instruct-4-*/log.jsonl")
        assert "recall" in json.loads(log.open().readline())
        assert then["info"]["max_context"] > first["info"]["max_context"] == 0


def test_gist_reads_while_the_others_spell():
    ours, theirs = (make_run(name, 4, **SMALL | {"steps": 60}).stages for name in ("gist", "sketch"))
    assert [stage.spelling for stage in theirs] == [1, 0, 0, 0]
    assert [stage.spelling for stage in ours] == [0, 0, 0, 0]
    for our, their in zip(ours, theirs, strict=True):
        assert our.reading + our.spelling == their.reading + their.spelling
        assert our.steps == their.steps


def test_a_run_is_kept_under_all_its_settings(small_file, tmp_path, monkeypatch):
    corpus, settings = load_corpus(str(small_file), 256), SMALL | {"out": str(tmp_path)}
    run = make_run("conv", 4, **settings)
    runs = [run, make_run("queries", 4, **settings), make_run("conv", 8, **settings)]
    changes = ({"seed": 1}, {"steps": 9}, {"lr": 1.0}, {"device_type": "mps"}, {"version": 0})
    runs += [replace(run, **change) for change in changes]
    keys = [run.folder(corpus).name[-8:] for run in runs]
    keys.append(run.folder(replace(corpus, digest="?")).name[-8:])
    assert len(set(keys)) == 9


def test_a_quick_try_takes_few_steps_and_says_that_it_is_no_result(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "QUICK", 4)
    arguments = ["--data", str(tmp_path / "small.txt"), "--out", str(tmp_path / "quick")]
    compare.main(["--quick", "--rivals", "none", "--device", "cpu", *arguments])
    assert [path.name[:4] for path in (tmp_path / "quick").iterdir()] == ["none"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--rivals", "sketch,cnn"], "'cnn' is unknown, expected some of none,full,sketch"),
        (["--ratios", "4,5"], "'5' is unknown, expected some of 2,4,8,16"),
        (["--seeds", "0"], "--seeds is 0, expected 1 to"),
        (["--recall", "0"], "--recall is 0, expected 1 to"),
        (["--out", __file__], "a file, expected a folder"),
        (["--steps", "-3"], "--steps is -3, expected 1 to"),
        (["--lr", "0"], "--lr is 0.0, expected"),
        (["--rivals", "gist", "--writing"], "--writing is for full, sketch"),
        (["--json", "/nowhere/x.json"], "cannot write /nowhere/x.json, expected a file in a fold"),
        (["--data", "/nowhere"], "/nowhere is not there, expected a file or a folder"),
    ],
)
def test_bad_settings_get_one_clear_line(quick, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        quick(*arguments)
    assert stopped.value.code not in (0, None)
    assert said in str(stopped.value.code) + capsys.readouterr().err
