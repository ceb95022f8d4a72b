import hashlib

import pytest
import torch
from PIL import Image

import render
from render import CELLS, glyphs, patches_per_chunk


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


@pytest.mark.parametrize(
    "n, cell, m", [(64, (16, 4), 16), (64, (4, 4), 4), (4, (16, 4), 1), (96, (8, 4), 12)]
)
def test_patches_fill_a_page(n, cell, m):
    assert patches_per_chunk(n, cell) == m


@pytest.mark.parametrize("n, cell", [(0, (16, 4)), (63, (16, 4)), (20, (16, 4)), (24, (4, 4))])
def test_a_chunk_that_fills_no_page_is_refused(n, cell):
    with pytest.raises(ValueError, match=f"chunk {n} does not divide"):
        patches_per_chunk(n, cell)


def test_command_line_draws_any_bytes(tmp_path, capsys):
    source, picture = tmp_path / "any", tmp_path / "sketch.png"
    source.write_bytes(bytes(range(256)) + b"a rest")
    render.main([str(source), "--out", str(picture), "--cell", "8x4"])
    assert Image.open(picture).size == (3 * 4 * (64 + 4), 3 * 2 * (32 + 4))
    assert "262 of 262 bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["missing"], "missing is not there, expected a file"),
        (["empty"], "at least one byte"),
        (["some", "--chunk", "63"], "chunk 63 does not divide"),
        (["some", "--chunk", "0"], "chunk 0 does not divide"),
        (["some", "--chunk", "-64"], "chunk -64 does not divide"),
        (["some", "--out", "no/where.png"], "No such file"),
        (["some", "--out", "sketch.nothing"], "unknown file extension"),
        (["some", "--cell", "9x9"], None),
    ],
)
def test_bad_input_gets_one_clear_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "some").write_bytes(b"text")
    with pytest.raises(SystemExit) as stopped:
        render.main(arguments)
    if said is None:  # argparse has printed it
        assert stopped.value.code == 2 and "9x9" in capsys.readouterr().err
    else:
        assert said in stopped.value.code and "\n" not in stopped.value.code
