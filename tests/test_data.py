import json

import pytest
import torch

import data
from data import Text, generator, language_batch, load_corpus, reading_batch
from vist2 import READ, START


def test_windows_never_cross_a_file_and_every_place_is_drawn():
    text = Text({"a": b"a" * 10, "c": b"short", "b": b"b" * 12}, window=8)
    drawn = text.sample(500, 8, generator(0))
    assert {bytes(row.tolist()) for row in drawn} == {b"a" * 8, b"b" * 8}
    places = Text({"a": bytes(range(10)), "b": bytes(range(100, 112))}, window=8).sample(
        500, 8, generator(0)
    )[:, 0]
    assert set(places.tolist()) == {0, 1, 2, 100, 101, 102, 103, 104}


def test_held_out_windows_count_each_byte_once():
    windows = Text({"a": bytes(range(20)), "b": bytes(range(100, 108))}, window=8).windows()
    assert windows.flatten().tolist() == [*range(16), *range(100, 108)]


def test_the_default_corpus_is_split_by_file_and_needs_no_download():
    corpus = load_corpus(None, 512)
    again = load_corpus(None, 512)
    assert corpus.digest == again.digest and torch.equal(corpus.train.bytes, again.train.bytes)
    size = len(corpus.train.bytes) + len(corpus.held_out.bytes)
    assert size > 4e6 and 0.05 <= len(corpus.held_out.bytes) / size < 0.15
    train = bytes(corpus.train.bytes.tolist())
    assert not any(
        bytes(window.tolist()) in train for window in corpus.held_out.windows()[::50, :256]
    )


def test_a_lone_file_a_small_and_a_large_folder_are_split(tmp_path, small_file):
    lone = load_corpus(str(small_file), 64)
    assert len(lone.train.lengths) + len(lone.held_out.lengths) == 20
    assert len(lone.held_out.lengths) in (1, 2)  # pieces differ by a byte
    for count in (3, 40):
        folder = tmp_path / str(count)
        (folder / "inner").mkdir(parents=True)
        (folder / ".hidden").write_bytes(b"hidden" * 1000)
        for i in range(count):  # of very different lengths
            (folder / "inner" / f"{i}").write_bytes(bytes([i]) * (600 if i else 20_000))
        corpus = load_corpus(str(folder), 64)
        size = len(corpus.train.bytes) + len(corpus.held_out.bytes)
        assert 0.04 < len(corpus.held_out.bytes) / size < 0.15
        assert ord("h") not in corpus.train.bytes and ord("h") not in corpus.held_out.bytes
        if count == 40:
            assert not set(corpus.train.bytes.tolist()) & set(corpus.held_out.bytes.tolist())


@pytest.mark.parametrize(
    "name, said",
    [
        ("missing", "missing is not there"),
        ("empty", "too short"),
        ("short", "too short"),
        ("folder", "too short"),
    ],
)
def test_unusable_data_is_named(tmp_path, name, said):
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(b"x" * 100)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=said):
        load_corpus(str(tmp_path / name), 64)


