import json
import sys

import numpy as np
import pytest
import torch
from conftest import info
from PIL import Image

from common import save_checkpoint
from data import load_corpus
from evaluate import held_out_bits
from experiments import figures
from experiments.figures import SIDES, Moment, Watched, moment_picture, moments
from generate import as_rows, generate
from mask import Layout, make_layout, may_attend
from render import CELLS, render
from vist2 import Config

TEXT = b"the quick brown fox jumps over the lazy dog"


@pytest.fixture
def drawn(monkeypatch):
    """drawn(*arguments) -> the figure that the command line makes with matplotlib."""
    pyplot = pytest.importorskip("matplotlib.pyplot")

    def run(*arguments):
        figures.main([str(argument) for argument in arguments])
        figure = pyplot.gcf()
        pyplot.close(figure)
        return figure

    return run


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, info(digest="0", corpus="some", max_context=63))
    return path


def lines_of(figure, panel: int = 0) -> dict:
    lines = figure.axes[panel].get_lines()
    return {line.get_label(): line.get_xydata().tolist() for line in lines}


def test_what_a_trace_shows_is_what_attention_mixed(model):
    class Checked(Watched):
        calls = 0

        def attend(self, layer, mask, q, k, v):
            alike = v[:, :1].expand_as(v)  # so that the mean over heads mixes as each head does
            attended = super().attend(layer, mask, q, k, alike)
            values = self.cache.buffer[1, layer, 0, 0, : self.cache.length + q.shape[2]]
            mixed = attended[0, :, -1].mean(dim=0)
            torch.testing.assert_close(self.seen[layer] @ values, mixed)
            self.calls += 1
            return attended

    session = Checked(model)  # four heads over two of keys
    session.prefill(as_rows(TEXT[:30]))
    for byte in TEXT[30:]:  # over two edges of chunks
        session.step(torch.tensor([byte]))
    assert session.calls == model.config.layers * len(TEXT[29:])


@pytest.mark.parametrize("length", [3, 43, 60])  # no sketch; a chunk ends; the oldest drops
def test_a_trace_follows_what_the_model_writes(model, length):
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


def test_a_trace_ends_with_the_answer(model):
    stop = next(moments(model, TEXT, 1, 64)).likeliest
    assert len(list(moments(model, TEXT, 9, 64, stop))) == 1
    assert len(list(moments(model, TEXT, 9, 64))) == 9


def orange(page: Image.Image) -> list:
    """The box of all that is as orange as can be."""
    colour = [int(255 * part) for part in figures.SKETCH]
    y, x = (np.array(page) == colour).all(-1).nonzero()
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_the_patch_that_is_looked_at_is_the_one_that_is_orange(cell, layers):
    config = Config(cell=cell)
    m = 64 // config.ratio
    blank = torch.full((2, 64), ord(" "))
    share = torch.zeros(2 * m + 1 + 3)
    share[m + 2] = 1  # the third patch of the second sketch
    seen = [torch.zeros_like(share)] * (layers - 1) + [share]  # of the last layer
    page = moment_picture(Moment(blank, b"abc", seen, torch.ones(256) / 256), config, 2)
    strip = (page.height - 5 * 26) // (1 if layers == 1 else 2)
    left = 4 + 3 * 64 + 8 + 2 * 48
    top = 26 + (0 if layers == 1 else strip)
    difference = np.subtract(orange(page), [left, top, left + 48, top + 48])
    assert abs(difference).max() <= 1  # the frame


def test_a_trace_without_sketches_and_a_long_chunk_fit_on_the_page():
    config = Config(chunk=128)
    seen = [torch.ones(128) / 128]
    moment = Moment(torch.zeros(0, 128).long(), b"x" * 127, seen, torch.eye(256)[65])
    page = moment_picture(moment, config, 1).convert("L")
    box = page.point(lambda value: 255 * (value < 200)).crop((700, 0, 816, page.height)).getbbox()
    assert box is not None and 700 + box[2] == 4 + 65 * 12  # the box of the byte to come


def test_a_trace_is_drawn_and_a_gif_has_a_frame_for_each_byte(checkpoint, tmp_path, capsys):
    source = tmp_path / "source"
    source.write_bytes(TEXT)
    common = ["trace", str(source), "--checkpoint", str(checkpoint), "--bytes", "6"]
    figures.main([*common, "--out", str(tmp_path / "trace.png")])
    figures.main([*common, "--ask", "fox?", "--out", str(tmp_path / "trace.gif")])
    still, moving = Image.open(tmp_path / "trace.png"), Image.open(tmp_path / "trace.gif")
    assert moving.n_frames == 6 and moving.width == still.width
    assert capsys.readouterr().out.count("written: ") == 2


