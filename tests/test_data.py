import json
import os
from pathlib import Path

import pytest
import torch

import data
from data import Example, Text, generator, load_corpus
from vist2 import READ, START

LINES = [b"line %d: the quick brown fox; %x\n" % (i, i * 7919) for i in range(60)]
TEXT = Text([b"".join(LINES)], 64)


def size(text: Text) -> int:
    return len(text.bytes)


# ------------------------------------------------------------------------------------- corpus


def test_windows_never_cross_a_file_and_are_uniform_over_all_offsets():
    text = Text([bytes(range(10)), b"short", bytes(range(100, 112))], window=8)
    drawn = text.sample(4000, 8, generator(0))
    assert (drawn.diff() == 1).all()
    places, counts = drawn[:, 0].unique(return_counts=True)
    assert places.tolist() == [0, 1, 2, 100, 101, 102, 103, 104]
    assert 400 < counts.min() and counts.max() < 600


def test_held_out_windows_count_each_byte_once():
    windows = Text([bytes(range(20)), bytes(range(100, 108))], window=8).windows()
    assert windows.flatten().tolist() == [*range(16), *range(100, 108)]


def test_the_default_corpus_is_split_by_file_and_needs_no_download():
    corpus = load_corpus(None, 512)
    whole = size(corpus.train) + size(corpus.held_out)
    assert whole > 4e6 and 0.05 <= size(corpus.held_out) / whole < 0.15
    train = corpus.train.bytes.numpy().tobytes()
    sample = corpus.held_out.windows()[::50, :256].tolist()
    assert len(sample) > 5 and not any(bytes(window) in train for window in sample)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_few_files_are_split_within_and_many_between(tmp_path, count):
    (tmp_path / "inner").mkdir()
    (tmp_path / ".hidden").write_bytes(b"hidden" * 1000)
    for i in range(count):  # of very different lengths
        (tmp_path / "inner" / f"{i}").write_bytes(bytes([i]) * (600 if i else 20_000))
    corpus = load_corpus(str(tmp_path), 64)
    train, held_out = (set(text.bytes.tolist()) for text in (corpus.train, corpus.held_out))
    whole = size(corpus.train) + size(corpus.held_out)
    assert 0.04 < size(corpus.held_out) / whole < 0.15
    assert ord("h") not in train | held_out
    assert bool(train & held_out) == (count < data.PIECES)


def test_the_digest_tells_names_and_bytes_and_not_the_order_of_a_folder(tmp_path):
    digests = []
    for folder, names, end in (
        ("a", "xy", b""),
        ("b", "yx", b""),
        ("c", "xz", b""),
        ("d", "xy", b"!"),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"".join(LINES) + ord(name) % 2 * end)
        digests.append(load_corpus(str(tmp_path / folder), 64).digest)
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_small_files_beside_a_large_one_change_nothing_and_are_counted(tmp_path, capsys):
    """Files shorter than a window are of no use, so they must not count as files to split."""
    (tmp_path / "large").write_bytes(b"".join(LINES) * 5)
    alone = load_corpus(str(tmp_path / "large"), 64)
    assert capsys.readouterr().err == ""
    for i in range(25):
        (tmp_path / f"small {i}").write_bytes(b"x" * (63 if i < 24 else 20 * 64 - 1))
    beside = load_corpus(str(tmp_path), 64)
    assert "left out, too short: 25 of 26 files, 2,791 bytes" in capsys.readouterr().err
    assert beside.digest == alone.digest
    assert torch.equal(beside.train.bytes, alone.train.bytes)
    assert torch.equal(beside.held_out.bytes, alone.held_out.bytes)


def test_splitting_many_files_takes_linear_time(tmp_path, monkeypatch):
    done = 0

    class File(bytes):
        def __len__(self):
            nonlocal done
            done += 1
            return super().__len__()

    class Name(str):
        def __eq__(self, other):
            nonlocal done
            done += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    def operations(count):
        nonlocal done
        done = 0
        files = {Name(i): File(b"%8d" % i) for i in range(count)}
        monkeypatch.setattr(data, "user_files", lambda path: files)
        corpus = load_corpus("many", 8)
        assert size(corpus.train) + size(corpus.held_out) == 8 * count
        return done

    assert operations(20_000) < 11 * operations(2_000)