def test_windows_are_a_function_of_their_key_and_are_cut_into_chunks(small_file):
    text = load_corpus(str(small_file), 64).train
    first, again, other = (
        text.sample(4, 64, generator(0, "language", number)) for number in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    chunks, openings, weights = language_batch(first, 16)
    assert (
        chunks.shape == weights.shape == (4, 4, 16)
        and (openings == START).all()
        and (weights == 1).all()
    )
    assert torch.equal(chunks.flatten(1), first)


def test_reading_pairs_are_half_noise_and_score_the_copy_alone(small_file):
    text = load_corpus(str(small_file), 64).train
    pairs, openings, weights = reading_batch(text, 64, 16, generator(0))
    assert torch.equal(pairs[:, 0], pairs[:, 1]) and openings.tolist() == [[START, READ]] * 64
    assert (weights[:, 0] == 0).all() and (weights[:, 1] == 1).all()
    assert (pairs[:32] > 127).float().mean() > 0.4 and (pairs[32:] < 128).all()


# ------------------------------------------------------------------------------ instructions

SOURCE = b'''"""A module. It has more to say."""


def first(a, b):
    """Return what comes first. Then more."""
    return a


class Box:
    "Holds a thing."

    def open(self):
        r"""Show what is inside."""

    def shut(self):
        """A sentence that goes on
        over two lines."""

    def tie(self):
        """Tie, e.g. with '.' or "a.", a knot. That is all."""


def twice():
    """Stands here."""


def twice():
    """Stands here again."""
'''


def test_sentences_are_those_of_docstrings_and_stand_in_the_source():
    found = {s.name: s for s in data.first_sentences("pack/age/__init__.py", SOURCE)}
    assert {name: SOURCE[s.start : s.end] for name, s in found.items()} == {
        "pack.age.first": b"Return what comes first.",
        "pack.age.Box": b"Holds a thing.",
        "pack.age.Box.open": b"Show what is inside.",
        "pack.age.Box.tie": b"""Tie, e.g. with '.' or "a.", a knot.""",
    }
    assert SOURCE[found["pack.age.Box"].defined :].startswith(b"class Box")
    assert list(data.first_sentences("topics/if", b"The if statement. It is\\n no Python")) == []
    deep = b"x = " + b"+".join([b"1"] * 2000)  # can be parsed, but not walked
    assert list(data.first_sentences("deep.py", deep)) == []


@pytest.mark.parametrize("distance", [1, 2, 3])
@pytest.mark.parametrize("task", data.EXAMPLES)
def test_what_is_asked_for_stands_where_it_is_said_to_stand(task, distance):
    text = data.Text({"a.py": SOURCE}, 64)
    for step in range(20):
        rng = data.generator("test", task, step)
        example = data.EXAMPLES[task](text, rng, 64, 3, distance)
        for question, response in example.turns:
            sought = question + b"=" + response if task == "recall" else response
            own_chunk = len(example.context) // 64
            back = [
                own_chunk - at // 64
                for at in range(len(example.context))
                if example.context.startswith(sought, at)
            ]
            assert (
                distance in back and own_chunk <= 3 + (task == "docs") and len(example.turns) == 1
            )
            if task == "repeat":
                line = question.removeprefix(b"Repeat from: ")
                assert example.context.count(line) == 1 and response.startswith(line)
        again = data.EXAMPLES[task](text, data.generator("test", task, step), 64, 3, distance)
        assert again == example


def test_questions_of_a_step_ask_at_all_distances_and_not_twice():
    text = data.Text({"a.py": SOURCE * 4}, 64)
    asked_at = {1: 0, 2: 0, 3: 0}
    for step in range(50):
        example = data.recall_example(text, data.generator("test", step), 64, 3)
        keys = [key for key, _ in example.turns]
        assert len(set(keys)) == len(keys) > 1
        for key, value in example.turns:
            line = (b"\n" + example.context).index(b"\n" + key + b"=" + value + b"\n")
            back = len(example.context) // 64 - line // 64
            asked_at[back] = asked_at.get(back, 0) + 1
    assert min(asked_at[back] for back in (1, 2, 3)) > 0.7 * max(asked_at.values())


def test_passages_to_repeat_are_different_ones_from_all_over_the_context():
    text, back = data.Text({"a.py": SOURCE}, 64), set()
    for step in range(30):
        example = data.repeat_example(text, data.generator("test", step), 64, 3)
        assert 1 < len(example.turns) == len(set(example.turns)) <= data.PASSAGES
        for question, response in example.turns:
            line = question.removeprefix(b"Repeat from: ")
            at = example.context.index(line)
            assert example.context.count(line) == 1 and example.context[at - 1 : at] == b"\n"
            assert response == example.context[at : at + 64]
            back.add(3 - at // 64)
    assert back == {1, 2, 3}


def test_held_out_questions_are_about_other_modules_than_those_of_training():
    corpus = load_corpus(None, 512)
    modules = {sentence.file for sentence in corpus.held_out.sentences}
    assert len(modules) > 5 and not modules & corpus.train.files.keys()
    question = data.docs_example(corpus.held_out, data.generator("test"), 64, 8).turns[0][0]
    assert question.startswith(b"What does ") and question.endswith(b" do?")


def test_places_to_ask_for_that_are_not_there_are_refused():
    prose, line = data.Text({"a": b"no source, no lines " * 20}, 64), data.generator("test")
    with pytest.raises(ValueError, match="expected Python sources"):
        data.docs_example(prose, line, 64, 3)
    with pytest.raises(ValueError, match="no fact fits 1 chunks of 2 bytes"):
        data.recall_example(prose, line, 2, 1)
    with pytest.raises(ValueError, match="no text without the bytes 0x04"):
        data.plain(data.Text({"a": b"\x04" * 99}, 64), 9, line)
    with pytest.raises(ValueError, match="expected text in lines"):
        data.repeat_example(prose, line, 64, 3)
    with pytest.raises(ValueError, match="no file is as long as an example's text, "):
        data.repeat_example(prose, line, 64, 30)


def test_responses_and_their_stop_count_once_and_nothing_else():
    short = data.Example(b"ab=1\n", ((b"ab", b"1"), (b"ab", b"22")))
    long = data.Example(b"x" * 20, ((b"q", b"yes"),))
    text, openings, weights = data.instruct_batch([short, long], 8)
    assert text.shape == weights.shape == (2, 4, 8) and (openings == START).all()
    rows = [bytes(row.flatten().tolist()) for row in text]
    assert rows[0].rstrip(b"\0") == b"ab=1\n\x05ab\x061\x04\x05ab\x0622\x04"
    assert rows[1].rstrip(b"\0") == b"x" * 20 + b"\x05q\x06yes\x04"
    counted = [bytes(row[w == 1].tolist()) for row, w in zip(text, weights)]
    assert counted == [b"1\x0422\x04", b"yes\x04"]


@pytest.mark.parametrize("role", [0x04, 0x05, 0x06])
def test_a_role_in_a_text_is_refused(role):
    bad = b"ab" + bytes([role])
    for example in ((bad, ()), (b"", ((bad, b""),)), (b"", ((b"", bad),))):
        with pytest.raises(ValueError, match=f"byte 2 of the text is {role:#04x}"):
            data.Example(*example)


def line_of(context="c", prompt="p", response="r", **more) -> str:
    return json.dumps({"context": context, "prompt": prompt, "response": response} | more)


def test_own_examples_are_read_shortest_first(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(line_of(context="long " * 9) + "\n" + line_of(response="\u00e9") + "\n")
    short, long = data.read_examples(str(path), 64)
    assert short == data.Example(b"c", ((b"p", "\u00e9".encode()),)) and short.length == 7
    assert long.context == b"long " * 9


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[1]", "expected an object of context, prompt, response"),
        (line_of(more="x"), "expected an object of context, prompt, response"),
        (line_of(prompt=1), "expected strings"),
        (line_of(response=""), "the response is empty"),
        (line_of(context="\x05"), "byte 0 of the text is 0x05, which marks a role"),
        (line_of(context="x" * 60), "65 bytes in all, expected at most 64"),
        (line_of(context="\ud800"), "surrogates not allowed"),
    ],
)
def test_a_malformed_line_of_own_examples_is_named(tmp_path, line, said):
    path = tmp_path / "own.jsonl"
    path.write_text(f"{line_of()}\n{line}\n")
    with pytest.raises(ValueError, match=f"own.jsonl, line 2: .*{said}") as refused:
        data.read_examples(str(path), 64)
    assert "\n" not in str(refused.value)
    path.write_text("")
    with pytest.raises(ValueError, match="own.jsonl is empty"):
        data.read_examples(str(path), 64)


def test_examples_of_similar_length_share_a_batch():
    examples = [data.Example(b"x" * length, ((b"", b"y"),)) for length in range(0, 400, 4)]
    firsts = set()
    for step in range(300):
        batch = data.alike(examples, 400, data.generator("test", step))
        at = examples.index(batch[0])
        assert batch == examples[at : at + len(batch)]
        assert len(batch) == 1 or batch[-1].length * len(batch) <= 400
        full = batch[-1] is examples[-1] or examples[at + len(batch)].length * (len(batch) + 1)
        assert full is True or full > 400
        firsts.add(at)
    assert len(firsts) > 90
