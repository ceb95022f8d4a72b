import pytest
import torch
from conftest import make_model

from cache import Session
from data import Corpus, Text
from evaluate import bits_of
from experiments import writing
from experiments.rivals import RIVALS


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
    assert found["repeated %"] == pytest.approx(100 * 16 / 17 / 8)  # of 17 strings one is new


def test_each_writer_goes_on_from_the_same_text_under_its_own_memory(monkeypatch):
    judge, texts, refilled = make_model(), [], []
    refill = Session._refill
    again = lambda *how: refilled.append(1) or refill(*how)
    monkeypatch.setattr(Session, "_refill", again)
    monkeypatch.setattr(writing, "judge_texts", lambda _, text, half: texts.append(text) or {})
    text = Text([bytes(range(256)) * 8], 64)
    writers = [(name, make_model(RIVALS[name].model)) for name in ("sketch", "gist", "none")]
    rows = list(writing.writing_rows(writers, judge, Corpus("", "", text, text)))
    assert [row["writer"] for row in rows] == ["held-out text", "sketch", "gist", "none"]
    assert all(text.shape == texts[0].shape == (7, 9 * 32) for text in texts)
    assert all(torch.equal(text[:, :32], texts[0][:, :32]) for text in texts)
    assert len({text.numpy().tobytes() for text in texts}) == 4
    assert len(refilled) == 2  # sketch and none, for the prompt alone: nothing is dropped
