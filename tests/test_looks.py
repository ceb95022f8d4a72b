import json
from unittest import mock

import pytest
import torch
from conftest import info, make_model

import questions
import render
from common import save_checkpoint
from data import generator
from experiments import looks
from experiments.rivals import RIVALS


def test_only_the_marks_that_are_said_to_are_drawn_in_training():
    styles = [questions.draw_style(generator(step), 64) for step in range(3000)]
    ends, separators = (b"".join(getattr(s, of) for s in styles) for of in ("end", "separator"))
    never = {*questions.HELD_BACK, *looks.CONTROL}
    assert not never & {*ends, *separators} and {*looks.OTHERS} <= {*ends} & {*separators}
    assert len(looks.CONTROL) == 28 and len(looks.OTHERS) == 25


@pytest.mark.parametrize("drawn", [name for name in looks.DRAWN if name != "as in training"])
def test_a_redrawn_control_byte_looks_like_no_other(drawn):
    known, control = render.glyphs((16, 4)), [*looks.CONTROL]
    table = looks.redrawn_glyphs(looks.DRAWN[drawn], (16, 4))
    apart = (table[control][:, None] - known).abs().mean(dim=(2, 3)).min(dim=1).values
    same = apart < 0.05  # two letters differ by 0.1, say
    assert same.sum() == (drawn == "upside down, black on white")
    assert ((table[control].mean(dim=(1, 2)) > 0.5) == ("white" not in drawn)).all()
    rest = torch.ones(256, dtype=torch.bool).index_fill(0, torch.tensor(control), False)
    assert torch.equal(table[rest], known[rest])


def test_marks_are_told_by_their_looks():
    known = {"|": "!", "^": "`", "$": "5", "@": "8"}
    assert {mark: chr(looks.nearest_glyph(ord(mark))) for mark in known} == known


def test_questions_hold_the_mark_and_the_drawing_reaches_pixels_alone(monkeypatch):
    asked, models = [], {name: make_model(RIVALS[name].model) for name in ("sketch", "conv")}
    text = torch.tensor([[[*b"a=12", looks.CONTROL[0], *b"bc =3456: ", looks.CONTROL[1]]]])

    def answer(model, examples, history):
        asked.append(examples)
        return model.compress(text).sum().item()

    monkeypatch.setattr(looks, "exact_match", answer)
    some = {name: (model, {"history": "sketch"}) for name, model in models.items()}
    corpus = mock.Mock(held_out=None)
    rows = list(looks.looks_rows(some, corpus, 28))
    drawn = {row["mark"]: row for row in rows if row["place"] == "end" and "control" in row["mark"]}
    assert len({row["sketch"] for row in drawn.values()}) == len(looks.DRAWN) == len(drawn)
    assert len({row["conv"] for row in rows}) == 1
    assert len(rows) == 2 * (2 + len(questions.HELD_BACK) + len(looks.DRAWN))
    held_back = [bytes([mark]) for mark in questions.HELD_BACK]
    marks = [b"\n", None, *held_back, *6 * [None], b"=", None, *held_back, *6 * [None]]
    for mark, row, examples in zip(marks, rows, asked[::2], strict=True):
        style = {"separator": b"=", "end": b"\n"} | {row["place"]: mark}
        for example in examples if mark else []:
            [(key, value)] = example.turns
            assert key + style["separator"] + value + style["end"] in example.context
    assert len(asked[0]) == 28 and all(28 <= len(examples) <= 50 for examples in asked)


def test_a_table_is_printed_and_written_and_a_second_of_a_kind_is_refused(
    tmp_path, small_file, capsys
):
    small_file.write_bytes(5 * small_file.read_bytes())
    path, table = str(tmp_path / "model.pt"), tmp_path / "looks.json"
    save_checkpoint(path, make_model(), info(max_context=99))
    options = ["--count", "1", "--data", str(small_file)]
    other = str(tmp_path / "other.pt")
    save_checkpoint(other, make_model(), info(max_context=99, seed=1))
    looks.main([path, other, *options, "--json", str(table)])
    rows = json.loads(table.read_text())["rows"]
    assert f"| {' | '.join(rows[0])} |" in capsys.readouterr().out and len(rows) == 28
    assert list(rows[0])[-2:] == ["sketch", "sketch, seed 1"]
    with pytest.raises(SystemExit, match="is a second sketch, expected one of each"):
        looks.main([path, path, *options])
