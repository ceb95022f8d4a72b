import math

import pytest
import torch
import torch.nn.functional as F
from conftest import info, make_model

import data
import evaluate
import questions
from data import Corpus, Text, load_corpus
from questions import STOP, Example, question_batch
from vist2 import READ, START, Config


class Oracle:
    """Stands for a model: predicts `wanted(text)` for certain."""

    config, device = Config.preset("mini", chunk=16), torch.device("cpu")

    def __init__(self, wanted):
        self.wanted, self.openings = wanted, []

    def __call__(self, text, openings, history="sketch", skip=0):
        self.openings += openings.tolist()
        return F.one_hot(self.wanted(text)[:, skip:], 256).float()


@pytest.fixture
def corpus(small_file):
    small_file.write_bytes(2 * small_file.read_bytes())  # more windows than a batch
    return load_corpus(str(small_file), 64)


@pytest.fixture
def split() -> Corpus:
    """Text to train on and text held out that share no byte."""
    return Corpus("split", "", Text([b"t\n" * 999], 64), Text([b"h\n" * 999], 64))


def only_h(text):
    """The byte of held-out text wherever that could be right."""
    return torch.where(text == ord("\n"), text, ord("h"))


@pytest.mark.parametrize("history", ["sketch", "full", "none"])
def test_bits_are_by_hand_the_means_over_all_held_out_bytes(corpus, history):
    model = make_model()
    result = evaluate.evaluate(model, corpus, history)
    text = corpus.held_out.windows().view(-1, 4, 16)
    likely = model(text, history=history).log_softmax(-1).gather(-1, text[..., None])[..., 0]
    bits = -likely / math.log(2)
    assert len(text) > 16
    for name, those in (
        ("bpb", bits),
        ("position 0", bits[:, 2:, 0]),
        ("first 4", bits[:, 2:, :4]),
    ):
        assert result[name] == pytest.approx(those.mean().item(), rel=1e-5), name
    assert ("reading text" in result) == (history == "sketch")
    few = evaluate.evaluate(model, corpus, history, 3)["bpb"]
    assert few == pytest.approx(bits[:3].mean().item(), rel=1e-5)


def test_sketches_of_another_text_can_be_shown_in_place_of_its_own(corpus):
    model = make_model()
    windows = evaluate.held_out_windows(model, corpus, 20)
    own = evaluate.bits_of(model, windows, "sketch")
    torch.testing.assert_close(evaluate.bits_of(model, windows, "sketch", windows), own)
    others = evaluate.bits_of(model, windows, "sketch", windows.roll(1, 0))
    torch.testing.assert_close(others[:, 0], own[:, 0])  # the first chunk has no past
    assert (others[:, 1:] - own[:, 1:]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_reading_is_measured_on_noise_and_on_held_out_text(split):
    oracle = Oracle(only_h)
    result = evaluate.reading_accuracy(oracle, split, 100)
    assert oracle.openings == [[START, READ]] * 200
    assert result["reading text"] == 1 and 0 < result["reading noise"] < 0.02


def test_questions_are_about_held_out_text_in_streams_that_no_training_draws_from(
    split, monkeypatch
):
    """Training draws from (seed, task, step), and a seed is a number."""
    keys, texts, generator, recall = [], [], data.generator, questions.recall_example
    monkeypatch.setattr(evaluate, "generator", lambda *key: keys.append(key) or generator(*key))
    watched = lambda text, *how: texts.append(text) or recall(text, *how)
    monkeypatch.setattr(evaluate, "recall_example", watched)
    oracle = Oracle(lambda text: text)
    evaluate.evaluate(make_model(), split, "sketch", 2)
    result = evaluate.recall_by_distance(oracle, split, "sketch", 8, 3)
    assert list(result) == [f"recall {distance}" for distance in range(1, 9)]
    assert len(texts) == 24 and all(text is split.held_out for text in texts)
    assert len(keys) == len(set(keys)) == 9
    assert not any(str(key[0]).lstrip("-").isdecimal() for key in keys)


@pytest.mark.parametrize("distance", [1, 8, 16])
def test_a_question_is_about_a_fact_so_many_chunks_back_among_many(split, distance):
    for example in evaluate.sample_questions(split, 16, distance, 5):
        [(key, value)] = example.turns
        fact = b"\n" + key + b"=" + value + b"\n"
        chunks = len(example.context) // 16
        assert chunks == max(8, distance)
        assert chunks - (b"\n" + example.context).index(fact) // 16 == distance


def test_a_match_is_exact_when_every_byte_of_the_response_and_its_stop_is_right():
    examples = [Example(b"k=%04d\n" % i * 9, ((b"k", b"%04d" % i),)) for i in range(40)]
    stop = STOP
    cases = {
        "all": (lambda text: text, 1),
        "responses alone": (lambda text: torch.where(text == stop, 0, text), 0),
        "contexts wrong": (lambda text: torch.where(text == ord("="), 0, text), 1),
        "the digit 3 wrong": (lambda text: torch.where(text == ord("3"), 0, text), 27 / 40),
    }
    assert question_batch(examples, 16).skip > 1
    for name, (wanted, share) in cases.items():
        assert evaluate.exact_match(Oracle(wanted), examples, "sketch") == share, name


def test_evaluating_draws_from_no_random_state_but_its_own(corpus):
    torch.manual_seed(5)
    before, model = torch.get_rng_state(), make_model()
    torch.set_rng_state(before)
    first = evaluate.evaluate(model, corpus, "sketch", 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert evaluate.evaluate(model, corpus, "sketch", 4) == first


def test_the_report_says_what_a_number_is_and_that_reading_text_can_be_guessed(
    monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, "QUESTIONS", 2)
    dirty = b"a line\x1b[2J of text\n" * 99
    corpus = Corpus("dirty", "d1935", Text([dirty], 64), Text([dirty], 64))

    def said(chunk=16, **changes):
        evaluate.report(make_model(chunk=chunk), corpus, info(**changes))
        return capsys.readouterr().out

    language = said()
    assert "dirty (digest d1935), history sketch, 9 steps" in language
    assert "reading text" in language and "some of it could be guessed" in language
    assert "bits per byte" in language and "read from it" in language
    assert "\x1b" not in language and "recall" not in language
    reference = said(history="none")
    assert "reading" not in reference and "read from it" not in reference
    answers = said(max_context=100)
    assert "2 questions at each distance" in answers
    assert all(f"  recall {distance} " in answers for distance in evaluate.DISTANCES)
    assert "recall" not in said(chunk=8, max_context=100)  # own examples: a fact is too long
