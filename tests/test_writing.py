import json
from pathlib import Path

import pytest
import torch
from conftest import info, make_model

from cache import Session
from common import save_checkpoint
from data import Corpus, Text
from evaluate import bits_of
from experiments import writing
from experiments.rivals import RIVALS

LENGTH = 2


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(writing, "TEXTS", 4)
    monkeypatch.setattr(writing, "LENGTH", LENGTH)


def test_a_late_name_that_begins_like_an_early_one_is_right_if_it_is_one():
    early = b"first_name other_name third_one fourth_one".ljust(100)
    late = b"first_nome other_name first_name unlike_it fourth_one.".rjust(100)
    assert writing.copies_of_names(early + late, 16) == [False, True, True]  # each beginning once
    assert writing.copies_of_names(late + early, 16) == [True]  # two may still see theirs
    cut = early.strip().rjust(100)  # the last one, by the end
    assert writing.copies_of_names(late + cut, 16) == [True, True]
    over = b"first_name".rjust(105).ljust(200)  # stands in both halves, so in neither
    assert writing.copies_of_names(b"first_nome".ljust(95) + over[95:], 16) == []


def test_the_judge_sees_half_a_window_before_each_stretch_and_strings_count_that_repeat():
    judge, half = make_model(), 32
    text = torch.randint(256, (2, 5 * half))
    text[1, 4 * half :] = 7
    windows = text.unfold(1, 2 * half, half)  # (2, 4, 64)
    bits = bits_of(judge, windows.reshape(8, 4, 16), "full").view(2, 4, -1)[..., half:]
    found = writing.judge_texts(judge, text, half)
    assert found["judge bpb, first"] == pytest.approx(bits[:, 0].mean().item(), abs=1e-4)
    assert found["judge bpb, last"] == pytest.approx(bits[:, -1].mean().item(), abs=1e-4)
    assert found["judge bpb, all"] == pytest.approx(bits.mean().item(), abs=1e-4)
    assert writing.share_repeated(text, half) == pytest.approx(16 / 17 / 8)  # of 17 one is new


def test_each_writer_goes_on_from_the_same_text_under_its_own_memory(monkeypatch):
    refilled, refill = [], Session._refill
    again = lambda *how: refilled.append(1) or refill(*how)
    monkeypatch.setattr(Session, "_refill", again)
    text = Text([bytes(range(256)) * 8], 64)
    real = writing.held_out_texts(make_model(), Corpus("", "", text, text))
    assert real.shape == (4, (1 + LENGTH) * 32)
    texts = [
        writing.write_texts(make_model(RIVALS[name].model), name, real)
        for name in ("sketch", "gist", "none")
    ]
    assert all(torch.equal(text[:, :32], real[:, :32]) for text in texts)
    assert len({text.numpy().tobytes() for text in (real, *texts)}) == 4
    assert len(refilled) == 2  # sketch and none, for the prompt alone: nothing is dropped


@pytest.fixture
def command(tmp_path, small_file, monkeypatch):
    """command(*arguments) -> the rows that --json has, with checkpoints of miniatures around."""
    monkeypatch.chdir(tmp_path)
    for name in ("full", "sketch"):
        save_checkpoint(name, make_model(), info(history=name))
    for name in ("gist", "prune"):
        save_checkpoint(name, make_model(RIVALS[name].model), info(), settings={"rival": name})
    save_checkpoint("long", make_model(chunk=32), info(history="none"))
    rows = [{"writer": writing.REAL, "info": {}, "texts": ["x" * 96]}]
    rows.append(dict(rows[0], writer="none"))
    Path("good.json").write_text(json.dumps({"chunk": 16, "rows": rows}))

    def command(*arguments):
        writing.main([*arguments, "--data", str(small_file), "--json", "out.json"])
        return json.loads(Path("out.json").read_text())["rows"]

    return command


def test_texts_are_kept_for_a_later_judge_and_other_writers(command, capsys):
    at_once = command("sketch", "gist", "--judge", "full")
    plain = command("sketch")
    assert [row["writer"] for row in plain] == ["held-out text", "sketch"]
    assert not any("judge" in field for row in plain for field in row)
    Path("out.json").rename("sketch.json")
    assert command("gist", "sketch.json", "--judge", "full") == [at_once[i] for i in (0, 2, 1)]
    assert {len(row["texts"]) for row in at_once} == {4}
    assert {len(text) for row in at_once for text in row["texts"]} == {(1 + LENGTH) * 32}
    assert f"| {' | '.join([*at_once[0]][:-2])} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["sketch", "prune"], "prune is of prune, expected one of none, full, sketch"),
        (["sketch", "sketch"], "sketch is a second sketch, expected one of each"),
        (["sketch", "long"], "long has chunks of 32 bytes, expected 16 as in sketch"),
        (["sketch", "--judge", "sketch"], "--judge has history, chunk ('sketch', 16)"),
        (["good.json", "--judge", "long"], "--judge has history, chunk ('none', 32)"),
    ],
)
def test_a_users_mistake_gets_one_clear_line_before_anything_is_written(
    command, monkeypatch, arguments, said
):
    monkeypatch.setattr(writing, "write_texts", None)  # a call would fail
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert said in str(stopped.value.code)


@pytest.mark.parametrize(
    "row, changes",
    [
        (0, {"texts": []}),
        (0, {"texts": [""]}),
        (0, {"texts": "x" * 96}),
        (0, {"texts": [1]}),
        (0, {"texts": ["x" * 95]}),
        (0, {"texts": ["x" * 72]}),  # a prompt is no whole chunk
        (0, {"texts": ["\u0100" * 96]}),
        (1, {"writer": writing.REAL}),  # twice
        (0, {"writer": "full"}),  # no real text
        (0, {"info": None}),
        (None, {"chunk": 0}),
        (None, {"chunk": 1e999}),
        (None, {"rows": []}),
    ],
)
def test_json_without_such_texts_is_refused(command, row, changes):
    assert len(command("good.json")) == 2
    content = json.loads(Path("good.json").read_text())
    (content if row is None else content["rows"][row]).update(changes)
    Path("bad.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="bad.json has no texts, expected what writing --json"):
        command("bad.json")


def test_texts_of_another_corpus_and_files_too_short_are_refused(command, tmp_path):
    content = json.loads(Path("good.json").read_text())
    content["rows"][1]["texts"] = ["y" * 96]
    Path("other.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="none has prompts of its own"):
        command("other.json")
    short = tmp_path / "short"
    short.mkdir()
    for name in range(40):
        (short / str(name)).write_bytes(bytes(range(70)))
    with pytest.raises(SystemExit, match="no held-out file has the 96 bytes of a long text"):
        writing.main(["sketch", "--data", str(short)])