def test_the_mask_that_is_drawn_is_the_one_in_use(drawn, tmp_path):
    figure = drawn("mask", "--out", tmp_path / "mask.png")
    for axis, S in zip(figure.axes, (0, 2, 3)):
        layout = make_layout(4, 4, 1, S)
        red, _, blue = torch.tensor(axis.images[0].get_array().tolist()).unbind(-1)
        seen = may_attend(Layout(*(field[:, None] for field in layout)), layout)
        assert torch.equal((red < 1) | (blue < 1), seen)
        assert torch.equal(blue < red, seen & layout.is_sketch)  # orange: a sketch token
    names = [label.get_text() for label in figure.axes[2].get_yticklabels()]
    assert names == [f"{kind} {i}" for i in range(4) for kind in ("chunk", "sketch")][:-1]


def test_the_cache_that_is_drawn_is_a_sawtooth_on_stairs(drawn, tmp_path):
    figure = drawn("cache", "--out", tmp_path / "cache.png")
    lines = lines_of(figure)
    assert lines["full"] == [[t, t + 1] for t in range(513)]
    assert lines["sketch"] == [[t, t // 64 * 16 + 1 + t % 64] for t in range(513)]
    assert lines["prompt"] == [[t, 4 * 16 + 1 + t - 256] for t in range(256, 513)]


def test_cells_show_the_same_bytes_at_each_ratio(tmp_path):
    source, out = tmp_path / "source", tmp_path / "cells.png"
    source.write_bytes(TEXT)
    figures.main(["cells", str(source), "--out", str(out)])
    picture = np.array(Image.open(out).convert("L"))
    text = torch.tensor(list(TEXT + b" " * 64)[:64])
    for column, cell in enumerate(CELLS):
        ink = render(text, cell).numpy()
        left, middle = 4 + column * 204 + 1, 22 + 1  # of each pixel's square of three
        seen = picture[middle:, left:][: 3 * ink.shape[0] : 3, : 3 * ink.shape[1] : 3]
        assert abs(1 - seen / 255 - ink)[:, 1:].max() < 0.3  # black is at most half covered


def test_loss_by_position_is_drawn_for_files_that_no_model_was_trained_on(
    drawn, model, small_file, tmp_path
):
    corpus = load_corpus(str(small_file), 64)
    for history in ("sketch", "none"):
        (tmp_path / history).mkdir()
        about = info(history=history, digest=corpus.digest, corpus=corpus.name)
        save_checkpoint(tmp_path / history / "model.pt", model, about)
    paths = [str(tmp_path / history / "model.pt") for history in ("sketch", "none")]
    figure = drawn("position", *paths, "--data", small_file, "--out", tmp_path / "p.png")
    for history, path in zip(("sketch", "none"), paths):
        expected = held_out_bits(model, corpus, history)[:, 2:].mean(dim=(0, 1))
        curve = torch.tensor(lines_of(figure)[path])[:, 1]
        torch.testing.assert_close(curve, expected)
    other = tmp_path / "other.txt"
    other.write_bytes(small_file.read_bytes()[::-1])
    with pytest.raises(SystemExit, match="whose held-out files it may have seen"):
        figures.main(["position", paths[0], "--data", str(other)])


def test_reading_over_training_puts_runs_in_a_row(drawn, tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    lines = [
        {"step": 1, "stage": "spelling"},
        {"step": 2, "stage": "reading", "accuracy": 0.5, "held out": {"reading text": 0.25}},
    ]
    first.write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = {"step": 1, "stage": "near", "accuracy": 0.75, "held out": {"recall 8": 0.125}}
    second.write_text(json.dumps(line) + "\n")
    figure = drawn("reading", first, second, "--out", tmp_path / "r.png")
    lines = lines_of(figure)
    assert lines["training batches"] == [[2, 0.5], [3, 0.75]]
    assert lines["held-out text read"] == [[2, 0.25]]
    assert lines["recall at eight chunks"] == [[3, 0.125]]


def test_costs_are_drawn_as_they_were_measured(drawn, tmp_path):
    keys = ("reading", " ms"), ("writing", " B/s"), ("writing", " entries"), ("training", " B/s")
    tables = {name: [{"bytes": 64}, {"bytes": 512}] for name, _ in keys}
    for number, (name, unit) in enumerate(keys):
        for row in tables[name]:
            row |= {side + unit: 10 * number + i for i, side in enumerate(SIDES)}
    measured = tmp_path / "cost.json"
    measured.write_text(json.dumps({"tables": tables}))
    figure = drawn("costs", measured, "--out", tmp_path / "costs.png")
    for number, axis in enumerate(figure.axes):
        for line in axis.get_lines():
            height = 10 * number + SIDES.index(line.get_label())
            assert line.get_xydata().tolist() == [[64, height], [512, height]]
    assert [len(axis.get_lines()) for axis in figure.axes] == [3, 3, 3, 2]


def test_every_score_of_the_rivals_is_drawn(drawn, tmp_path):
    known = {"by position": [2.0, 1.0], "gap all %": 50.0, "reading noise": 0.5}
    scores = [
        {"rival": "none", "ratio": 4, "bpb": 3.0, "by position": [3.0, 1.0]},
        {"rival": "conv", "ratio": 4, "bpb": 2.0} | known,
        {"rival": "conv", "ratio": 4, "bpb": 1.0} | known | {"by position": [4.0, 3.0]},
        {"rival": "conv", "ratio": 8, "bpb": 2.5} | known,
    ]
    measured = tmp_path / "scores.json"
    measured.write_text(json.dumps({"runs": scores}))
    by_seed = drawn("rivals", measured, "--out", tmp_path / "rivals.png")
    by_ratio = drawn("ratios", measured, "--out", tmp_path / "ratios.png")
    gaps, positions = (lines_of(by_seed, panel) for panel in (0, 1))
    assert gaps["gap all %"] == [[1 - 1 / 5, 50]] * 2
    assert positions == {"none": [[0, 3], [1, 1]], "conv": [[0, 3], [1, 2]]}
    bits, read = (lines_of(by_ratio, panel) for panel in (0, 1))
    assert bits == {"none": [[4, 3], [8, 3]], "conv": [[4, 1.5], [8, 2.5]]}
    assert read == {"conv": [[4, 0.5], [8, 0.5]]}


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["trace", "missing"], "missing is not there, expected a file"),
        (["trace", "some", "--bytes", "0"], "--bytes is 0, expected 1 to"),
        (["trace", "some", "--checkpoint", "missing"], "expected a checkpoint"),
        (["trace", "some", "--lines", "3-2"], "expected A-B"),
        (["trace", "some", "--ask", "x", "--checkpoint", "young.pt"], "never learned to answer"),
        (["trace", "roles", "--ask", "x", "--checkpoint", "model.pt"], "0x05, which marks a role"),
        (["trace", "some", "--ask", "\x06", "--checkpoint", "model.pt"], "0x06, which marks"),
        (["trace", "some", "--checkpoint", "other.pt"], "other.pt was trained under 'none'"),
        (["trace", "some", "--checkpoint", "model.pt", "--out", "a.b"], "that ends in .png or .gif"),
        (["cells", "missing"], "missing is not there, expected a file"),
        (["cells", "some", "--out", "no/where.png"], "cannot write no/where.png"),
        (["cells", "some", "--out", "some/in-a-file.png"], "cannot write some/in-a-file.png"),
        (["mask", "--out", "."], "cannot write ., expected a file"),
        (["position", "some"], "damaged or not a checkpoint"),
        (["reading", "none.jsonl"], "no reading there"),
        (["reading", "some"], "some is no log"),
        (["reading", "empty"], "empty: no reading there"),
        (["costs", "model.pt"], "model.pt is not what --json has written"),
        (["costs", "paper.json"], "paper.json has no 'reading', expected what --json has written"),
        (["costs", "edited.json"], "edited.json has no 'full ms'"),
        (["costs", "list.json"], "list.json is not what --json has written"),
        (["rivals", "words.json"], "words.json is not what --json has written: could not convert"),
        (["ratios", "edited.json"], "edited.json has no 'runs'"),
        (["rivals", "eight.json"], "eight.json has no run at 4x"),
        (["costs", "some"], "some is not what --json has written"),
        (["rivals", "none.jsonl"], "none.jsonl has no 'runs'"),
        (["mask", "--out", "a.nothing"], "a.nothing, expected a name that ends in .png or .gif"),
        (["mask", "--out", "mask"], "--out is mask, expected a name that ends in"),
    ],
)
def test_bad_input_gets_one_clear_line(checkpoint, model, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("young.pt", model, info())
    save_checkpoint("other.pt", model, info(history="none"))
    (tmp_path / "empty").touch()
    (tmp_path / "paper.json").write_text('{"tables": {"0.6B": []}}')
    run = {"rival": "conv", "ratio": 8, "bpb": 2, "by position": [1, 2]}
    (tmp_path / "eight.json").write_text(json.dumps({"runs": [run]}))
    (tmp_path / "words.json").write_text(json.dumps({"runs": [run | {"bpb": "two"}]}))
    (tmp_path / "edited.json").write_text('{"tables": {"reading": [{"bytes": 64}]}}')
    (tmp_path / "list.json").write_text("[1]")
    if arguments[0] not in ("trace", "cells"):
        pytest.importorskip("matplotlib")
    (tmp_path / "some").write_bytes(b"text\n")
    (tmp_path / "roles").write_bytes(b"text\x05\n")
    (tmp_path / "none.jsonl").write_text('{"step": 1, "stage": "whole chunks"}\n')
    with pytest.raises(SystemExit) as stopped:
        figures.main(arguments)
    assert said in stopped.value.code and "\n" not in stopped.value.code


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        figures.main(["mask", "--out", str(tmp_path / "mask.png")])