def test_linked_and_unreadable_files_and_folders_are_left_out_and_named_with_a_count(
    tmp_path, monkeypatch, capsys
):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    for folder in (elsewhere, root, root / "listless", root / "unsearchable", root / ".hidden"):
        folder.mkdir()
    for path in ("good", "forbidden", "listless/a", "unsearchable/a", ".hidden/a"):
        (root / path).write_bytes(b"x")
    (elsewhere / "a").write_bytes(b"y")
    (root / "file link").symlink_to(elsewhere / "a")
    (root / "folder link").symlink_to(elsewhere)
    (root / ".hidden link").symlink_to(elsewhere)
    os.mkfifo(root / "pipe")

    def deny(module, name, forbidden):
        """A test may run as root, whom no file mode stops."""
        real = getattr(module, name)

        def guarded(path=".", *arguments, **more):
            if str(path).endswith(forbidden):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **more)

        monkeypatch.setattr(module, name, guarded)

    deny(Path, "read_bytes", "forbidden")
    deny(os, "scandir", "listless")
    deny(Path, "stat", "unsearchable/a")
    assert data.user_files(root) == {"good": b"x"}
    said = capsys.readouterr().err
    assert "left out, linked or unreadable: 6 (" in said and said.count("\n") == 1
    assert str(root / "file link") in said and ", ...)" in said


@pytest.mark.parametrize(
    "name, said",
    [
        ("missing", "missing is not there, expected a file or a folder"),
        ("pipe", "pipe is no file and no folder, expected a file or a folder"),
        ("empty", "too short"),
        ("short", "too short: .* 64 bytes, or fewer files of 20 windows, 1280 bytes"),
        ("folder", "too short"),
    ],
)
def test_data_that_cannot_be_used_is_named_with_what_was_expected(tmp_path, name, said):
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(b"x" * 1279)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(data.UserError, match=said):
        load_corpus(str(tmp_path / name), 64)


# ------------------------------------------------------------------------------------ batches


def test_a_stream_is_a_function_of_its_key_alone():
    draws = {
        key: torch.rand(3, generator=generator(*key)).tolist()
        for key in [(0, "recall", 3), (0, "recall", 4), (1, "recall", 3), (0, "repeat", 3)]
    }
    torch.manual_seed(1)
    for key, numbers in draws.items():
        assert torch.rand(3, generator=generator(*key)).tolist() == numbers
    assert len({tuple(numbers) for numbers in draws.values()}) == len(draws)


def test_windows_are_cut_into_chunks_in_order_and_every_byte_counts():
    windows = TEXT.sample(4, 64, generator(0))
    text, openings, weights, context = batch = data.language_batch(windows, 16)
    assert text.shape == weights.shape == (4, 4, 16) and torch.equal(text.flatten(1), windows)
    assert (openings == START).all() and (weights == 1).all()
    assert context == batch.skip == 0


def test_noise_is_half_uniform_and_half_of_few_bytes_runs_or_periods():
    noise = data.sample_noise(TEXT, 2000, 64, generator(0))
    counts = torch.tensor([len(row.unique()) for row in noise])
    uniform = counts > 48
    assert 0.5 < uniform.float().mean() < 0.65  # some alphabets have nearly all bytes
    assert noise[uniform].float().mean() == pytest.approx(127.5, abs=2)
    few = counts[~uniform]
    assert all((few == count).any() for count in (1, 2, 3, 4, 8, 16)) and (few == 1).sum() > 40
    equal = (noise[:, 1:] == noise[:, :-1]).float().mean(1)
    period = torch.stack([(noise[:, p:] == noise[:, :-p]).all(1) for p in range(2, 17)]).any(0)
    assert ((equal > 0.7) & (counts > 2)).sum() > 40 and (period & (counts > 2)).sum() > 60
    lines = (noise[:, :, None] == torch.tensor(list(set(b"".join(LINES))))).any(2).all(1)
    assert 400 < lines.sum() < 800  # a quarter has bytes of the text alone, others by chance


def test_reading_pairs_are_half_noise_and_score_the_copy_alone():
    text, openings, weights, context = batch = data.reading_batch(TEXT, 64, 16, generator(0))
    assert openings.tolist() == [[START, READ]] * 64
    assert (weights[:, 0] == 0).all() and (weights[:, 1] == 1).all()
    assert (text[:32, 0] > 127).float().mean() > 0.2 and (text[32:, 0] < 128).all()
    assert context == 0 and batch.skip == 1
    faults = (text[:, 0] != text[:, 1]).float().mean(1)  # a share of its own in each row
    assert faults.min() < 0.1 and faults.max() > 0.9 and 0.4 < faults.mean() < 0.6


def test_copies_are_wound_round_and_score_after_start():
    text, openings, weights, _ = data.copy_batch(TEXT, 64, 16, generator(0))
    assert (openings == START).all() and (weights[:, 1] == 1).all() and not weights[:, 0].any()
    turns = set()
    for page, copy in text.tolist():
        found = [i for i in range(16) if copy == page[i:] + page[:i]]
        assert found
        turns |= set(found if len(found) == 1 else [])
    assert len(turns) == 16


# ---------------------------------------------------------------------------------- questions


