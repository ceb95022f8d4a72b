import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import info
from PIL import Image, ImageSequence

from common import save_checkpoint
from console import one_line
from data import Corpus, Text, load_corpus
from evaluate import bits_of, held_out_windows
from experiments import figures
from experiments.figures import Moment, Watched, moment_picture, moments
from generate import as_row, generate
from mask import Layout, make_layout, may_attend
from questions import STOP
from render import CELLS
from vist2 import Config

ROOT = Path(__file__).parent.parent
TEXT = b"the quick brown fox jumps over the lazy dog"


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(*arguments) -> by panel, the axes that the command line draws with matplotlib."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)

    def drawn(*arguments):
        figures.main([str(argument) for argument in arguments])
        assert Path(f"{arguments[0]}.png").stat().st_size  # in the current folder
        axes = pyplot.gcf().axes
        pyplot.close()
        return axes

    return drawn


def lines_of(axis) -> dict:
    return {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}


def test_what_a_trace_shows_is_what_attention_mixed(model):
    mixed = []

    class Checked(Watched):
        def attend(self, layer, mask, previous, newest, q, k, v):
            alike = v[:, :1].expand_as(v)  # so that the mean over heads mixes as each head does
            attended = super().attend(layer, mask, previous, newest, q, k, alike)
            values = self.cache.buffer[1, layer, 0, 0, : len(self.seen[layer])]
            mixed.append((self.seen[layer] @ values, attended[0, :, -1].mean(dim=0)))
            return attended

    session = Checked(model)  # four heads over two of keys
    session.prefill(as_row(TEXT[:30]))
    for byte in TEXT[30:]:  # over two edges of chunks
        session.step(torch.tensor([byte]))
    torch.testing.assert_close(*map(torch.stack, zip(*mixed, strict=True)))


@pytest.mark.parametrize("length", [3, 43, 60])  # no sketch; a chunk ends; the oldest drops
def test_a_trace_follows_what_the_model_writes_up_to_a_stop(model, length):
    n, m, prompt = model.config.chunk, 4, (TEXT * 2)[:length]
    found = list(moments(model, prompt, 12, capacity=4 * n))
    written = bytes(moment.likeliest for moment in found)
    assert written == generate(model, prompt, 12)
    for count, moment in enumerate(found):
        held = bytes(moment.finished.flatten().tolist()) + moment.open
        assert (prompt + written)[: length + count].endswith(held)
        for seen in moment.seen:
            assert len(seen) == len(held) // n * m + 1 + len(held) % n
            torch.testing.assert_close(seen.sum(), torch.tensor(1.0))
    assert len({len(moment.finished) for moment in found}) == (1 if length == 3 else 2)
    stopped = list(moments(model, prompt, 12, 4 * n, stop=written[3]))
    assert len(stopped) == written.index(written[3]) + 1


@pytest.mark.parametrize("cell, merge", [*((cell, 1) for cell in CELLS), ((16, 4), 2)])
def test_the_patches_that_are_looked_at_are_the_ones_that_are_orange(cell, merge):
    config, blank = Config(cell=cell, merge=merge), torch.full((2, 64), ord(" "))
    m = config.sketch_tokens
    share = torch.zeros(2 * m + 1 + 3)
    share[m + 1] = 1  # the second token of the second sketch, in the second of two layers
    moment = Moment(blank, b"abc", [0 * share, share], torch.ones(256) / 256)
    most = figures.most_seen([moment], m)
    assert most == (1, pytest.approx(0))
    page, width = moment_picture(moment, config, 2, (1, 1)), 48 * merge
    legend = page.height - 6 * 26
    left, top = 4 + 3 * 64 + 8 + width, 26 + legend // 2
    deepest = (np.array(page) == [int(255 * part) for part in figures.SKETCH]).all(-1)
    y, x = deepest[:legend].nonzero()
    box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    assert abs(box - [left, top, left + width, top + 48]).max() <= 1  # the frame
    assert deepest[legend:].any()
    half = np.array(moment_picture(moment, config, 2, (2, 1)))  # of a scale that goes further
    assert not (half[:legend] == [int(255 * part) for part in figures.SKETCH]).all(-1).any()


