import hashlib
import os

import numpy as np
import pytest
import torch
from PIL import Image

import render
from console import UserError
from render import CELLS, PATCH, fills_page, glyphs, half_characters
from render import patches_per_chunk


@pytest.mark.parametrize("cell", CELLS)
def test_all_256_glyphs_are_distinct_by_the_stated_distance(cell):
    flat = glyphs(cell).flatten(1).double()
    assert flat.shape == (256, cell[0] * cell[1]) and flat.min() >= 0 and flat.max() <= 1
    distance = torch.cdist(flat, flat) + 99 * torch.eye(256)
    assert distance.min() >= 0.2  # Euclidean, ink in 0..1


def test_a_page_is_the_same_on_every_machine():
    page = render.render(torch.arange(256), (16, 4))
    assert page.shape == (256, 64)
    digest = hashlib.sha256((255 * page).round().byte().numpy().tobytes()).hexdigest()
    assert digest[:16] == "c118495fd688093a"


@pytest.mark.parametrize("cell", CELLS)
def test_cells_lie_on_the_page_in_reading_order(cell):
    h, w = cell
    n = 256 // h * (64 // w)  # sixteen patches and more
    chunk = torch.randint(256, (n,))
    page = render.render(chunk, cell)
    for place in (0, 1, 64 // w, n // 2, n - 1):
        row, column = divmod(place, 64 // w)
        assert torch.equal(
            page[row * h : row * h + h, column * w : column * w + w], glyphs(cell)[chunk[place]]
        )


def test_leading_axes_and_device_are_respected():
    chunks = torch.randint(256, (3, 5, 64), dtype=torch.uint8)
    sketches = render.render(chunks, (16, 4))
    assert sketches.shape == (3, 5, 64, 64)
    assert torch.equal(sketches[2, 4], render.render(chunks[2, 4], (16, 4)))
    assert render.render(chunks.long().to("meta"), (16, 4)).device.type == "meta"
    # fewer than four patches make a narrower page
    assert render.render(chunks[..., :4], (16, 4)).shape == (3, 5, 16, 16)
    assert render.render(chunks[..., :12], (16, 4)).shape == (3, 5, 16, 48)


def test_a_page_is_a_row_of_up_to_four_patches_or_whole_rows_of_four():
    assert [m for m in range(-4, 21) if fills_page(m)] == [1, 2, 3, 4, 8, 12, 16, 20]


@pytest.mark.parametrize("cell", CELLS)
def test_bytes_are_laid_out_if_they_fill_a_page_of_patches_and_refused_if_not(cell):
    h, w = cell
    ratio = (PATCH // h) * (PATCH // w)
    for n in range(12 * ratio + 1):
        if n % ratio == 0 and fills_page(n // ratio):
            assert patches_per_chunk(n, cell) == n // ratio
            height, width = render.render(torch.zeros(n, dtype=torch.long), cell).shape
            assert (height // PATCH) * (width // PATCH) == n // ratio <= height // PATCH * 4
        else:
            with pytest.raises(UserError, match=f"chunk {n} does not divide into patches"):
                patches_per_chunk(n, cell)


def draw(tmp_path, text: bytes, *options) -> np.ndarray:
    """The picture that the command line makes of a text, every pixel once."""
    (tmp_path / "text").write_bytes(text)
    render.main([str(tmp_path / "text"), "--out", str(tmp_path / "sketch.png"), *options])
    return np.array(Image.open(tmp_path / "sketch.png"))[1::3, 1::3]


def test_the_command_line_draws_any_bytes_in_framed_sketches_side_by_side(tmp_path, capsys):
    text = bytes(range(256)) + b"a rest"
    page = draw(tmp_path, text, "--cell", "8x4")
    assert page.shape == (2 * (32 + 4), 4 * (64 + 4))
    assert "sketch.png: the first 262 bytes of" in capsys.readouterr().out
    fifth = page[36 + 2 : 36 + 34, 2:66]  # the rest, and spaces
    chunk = torch.tensor(list(b"a rest".ljust(64)))
    expected = 255 * (1 - render.render(chunk, (8, 4)))
    assert np.array_equal(fifth, expected.byte().numpy())


def test_a_picture_is_black_on_white(tmp_path):
    page = draw(tmp_path, b" " * 63 + b"x")
    sketch = page[2:66, 2:66]
    assert (page[0, :68] < 255).all() and (page[0, :68] > 128).all()  # a grey frame
    assert (sketch == 255).mean() > 0.98 and (sketch[-16:, -4:] < 128).any()


@pytest.mark.parametrize("chunk", [16, 64, 128])
def test_a_limit_counts_sketches_whatever_their_length(tmp_path, capsys, chunk):
    page = draw(tmp_path, b"x" * 1000, "--chunk", str(chunk), "--limit", "5")
    assert f"the first {5 * chunk} bytes" in capsys.readouterr().out
    assert page.shape == (2 * (chunk + 4), 4 * (64 + 4))
    assert (page[chunk + 6, 68 + 2 :] == 255).all()  # five sketches: three places stay blank


def test_an_endless_device_is_drawn_as_far_as_the_limit_goes(tmp_path, capsys):
    render.main(["/dev/zero", "--out", str(tmp_path / "zero.png"), "--limit", "2"])
    assert "the first 128 bytes of /dev/zero" in capsys.readouterr().out


def test_a_path_is_printed_without_what_could_move_a_cursor(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source, picture = "\x1b[2J\u202etext", "a\nb.png"
    (tmp_path / source).write_bytes(b"text")
    render.main([source, "--out", picture])
    assert capsys.readouterr().out == "a^Jb.png: the first 4 bytes of ^[[2J\\u202etext\n"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["missing"], "missing is not there, expected a file"),
        (["empty"], "at least one byte"),
        (["."], ". is no file"),
        (["some", "--chunk", "63"], "chunk 63 does not divide"),
        (["some", "--chunk", "24"], "chunk 24 does not divide"),
        (["some", "--chunk", "0"], "--chunk is 0, expected 1 to 65,536"),
        (["some", "--chunk", "-64"], "--chunk is -64"),
        (["some", "--chunk", str(2**64)], f"--chunk is {2**64}"),
        (["some", "--limit", "0"], "--limit is 0"),
        (["some", "--limit", str(10**18)], f"--limit is {10**18}"),
        (["some", "--out", "no/where.png"], "cannot write no/where.png, expected a file in"),
        (["some", "--out", "."], "cannot write ., expected a file in"),
        (["some", "--out", "sketch.nothing"], "sketch.nothing, expected an ending such as .png"),
        (["some", "--out", "sketch.xpm"], "sketch.xpm, expected an ending such as .png"),
        (["tall", "--limit", "9999", "--out", "a.gif"], "a.gif, expected an ending such as .png"),
    ],
)
def test_bad_input_gets_one_clear_line_and_no_picture(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "some").write_bytes(b"text")
    (tmp_path / "tall").write_bytes(bytes(90_000))  # more lines than a GIF can have
    with pytest.raises(SystemExit) as stopped:
        render.main(arguments)
    assert said in stopped.value.code and "\n" not in stopped.value.code
    assert sorted(os.listdir(tmp_path)) == ["empty", "some", "tall"]


def test_a_cell_that_is_not_known_is_refused_with_those_that_are(capsys):
    with pytest.raises(SystemExit):
        render.main(["some", "--cell", "9x9"])
    known = "cell '9x9' is unknown, expected one of 16x8, 16x4, 8x4, 4x4"
    assert known in capsys.readouterr().err
    for cell in ((9, 9), (4, 16), [16, 4]):
        with pytest.raises(UserError, match="is unknown, expected one of 16x8, 16x4, 8x4, 4x4"):
            patches_per_chunk(64, cell)


def test_a_picture_too_wide_for_a_terminal_is_shrunk_whole():
    picture = torch.ones(9, 5)
    dots = half_characters(picture, 3)  # four pixels by two each, nothing where the picture ends
    full, little, none = [1, 1, 0.5], [0.25, 0.25, 0.125], [0, 0, 0]
    assert dots.tolist() == [[full, little], [full, none]]