@pytest.mark.parametrize("distance", [1, 2, 3])
@pytest.mark.parametrize("task", ["recall", "repeat"])
def test_what_is_asked_for_stands_where_it_is_said_to_stand(task, distance):
    for step in range(20):
        example = data.EXAMPLES[task](TEXT, generator(task, step), 64, 3, distance)
        ((question, response),) = example.turns
        sought = question + b"=" + response + b"\n" if task == "recall" else response
        at = (b"\n" + example.context).index(b"\n" + sought)
        own_chunk = len(example.context) // 64
        assert own_chunk == 3 and own_chunk - at // 64 == distance
        again = data.EXAMPLES[task](TEXT, generator(task, step), 64, 3, distance)
        assert again == example


def test_questions_of_a_step_ask_at_all_distances_and_each_has_one_answer():
    asked_at, mixed = {1: 0, 2: 0, 3: 0}, 0
    for step in range(60):
        example = data.recall_example(TEXT, generator(step), 64, 3)
        context = b"\n" + example.context
        keys = [key for key, _ in example.turns]
        assert len(set(keys)) == len(keys)
        for key, value in example.turns:
            assert context.count(b"\n" + key + b"=") == 1
            back = 3 - context.index(b"\n" + key + b"=" + value + b"\n") // 64
            asked_at[back] = asked_at.get(back, 0) + 1
        mixed += b"fox" in context
    assert min(asked_at[back] for back in (1, 2, 3)) > 0.7 * max(asked_at.values())
    assert 6 <= mixed <= 25  # one context of four has text between its facts


def test_a_context_with_room_for_more_facts_than_there_are_keys_ends():
    few = data.Style(key_letters=b"k", key_lengths=(1, 2), facts=50)
    example = data.recall_example(TEXT, generator("long"), 64, 64, style=few)
    assert {key for key, _ in example.turns} == {b"k", b"kk"}


def styles(count):
    return [data.draw_style(generator("style", step), 64) for step in range(count)]


def test_styles_draw_all_there_is_but_never_what_is_held_back():
    drawn = styles(2000)
    used = b"".join(style.separator + style.end + b"".join(style.values) for style in drawn)
    assert not set(used + b"".join(style.joint for style in drawn)) & set(data.HELD_BACK)
    assert set(data.MARKS + data.LETTERS + data.CAPITALS + data.DIGITS) <= set(used)
    for style in drawn:
        assert style.separator.strip() != style.end.strip() or not style.separator.strip()
        inside = set(style.key_letters + style.joint + b"".join(style.values))
        assert not inside & set(style.separator + style.end)
    for part in ("key_lengths", "value_lengths"):
        assert {getattr(style, part)[1] for style in drawn} == set(range(1, 13))
    assert {1, 2, 3, 4, 32, data.MAX_FACTS} <= {style.facts for style in drawn}


def test_in_any_style_the_last_value_of_a_key_is_the_answer_and_only_there_it_is_not_there():
    absent = twice = 0
    for step, style in enumerate(styles(300)):
        sample = lambda: data.recall_example(  # noqa: B023
            TEXT, generator("fact", step), 64, 1 + step % 8, style=style  # noqa: B023
        )
        example = sample()
        assert sample() == example
        lines = example.context.replace(style.end, b"\n" + style.end)
        for key, value in example.turns:
            begins = [b"\n" + style.end + key + style.separator, b"\n" + key + style.separator]
            starts = [(b"\n" + style.end + lines).rfind(begin) for begin in begins]
            if value == data.NOT_THERE:
                absent += 1
                assert max(starts) == -1
            else:
                begin = begins[starts.index(max(starts))]
                rest = (b"\n" + style.end + lines)[max(starts) + len(begin) :]
                assert rest.startswith(value + b"\n" + style.end)
                twice += example.context.count(key + style.separator) > 1
    assert absent > 30 and twice > 30


def test_a_style_says_how_many_facts_and_how_far_apart():
    for facts, gap in ((1, 0), (3, 0), (1, 900), (3, 900)):
        style, lengths = data.Style(facts=facts, gap=gap), []
        for step in range(40):
            example = data.recall_example(TEXT, generator(step), 64, 30, style=style)
            assert 1 <= example.context.count(b"=") <= facts and len(example.turns) <= facts
            lengths.append(len(example.context))
        assert max(lengths) > 1000 if gap else max(lengths) <= 9 * facts