def test_a_trace_is_drawn_and_a_gif_has_a_frame_for_each_byte(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("model.pt", model, info(max_context=63))
    Path("source").write_bytes(TEXT)
    common = ["trace", "source", "--checkpoint", "model.pt", "--bytes", "6"]
    for more in (["--ask", "fox?"], ["--out", "trace.gif"], []):
        figures.main([*common, *more])
    still, moving = Image.open("trace.png").convert("L"), Image.open("trace.gif")
    assert moving.n_frames == 6 and moving.size == still.size
    frames = [np.array(frame.convert("L"), float) for frame in ImageSequence.Iterator(moving)]
    assert np.argmin([abs(frame - np.array(still)).mean() for frame in frames]) == 5
    written = generate(model, TEXT, 6).removesuffix(bytes([STOP]))
    assert f"written: {one_line(written)}\n" in capsys.readouterr().out


def test_names_are_drawn_that_training_lacks_and_that_stood_far_back(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    window = bytearray(b". " * 48)
    stands = {b"old_name": (0, 70), b"close_by": (9, 33), b"far_name": (20, 88), b"one_time": (50,)}
    for name, starts in stands.items():
        for start in starts:
            window[start : start + len(name)] = name
    held_out = Text([bytes(window), bytes(window)], 96)  # in the second window nothing is new
    corpus = Corpus("", "", Text([b"an old_name!"], 12), held_out)
    assert list(figures.far_names(corpus, 16)) == [(bytes(window), 88, 96, 4)]
    monkeypatch.setattr(figures, "load_corpus", lambda path, window: corpus)
    save_checkpoint("model.pt", model, info())
    figures.main(["name", "--checkpoint", "model.pt", "--out", "name.gif"])
    assert Image.open("name.gif").n_frames == len("far_name") - 3 + 1
    begun = bytes(window[:91])
    written = one_line(b"far" + generate(model, begun, 5, history_chunks=7))
    assert f"far_name, 4 chunks before: written {written}\n" in capsys.readouterr().out


def test_the_mask_that_is_drawn_is_the_one_in_use(drawn):
    axes = drawn("mask")
    for axis, S in zip(axes, (0, 2, 3), strict=True):
        layout = make_layout(4, 4, 1, S)
        red, _, blue = torch.tensor(axis.images[0].get_array().tolist()).unbind(-1)
        seen = may_attend(Layout(*(field[:, None] for field in layout)), layout)
        assert torch.equal((red < 1) | (blue < 1), seen)
        assert torch.equal(blue < red, seen & layout.is_sketch)  # orange: a sketch token
    names = [[label.get_text() for label in axis.get_yticklabels()] for axis in axes]
    assert names[1] == ["chunk 0", "sketch 0", "chunk 1", "sketch 1", "chunks 2 to 3"]


def test_the_cache_that_is_drawn_is_a_sawtooth_on_stairs(drawn, monkeypatch):
    monkeypatch.setattr(figures, "Config", lambda layers: Config.preset("mini", chunk=16))
    lines = lines_of(*drawn("cache"))
    assert lines["full"] == [[t, t + 1] for t in range(129)]
    assert lines["sketch"] == [[t, t // 16 * 4 + 1 + t % 16] for t in range(129)]
    assert lines["prompt"] == [[t, 4 * 4 + 1 + t - 64] for t in range(64, 129)]


def test_loss_by_position_is_drawn_for_files_that_no_model_was_trained_on(drawn, model, small_file):
    corpus, trained = load_corpus(str(small_file), 64), {"sketch.pt": "sketch", "none.pt": "none"}
    (small_file.parent / "other").write_bytes(TEXT * 999)
    for path, history in trained.items():
        about = info(history=history, digest=corpus.digest, corpus=corpus.name)
        save_checkpoint(small_file.parent / path, model, about)
    [axis] = drawn("position", *trained, "--data", small_file)
    for path, history in trained.items():
        expected = bits_of(model, held_out_windows(model, corpus), history)[:, 2:].mean(dim=(0, 1))
        torch.testing.assert_close(torch.tensor(lines_of(axis)[path])[:, 1], expected)
    with pytest.raises(SystemExit, match="none.pt was trained on .* held-out files it may have"):
        drawn("position", "none.pt", "--data", "other")


def test_reading_over_training_puts_runs_in_a_row(drawn, tmp_path):
    first = '{"step": 1, "stage": "spelling"}\n{"step": 2, "stage": "reading", "accuracy": 0.5, '
    (tmp_path / "a").write_text(first + '"held out": {"reading text": 0.25, "bpb": 9}}')
    second = '{"step": 1, "stage": "near", "accuracy": 0.75, "held out": {"recall 8": 0.125}}'
    (tmp_path / "b").write_text(second)
    lines = lines_of(*drawn("reading", "a", "b"))
    assert lines["training batches"] == [[2, 0.5], [3, 0.75]]
    assert lines["held-out text read"] == [[2, 0.25]]
    assert lines["recall at eight chunks"] == [[3, 0.125]]


def test_all_that_was_measured_is_drawn(drawn):
    bench = json.loads((ROOT / "docs/bench.json").read_text())["tables"]
    axes = drawn("costs", ROOT / "docs/bench.json")
    fields = ("reading", " ms"), ("writing", " B/s"), ("writing", " entries"), ("training", " B/s")
    for axis, (name, unit) in zip(axes, fields, strict=True):
        sides = ("full", "prompt", "sketch") if name != "training" else ("full", "sketch")
        rows = bench[name]
        assert lines_of(axis) == {s: [[r["bytes"], r[s + unit]] for r in rows] for s in sides}
    none = {"rival": "none", "ratio": 4, "bpb": 3.0, "by position": [3.0, 1.0]}
    conv = {"rival": "conv", "ratio": 4, "bpb": 2.0, "by position": [2.0, 1.0]}
    conv |= {"gap all %": 50.0, "reading noise": 0.5}
    scores = [none, conv, conv | {"bpb": 1.0, "by position": [4.0, 3.0]}]
    scores += [conv | {"ratio": 8, "bpb": 2.5}]
    Path("scores.json").write_text(json.dumps({"runs": scores}))
    gaps, chunk = map(lines_of, drawn("rivals", "scores.json"))
    assert gaps["gap all %"] == [[1 - 1 / 4, 50], [1 - 1 / 4 + 1 / 20, 50]]  # none hides another
    assert chunk == {"none": [[0, 3], [1, 1]], "conv": [[0, 3], [1, 2]]}
    bits, read = map(lines_of, drawn("ratios", "scores.json"))
    assert bits == {"none": [[4, 3], [8, 3]], "conv": [[4, 1.5], [8, 2.5]]}
    assert read == {"conv": [[4, 0.5], [8, 0.5]]}
    sizes = [{"GFLOP at most": 2, "ratio": r, "bpb": 1 / r, "recall 8": r / 8} for r in (1, 4)]
    Path("sweep.json").write_text(json.dumps({"rows": sizes}))
    bits, recall = map(lines_of, drawn("sweep", "sweep.json"))
    assert bits == {"2 GFLOP a prompt": [[1, 1], [4, 0.25]]}
    assert recall == {"2 GFLOP a prompt": [[1, 0.125], [4, 0.5]]}


def test_a_missing_or_wrong_field_is_named_with_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for picture, source, *way, field in (
        ("costs", "bench", "tables", "reading"),
        ("costs", "bench", "tables", "training", 0, "sketch B/s"),
        ("rivals", "rivals", "runs"),
        ("rivals", "rivals", "runs", 3, "by position"),
        ("ratios", "ratios", "runs", 3, "ratio"),
    ):
        content = at = json.loads((ROOT / f"docs/{source}.json").read_text())
        for key in way:
            at = at[key]
        for change in (at.__setitem__, at.pop):  # to None; then it is missing
            change(field, None)
            Path("edited.json").write_text(json.dumps(content))
            said = f"^figures.py: edited.json: {field!r} is missing or wrong, expected what .*"
            with pytest.raises(SystemExit, match=said):
                figures.main([picture, "edited.json"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("trace some --ask x --checkpoint young.pt", "never learned to answer"),
        ("trace some --checkpoint other.pt", "other.pt was trained under 'none'"),
        ("trace some --out mask", "--out is mask, expected a name that ends in .png or .gif"),
        ("cache --out a.gif", "--out is a.gif, expected a name that ends in .png"),
        ("reading torn", "torn, line 2: "),
        ("reading wrong", "wrong, line 1: 'accuracy' is missing or wrong, expected a log.jsonl"),
        ("ratios some", "some: Expecting value: line 1 column 1 (char 0), expected what compare"),
        ("mask", "needs matplotlib, which is not there: pip install matplotlib"),
    ],
)
def test_bad_input_gets_one_clear_line(model, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("young.pt", model, info())
    save_checkpoint("other.pt", model, info(history="none"))
    line = '{"step": 1, "stage": "whole chunks"'
    Path("some").write_text("text\n")
    for name, end in {"torn": "}\n{", "wrong": ', "accuracy": "all"}'}.items():
        Path(name).write_text(line + end)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stopped:
        figures.main(arguments.split())
    assert said in stopped.value.code and "\n" not in stopped.value.code


def test_every_command_in_the_docs_is_known_and_writes_into_the_current_folder(monkeypatch):
    commands = []
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        commands += re.findall(r"python -m experiments\.(\w+)([^`#\n]*)", page.read_text())
    known = {"bench", "budget", "compare", "demo", "figures", "kinds", "sessions", "sweep"}
    assert {name for name, _ in commands} == known
    core = import_module("generate")
    monkeypatch.setattr(core, "SESSIONS", core.SESSIONS.copy())
    for name, options in commands:
        module, options = import_module(f"experiments.{name}"), shlex.split(options)
        parses = core if name == "sessions" else module
        monkeypatch.setattr(parses, "command_line", None)  # comes after all options are parsed
        pytest.raises(TypeError, module.main, options)
        for option, path in zip(options, options[1:], strict=False):
            assert option not in ("--out", "--json") or "/" not in path
