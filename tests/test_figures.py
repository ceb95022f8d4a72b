import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import info, make_model
from PIL import Image, ImageSequence

from common import save_checkpoint
from console import one_line
from data import Corpus, Text, load_corpus
from evaluate import bits_of, held_out_windows
from experiments import compare, figures, report, trace
from experiments.rivals import RIVALS
from experiments.trace import Moment, Watched, moment_picture, moments
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
        for axis in axes:  # a legend stands beside its chart
            if axis.get_legend_handles_labels()[1]:
                assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1
        pyplot.close()
        return axes

    return drawn


def lines_of(axis) -> dict:
    return {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}


def colours_of(axis) -> dict:
    return {line.get_label(): line.get_color() for line in axis.get_lines()}


def test_what_a_trace_shows_is_what_attention_mixed(model):
    mixed = []

    class Checked(Watched):
        def attend(self, layer, mask, previous, keep, q, k, v):
            alike = v[:, :1].expand_as(v)  # so that the mean over heads mixes as each head does
            attended = super().attend(layer, mask, previous, keep, q, k, alike)
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


def boxes(page, colour) -> tuple[list, list]:
    """Where a picture has this colour: left, top, right, bottom; in its strips, in its legend."""
    alike = (abs(np.array(page, float) - 255 * np.array(colour)) < 3).all(-1)
    legend = page.height - 6 * 26
    found = []
    for part in (alike[:legend], alike[legend:]):
        y, x = part.nonzero()
        found.append([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [])
    return tuple(found)


@pytest.mark.parametrize("cell, merge", [*((cell, 1) for cell in CELLS), ((16, 4), 2)])
def test_what_is_looked_at_most_is_deepest_on_a_scale_that_says_so(cell, merge, monkeypatch):
    config, blank = Config(cell=cell, merge=merge), torch.full((2, 64), ord(" "))
    m, words, draw = config.sketch_tokens, [], trace.ImageDraw.ImageDraw.text
    keep = lambda self, place, text, *more, **how: words.append(text) or draw(
        self, place, text, *more, **how
    )
    monkeypatch.setattr(trace.ImageDraw.ImageDraw, "text", keep)
    share = torch.zeros(2 * m + 1 + 3)
    share[m + 1] = 0.5  # the second token of the second sketch, in the second of two layers
    share[2 * m + 2] = 0.25  # the second of three bytes
    moment = Moment(blank, b"a c", [0 * share, share], torch.ones(256) / 256, "Said.")
    most = trace.most_seen([moment], m)
    assert most == (0.5, 0.25)
    page, width = moment_picture(moment, config, 2, most), 48 * merge
    assert "The byte to come (the empty box).  Said." in words
    assert "0 to 50.0% of attention on one token" in words
    assert "0 to 25.0% of attention on one byte" in words
    legend = page.height - 6 * 26
    left, top = 4 + 3 * 64 + 8 + width, 26 + legend // 2
    in_strip, in_legend = boxes(page, trace.SKETCH)
    assert abs(np.subtract(in_strip, [left, top, left + width, top + 48])).max() <= 1  # the frame
    assert in_legend == [4 + 8 * 12, 1, 4 + 9 * 12, 17]
    in_strip, in_legend = boxes(page, trace.TEXT)
    bottom = legend - 8
    assert abs(np.subtract(in_strip, [4 + 12, bottom - 24, 4 + 24, bottom])).max() <= 2
    assert in_legend == [480 + 8 * 12, 1, 480 + 9 * 12, 17]
    wider = moment_picture(moment, config, 2, (1, 0.25))
    assert not boxes(wider, trace.SKETCH)[0] and boxes(wider, trace.TEXT)[0]
    wider = moment_picture(moment, config, 2, (0.5, 0.5))
    assert boxes(wider, trace.SKETCH)[0] and not boxes(wider, trace.TEXT)[0]
    one_layer = Moment(blank, b"", [share[: 2 * m + 1]], torch.ones(256) / 256)
    assert trace.most_seen([one_layer], m) == (0.5, 1)
    assert moment_picture(one_layer, config, 2, most).height == page.height - legend // 2


def test_all_frames_of_a_gif_are_on_one_scale(tmp_path):
    config, blank = Config(), torch.full((1, 64), ord(" "))
    shares = [F.pad(torch.tensor([share]), (0, 16)) for share in (0.25, 0.5, 0.25)]
    seen = [Moment(blank, b"", [share], torch.ones(256) / 256) for share in shares]
    trace.draw_moments(seen, config, str(tmp_path / "some.gif"))
    frames = ImageSequence.Iterator(Image.open(tmp_path / "some.gif"))
    first, second, third = (255 - frame.convert("RGB").getpixel((20, 50))[2] for frame in frames)
    assert abs(second - 255 * (1 - trace.SKETCH[2])) < 16 and abs(first - second / 2) < 16
    assert third == first


def test_a_trace_is_drawn_and_a_gif_has_a_frame_for_each_byte(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("model.pt", model, info(max_context=63))
    Path("source").write_bytes(TEXT)
    common = ["trace", "source", "--checkpoint", "model.pt", "--bytes", "6"]
    for more in (["--ask", "fox?"], ["--out", "trace.gif"], []):
        figures.main([*common, *more])
    still, moving = Image.open("trace.png").convert("L"), Image.open("trace.gif")
    assert moving.n_frames == 6 and moving.size == still.size
    times = [frame.info["duration"] for frame in ImageSequence.Iterator(moving)]
    assert times == 5 * [600] + [2400]
    frames = [np.array(frame.convert("L"), float) for frame in ImageSequence.Iterator(moving)]
    assert np.argmin([abs(frame - np.array(still)).mean() for frame in frames]) == 5
    written = generate(model, TEXT, 6).removesuffix(bytes([STOP]))
    assert f"written: {one_line(written)}\n" in capsys.readouterr().out


def test_names_are_drawn_that_training_lacks_and_that_stood_far_back(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    def window(**stands) -> bytes:
        text = bytearray(b". " * 48)
        for name, starts in stands.items():
            for start in starts:
                text[start : start + len(name)] = name.encode()
        return bytes(text)

    held_out = [
        window(old_name=(0, 70), close_by=(9, 55), far_name=(20, 88), one_time=(36,)),
        window(far_name=(0, 70), next_one=(12, 82)),  # the first is drawn already
        window(third_it=(0, 64)),
        window(too_many=(0, 64)),
    ]
    corpus = Corpus("all", "", Text([b"an old_name!"], 12), Text(held_out, 96))
    found = [(held_out[0], 88, 96, 4), (held_out[1], 82, 90, 5), (held_out[2], 64, 72, 4)]
    assert list(trace.far_names(corpus, 16))[:3] == found
    monkeypatch.setattr(report, "load_once", lambda path, window: {96: corpus}[window])
    model = make_model(chunks=6)
    save_checkpoint("model.pt", model, info(digest=""))
    figures.main(["name", "--checkpoint", "model.pt"])
    assert Image.open("name.gif").n_frames == 3 * (len("far_name") - 3 + 1)
    said = capsys.readouterr()
    for text, start, end, back in found:
        begun = text[: start + 3]
        written = one_line(begun[start:] + generate(model, begun, 5, history_chunks=9))
        assert f"{text[start:end].decode()}, {back} chunks before: written {written}\n" in said.out
    assert "too_many" not in said.out and "was trained on" not in said.err
    corpus.held_out = Text([window()], 96)
    with pytest.raises(SystemExit, match="no new name stood four chunks before in held-out files"):
        figures.main(["name", "--checkpoint", "model.pt"])


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
    assert colours_of(axis) == {path: figures.COLOURS[name] for path, name in trained.items()}
    [axis] = drawn("position", "none.pt", "sketch.pt", "none.pt", "--data", small_file)
    assert [line.get_marker() for line in axis.get_lines()] == [".", ".", "x"]
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
        assert colours_of(axis) == {side: figures.COLOURS[side] for side in sides}
        hidden = [line for line in axis.get_lines() if line.get_label() == "prompt"]
        assert all((line.get_marker(), line.get_zorder()) == ("x", 3) for line in hidden)
    none = {"rival": "none", "seed": 0, "ratio": 4, "bpb": 3.0, "by position": [3.0, 1.0]}
    conv = {"rival": "conv", "seed": 0, "ratio": 4, "bpb": 2.0, "by position": [2.0, 1.0]}
    conv |= {"gap all %": 50.0, "reading noise": 0.5}
    scores = [none, conv, conv | {"seed": 1, "bpb": 1.0, "by position": [4.0, 3.0]}]
    scores += [conv | {"ratio": 8, "bpb": 2.5}]
    recall = {"rival": "conv", "ratio": 8, "seed": 0}
    recall |= {f"recall {distance}": (distance > 4) / 2 for distance in (*range(1, 9), 16, 32)}
    Path("scores.json").write_text(json.dumps({"runs": scores, "recall": [recall]}))
    axes = drawn("rivals", "scores.json")
    assert colours_of(axes[1]) == {"none": figures.COLOURS["none"], "conv": "C3"}
    assert len(set(figures.colours_of(RIVALS).values())) == len(RIVALS)
    gaps, chunk = map(lines_of, axes)
    assert gaps["all positions"] == [[0.75, 50], [0.8, 50]]  # none hides another
    assert chunk == {"none": [[0, 3], [1, 1]], "conv": [[0, 3], [1, 2]]}
    bits, read, recall = map(lines_of, drawn("ratios", "scores.json"))
    assert bits == {"none": [[4, 3], [8, 3]], "conv": [[4, 1.5], [8, 2.5]]}
    assert read == {"conv": [[4, 0.5], [8, 0.5]]} and recall == {"conv": [[8, 0.25]]}
    lines = [{"step": 5, "reading noise": 0.5}, {"step": 9, "recall 1": 1.0, "recall 8": 0.5}]
    run = {"rival": "gist", "seed": 1, "ratio": 4, "by step": lines}
    runs = [run, run | {"ratio": 8, "by step": [{"step": 5, "reading noise": 0.25}]}]
    Path("steps.json").write_text(json.dumps({"runs": runs}))
    recall, read = map(lines_of, drawn("emergence", "steps.json"))
    assert recall == {"gist, seed 1": [[9, 0.75]]} and read == {"gist, seed 1": [[5, 0.5]]}
    Path("steps.json").write_text(json.dumps({"runs": runs[1:]}))
    with pytest.raises(SystemExit, match="steps.json has no run at 4x"):
        figures.main(["emergence", "steps.json"])
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
        ("rivals", "rivals-whole", "runs"),
        ("rivals", "rivals-whole", "runs", 3, "by position"),
        ("ratios", "rivals-whole", "runs", 3, "ratio"),
        ("ratios", "rivals-whole", "recall", 3, "recall 8"),
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
    known = {"bench", "budget", "compare", "demo", "dryrun", "figures", "kinds"}
    known |= {"looks", "sessions", "sweep", "writing"}
    assert {name for name, _ in commands} == known
    core = import_module("generate")
    monkeypatch.setattr(core, "Session", core.Session)
    monkeypatch.setattr(core, "open_model", core.open_model)
    for name, options in commands:
        module, options = import_module(f"experiments.{name}"), shlex.split(options)
        parses = {"sessions": core, "sweep": compare}.get(name, module)
        monkeypatch.setattr(parses, "command_line", None)  # comes after all options are parsed
        pytest.raises(TypeError, module.main, options)
        for option, path in zip(options, options[1:], strict=False):
            assert option not in ("--out", "--json") or "/" not in path
