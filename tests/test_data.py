import pytest
import torch

from data import Text, generator, language_batch, load_corpus, reading_batch
from vist2 import READ, START


def test_windows_never_cross_a_file_and_every_place_is_drawn():
    text = Text([b"a" * 10, b"short", b"b" * 12], window=8)
    drawn = text.sample(500, 8, generator(0))
    assert {bytes(row.tolist()) for row in drawn} == {b"a" * 8, b"b" * 8}
    places = Text([bytes(range(10)), bytes(range(100, 112))], window=8).sample(
        500, 8, generator(0)
    )[:, 0]
    assert set(places.tolist()) == {0, 1, 2, 100, 101, 102, 103, 104}


def test_held_out_windows_count_each_byte_once():
    windows = Text([bytes(range(20)), bytes(range(100, 108))], window=8).windows()
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
