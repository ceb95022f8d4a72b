import os

import pytest
import torch

import data
from data import Text, generator, load_corpus
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


def test_of_one_file_one_piece_in_twenty_is_held_out(tmp_path):
    path = tmp_path / "text"
    for length in range(20_000, 20_020):
        path.write_bytes(bytes(length))
        assert size(load_corpus(str(path), 64).held_out) in (1000, 1001)


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


def test_all_files_of_a_folder_are_taken_but_hidden_ones_and_pipes(tmp_path):
    for folder in (".hidden", "inner"):
        (tmp_path / folder).mkdir()
    for path in ("b", "inner/a", ".dot", ".hidden/a"):
        (tmp_path / path).write_bytes(path.encode())
    os.mkfifo(tmp_path / "pipe")
    assert data.user_files(tmp_path) == {"b": b"b", "inner/a": b"inner/a"}


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
    of_text = (noise[:, :, None] == torch.tensor(list(set(b"".join(LINES))))).any(2)
    shares = of_text[(4 < counts) & (counts < 17)].float().mean(1)
    assert 0.5 < shares.mean() < 0.65 and shares.std() < 0.25  # text and other bytes in one row


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
