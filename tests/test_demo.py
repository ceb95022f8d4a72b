import html
import io
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import info, make_model

from common import WEIGHTS, save_checkpoint
from data import generator
from experiments import demo
from generate import as_row
from render import render


class Stream(io.TextIOWrapper):
    def __init__(self, terminal: bool, encoding: str):
        super().__init__(io.BytesIO(), encoding=encoding)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def shown(monkeypatch):
    """What a screen of so many columns shows of a sketch of `text`, all of it looked at."""

    def show(terminal=True, encoding="utf-8", columns=80, text=b"ab=1f7c\n" * 8, **environment):
        for name in ("TERM", "COLORTERM", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (environment | {"COLUMNS": str(columns)}).items():
            monkeypatch.setenv(name, value)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream := Stream(terminal, encoding))
            ink = render(as_row(text)[0], (16, 4))
            demo.Terminal().sketch(ink, torch.ones_like(ink))
            stream.flush()
            return stream.buffer.getvalue().decode(encoding)

    return show


def test_a_pipe_gets_every_pixel_as_plain_text(shown):
    ink = render(as_row(b"ab=1f7c\n" * 8)[0], (16, 4)).view(32, 2, 64).mean(1) > 0.5
    for encoding, blocks in (("utf-8", " ▀▄█"), ("ascii", " '.:")):
        rows = [line.ljust(64) for line in shown(False, encoding, TERM="xterm").split("\n")[:-1]]
        kinds = torch.tensor([[blocks.index(c) for c in row] for row in rows])
        drawn = torch.stack([kinds % 2, kinds // 2], dim=1).flatten(0, 1)
        assert torch.equal(drawn, ink.int().long())
    plain = shown(False, TERM="xterm")
    assert plain == shown(TERM="dumb") == shown(TERM="xterm", NO_COLOR="1") == shown()


def test_a_terminal_gets_the_colours_that_it_has(shown):
    exact = shown(TERM="xterm", COLORTERM="truecolor")
    assert "\033[38;2;255;158;38;48;2;255;158;38m▀" in exact  # paper that is looked at
    basic = shown(TERM="xterm")
    codes = set(re.findall(r"\033\[(.*?)m", basic))
    assert all(re.fullmatch(r"3[0-7];4[0-7]|0", code) for code in codes)
    assert "\033[33;43m" in basic and basic.count("\n") == 16


@pytest.mark.parametrize("columns", [40, 17, 64, 500])
def test_no_line_is_wider_than_the_terminal(shown, columns):
    assert max(map(len, shown(False, columns=columns).split("\n"))) <= columns


def test_another_value_has_the_same_shape_and_is_another():
    for seed in range(50):
        new = demo.other_value(generator(seed), b"a-7Zq9")
        assert re.fullmatch(rb"[a-z]-\d[A-Z][a-z]\d", new) and new != b"a-7Zq9"
        assert re.fullmatch(rb"\d\d\d", demo.other_value(generator(seed), b"@\xe4$"))


def test_facts_are_those_that_are_whole_and_the_last_of_a_key():
    context = b"a=1\nno fact\nb: 22\r\na = 333\nc=4\nd=5\ne=6"
    found = {key: context[slice(*at)] for key, at in demo.whole_facts(context, 34).items()}
    assert found == {b"b": b"22", b"a": b"333", b"c": b"4"}
    assert b"a" not in demo.whole_facts(context + b"\na=7", 34)  # its last value is still text


def test_only_its_own_sketches_answer_and_a_page_tells_the_same(tmp_path, capsys):
    right = []
    for seed in range(2):
        page = tmp_path / "demo.html"
        demo.main(["--seed", str(seed), "--checkpoint", str(WEIGHTS), "--html", str(page)])
        said = capsys.readouterr().out
        scores = [tuple(map(int, found)) for found in re.findall(r"(\d+) of (\d+)$", said, re.M)]
        assert len(scores) == 4 and len({total for _, total in scores}) == 1
        assert all(score <= 1 for score, _ in scores[1:])
        right.append(scores[0][0] / scores[0][1])
        key, new = re.search(r"The value of (\S+) becomes (\S+);", said).groups()
        found = re.search(rf"again for {key}, the model answers (\S+): (\w+)", said)
        again, verdict = found.groups()
        assert verdict == ("right" if again == new else "wrong")
        right.append(again == new)
        assert "The cache holds 16 tokens of each sketch:\n65 entries; as text 257." in said
        told = html.unescape(page.read_text())
        assert f"--seed {seed}: " in told and f"The value of {key} becomes {new};" in told
        assert told.count("<img") == 6 == told.count("src='data:image/png;base64,")
        assert not re.search(r"(src|href)=(?!'data:)|<script", told)
    assert sum(right) / len(right) > 0.8


def test_the_controls_see_no_past_other_facts_and_blank_sketches(monkeypatch):
    asked, context = [], b"a=1\nkey=22\nlast=7\n".ljust(32, b"\n") + b"open"

    def exact_match(model, examples, history):
        asked.append((examples[0].context, examples[0].turns[0][1], history))
        return 0

    monkeypatch.setattr(demo, "exact_match", exact_match)
    demo.tell(make_model(), context, 0, demo.Screens(make_model().config, []))
    (text, *_), none, (foreign, *_), blank = asked
    assert {value for _, value, _ in asked} == {b"1"}
    assert [history for *_, history in asked] == ["sketch", "none", "sketch", "sketch"]
    assert text == none[0] == context and blank[0] == b" " * 32 + b"open"
    assert foreign[32:] == b"open" and b"=" in foreign and b"key=22" not in foreign


def test_the_chunk_that_is_named_is_looked_at_most_in_all_of_its_tokens(monkeypatch, capsys):
    seen = torch.tensor([0.5, 0, 0, 0] + [0.2] * 4 + [0.1] * 7)  # of two chunks and an open one
    moment = SimpleNamespace(seen=[seen, seen])
    monkeypatch.setattr(demo, "moments", lambda *_: iter([moment]))
    model, context = make_model(), b"a=1\nkey=22\n".ljust(32, b"\n")
    demo.tell(model, context, 0, demo.Screens(model.config, [demo.Terminal()]))
    assert "looks most at chunk 1:" in capsys.readouterr().out


def test_an_answer_may_be_as_long_as_the_longest_value(monkeypatch):
    asked, context = [], b"a=1\nkey=%s\n" % (b"long" * 10)
    answer = lambda *given, history: asked.append(given[3]) or (b"", True)
    monkeypatch.setattr(demo, "answer", answer)
    demo.tell(make_model(), context.ljust(64), 0, demo.Screens(make_model().config, []))
    assert set(asked) == {40}


WRONG = [
    ("--context none.txt", "found no fact in the finished chunks of 100 bytes, expected key=value"),
    ("--context short.txt", "found no fact in the finished chunks of 4 bytes"),
    ("--context gone.txt", "gone.txt is not there"),
    ("--seed -1", "--seed is -1"),
    ("--html no/where.html", "cannot write no/where.html"),
    ("--checkpoint full.pt", "full.pt was trained under 'full', expected 'sketch'"),
    ("--checkpoint unasked.pt", "unasked.pt never learned to answer"),
]


@pytest.mark.parametrize("options, said", WRONG)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.txt").write_bytes(b"no facts\n" * 11 + b"!")
    (tmp_path / "short.txt").write_bytes(b"a=1\n")
    save_checkpoint("full.pt", make_model(), info(history="full"))
    save_checkpoint("unasked.pt", make_model(), info())
    options = ["--checkpoint", str(WEIGHTS), *options.split()]
    with pytest.raises(SystemExit) as error:
        demo.main(options)
    assert said in str(error.value) and "\n" not in str(error.value)