def test_passages_to_repeat_are_different_ones_from_all_over_the_context():
    back = set()
    for step in range(30):
        example = data.repeat_example(TEXT, generator(step), 64, 3)
        assert 1 < len(example.turns) == len(set(example.turns)) <= data.MAX_PASSAGES
        for question, response in example.turns:
            line = question.removeprefix(b"Repeat from: ")
            at = example.context.index(line)
            assert example.context.count(line) == 1 and example.context[at - 1 : at] == b"\n"
            assert response == example.context[at : at + 64]
            back.add(3 - at // 64)
    assert back == {1, 2, 3}


@pytest.mark.parametrize(
    "ask, said",
    [
        (
            lambda prose, rng: data.recall_example(prose, rng, 2, 1, 1),
            "no fact fits 1 chunks of 2",
        ),
        (lambda prose, rng: data.repeat_example(prose, rng, 64, 3), "expected text in lines"),
        (lambda prose, rng: data.repeat_example(prose, rng, 64, 30), "no file has the"),
        (
            lambda prose, rng: data.sample_without_roles(Text([b"\x04" * 99], 64), 9, rng),
            "found no text without the bytes 0x04, 0x05 and 0x06",
        ),
    ],
)
def test_questions_that_a_text_has_no_place_for_are_refused(monkeypatch, ask, said):
    monkeypatch.setattr(data, "TRIES", 100)
    with pytest.raises(data.UserError, match=said):
        ask(Text([b"no lines here " * 30], 64), generator("test"))


def test_responses_and_their_stop_count_once_and_nothing_else():
    short = Example(b"ab=1\n", ((b"ab", b"1"), (b"ab", b"22")))
    long = Example(b"x" * 20, ((b"q", b"yes"),))
    text, openings, weights, context = batch = data.question_batch([short, long], 8)
    assert text.shape == weights.shape == (2, 4, 8) and (openings == START).all()
    rows = [bytes(row.flatten().tolist()) for row in text]
    assert rows[0].rstrip(b"\0") == b"ab=1\n\x05ab\x061\x04\x05ab\x0622\x04"
    assert rows[1].rstrip(b"\0") == b"x" * 20 + b"\x05q\x06yes\x04"
    counted = [bytes(row[w == 1].tolist()) for row, w in zip(text, weights)]
    assert counted == [b"1\x0422\x04", b"yes\x04"]
    assert context == 20 and batch.skip == 1
    assert data.question_batch([long], 8).skip == 2  # its answer begins in the third chunk
    assert data.question_batch([short], 64).text.shape == (1, 2, 64)  # one sketch at least


@pytest.mark.parametrize("role", [0x04, 0x05, 0x06])
def test_roles_cannot_be_forged(role):
    bad = b"ab" + bytes([role])
    for parts in ((bad, ()), (b"", ((bad, b""),)), (b"", ((b"", bad),))):
        with pytest.raises(data.UserError, match=f"byte 2 of the text is {role:#04x}"):
            Example(*parts)
    forged = Text([bad * 40 + b"a clean line of text\n" * 200], 64)
    drawn = {data.sample_without_roles(forged, 9, generator(step)) for step in range(50)}
    assert len(drawn) > 5 and not any(role in text for text in drawn)


# ------------------------------------------------------------------------------- own examples


def line_of(context="c", prompt="p", response="r", **more) -> str:
    return json.dumps({"context": context, "prompt": prompt, "response": response} | more)


def test_own_examples_are_read_shortest_first(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(line_of(context="long " * 9) + "\n" + line_of(response="\u00e9") + "\n")
    short, long = data.read_examples(str(path), 64)
    assert short == Example(b"c", ((b"p", "\u00e9".encode()),)) and short.length == 7
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
    with pytest.raises(data.UserError, match=f"own.jsonl, line 2: .*{said}") as refused:
        data.read_examples(str(path), 64)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty, expected a JSON object a line"),
        (f"{line_of()}\n{line_of()}\n".encode("utf-16"), ", line 1: 'utf-8' codec can't decode"),
        (f"{line_of()}\n{line_of()}\n".encode("utf-16-le"), ", line 1: Expecting property name"),
        (line_of().encode() + b"\n\xff", ", line 2: 'utf-8' codec can't decode"),
    ],
    ids=["empty", "utf-16", "utf-16 without a mark", "broken"],
)
def test_a_file_that_holds_no_text_is_named(tmp_path, content, said):
    path = tmp_path / "own.jsonl"
    path.write_bytes(content)
    with pytest.raises(data.UserError, match=f"own.jsonl ?{said}"):
        data.read_examples(str(path), 64)


def test_examples_of_similar_length_share_a_batch():
    examples = [Example(b"x" * length, ((b"", b"y"),)) for length in range(0, 400, 4)]
    firsts = set()
    for step in range(300):
        batch = data.sample_of_similar_length(examples, 400, generator(step))
        at = examples.index(batch[0])
        assert batch == examples[at : at + len(batch)]
        assert len(batch) == 1 or batch[-1].length * len(batch) <= 400
        more = examples[at : at + len(batch) + 1]
        assert batch[-1] is examples[-1] or more[-1].length * len(more) > 400
        firsts.add(at)
    assert len(firsts) > 90
