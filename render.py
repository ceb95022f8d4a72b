"""Bytes to pixels: every chunk of text becomes a sketch, an image that the encoder can look at.

Each of the 256 bytes has a bitmap of its own (a glyph), `cell = (height, width)` pixels large. A
sketch is a page of glyphs in reading order, 64 pixels wide: four of the encoder's 16x16 patches.

    cell (h, w)   16x8       16x4       8x4           4x4
    ratio         2x         4x         8x            16x          bytes in one patch
    to a person   terminal   narrow     tiny          a blur

There are no parameters here. The cell is a compression dial, and one that a person can see:

    python render.py README.md --out sketch.png --cell 16x4
"""

import argparse
import functools

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from PIL import Image, ImageDraw, ImageFont

from console import UserError, check_range, check_writable, command_line, one_line, read_file
from console import speaks_unicode

PATCH = 16  # pixels, as in ViT-L/16
PAGE = 4 * PATCH  # the width of a page in pixels
CELLS = ((16, 8), (16, 4), (8, 4), (4, 4))


def cell_name(cell: tuple[int, int]) -> str:
    """(16, 4) -> '16x4'."""
    return f"{cell[0]}x{cell[1]}"


KNOWN_CELLS = ", ".join(map(cell_name, CELLS))


@functools.lru_cache
def glyphs(cell: tuple[int, int]) -> torch.Tensor:
    """All 256 bitmaps: (256, h, w) float32 in [0, 1], 1 is ink. Do not write to the result.

    ASCII is drawn with the 6x11 bitmap font inside Pillow, the same on every machine; control
    bytes as the letter of their caret notation (^@ .. ^_, ^?), white on black. Text is UTF-8,
    where a byte over 127 is never a letter by itself: it gets the bitmap of `byte - 128`, its top
    row flipped. Each bitmap is averaged over the area that a pixel of the cell covers.
    """
    font = ImageFont.load_default_imagefont()
    h, w = cell
    bitmaps = []
    for byte in range(256):
        low = byte % 128
        control = low < 32 or low == 127
        picture = Image.new("L", (6, 11))
        ImageDraw.Draw(picture).text((0, 0), chr(low ^ 64 if control else low), 255, font)
        bitmap = torch.from_numpy(np.array(picture)) > 127  # (11, 6)
        bitmap ^= control
        bitmap[0] ^= byte > 127
        fine = repeat(bitmap.float(), "H W -> (H h) (W w)", h=h, w=w)
        bitmaps.append(reduce(fine, "(h H) (w W) -> h w", "mean", h=h, w=w))
    return torch.stack(bitmaps)


def fills_page(patches: int) -> bool:
    """Whether so many patches make a page: a row of up to four, or whole rows of four."""
    return patches > 0 and (patches < 4 or patches % 4 == 0)


def patches_per_chunk(n: int, cell: tuple[int, int]) -> int:
    """The patches that n bytes fill. Raises UserError for an unknown cell, and where they make no
    page."""
    if cell not in CELLS:
        raise UserError(f"cell {cell!r} is unknown, expected one of {KNOWN_CELLS}")
    held = (PATCH // cell[0]) * (PATCH // cell[1])  # bytes of a patch
    patches = n // held
    if n % held or not fills_page(patches):
        raise UserError(
            f"chunk {n} does not divide into patches: at cell {cell_name(cell)} expected "
            f"{held}, {2 * held}, {3 * held} or a multiple of {4 * held} bytes"
        )
    return patches


def render(chunks: torch.Tensor, cell: tuple[int, int]) -> torch.Tensor:
    """Sketches of chunks: (..., n) integer bytes -> (..., H, W) float32 in [0, 1].

    On the chunks' device. W is 64 pixels, less for fewer than four patches.
    """
    width = min(PAGE, PATCH * patches_per_chunk(chunks.shape[-1], cell))
    h, w = cell
    table = glyphs(cell).flatten(1).to(chunks.device)  # (256, h w)
    pixels = F.embedding(chunks.long(), table)  # (..., n, h w); faster than indexing
    return rearrange(
        pixels, "... (row col) (h w) -> ... (row h) (col w)", col=width // w, h=h, w=w
    )


def half_characters(picture: torch.Tensor, columns: int) -> torch.Tensor:
    """A picture (H, W) in dots (2, lines, at most `columns`), the upper and the lower half of each
    character of a terminal: a dot is the mean of two pixels, or of more where it is too narrow."""
    (height, width), size = picture.shape, 1
    while width > size * columns:
        size *= 2
    picture = F.pad(picture, (0, -width % size, 0, -height % (4 * size)))
    return reduce(picture, "(H two h) (W w) -> two H W", "mean", two=2, h=2 * size, w=size)


def half_blocks(sketch: torch.Tensor, columns: int) -> str:
    """A sketch (H, W) for a terminal, in characters alone."""
    blocks = " ▀▄█" if speaks_unicode() else " '.:"
    upper, lower = half_characters(sketch, columns) > 0.5
    kinds = (upper + 2 * lower).tolist()
    return "\n".join("".join(blocks[kind] for kind in row).rstrip() for row in kinds)


def parse_cell(text: str) -> tuple[int, int]:
    """'16x4' -> (16, 4), for command lines."""
    for cell in CELLS:
        if text == cell_name(cell):
            return cell
    raise argparse.ArgumentTypeError(f"cell {text!r} is unknown, expected one of {KNOWN_CELLS}")


def enlarge(picture: Image.Image, times: int) -> Image.Image:
    """Each pixel as a square of so many."""
    size = times * picture.width, times * picture.height
    return picture.resize(size, Image.Resampling.NEAREST)


def contact_sheet(text: bytes, cell: tuple[int, int], chunk: int) -> Image.Image:
    """The sketches of a text, four a row, black on white, in grey frames, enlarged."""
    text += b" " * (-len(text) % chunk)
    sketches = render(torch.tensor(list(text)).view(-1, chunk), cell)  # (N, H, W)
    framed = F.pad(F.pad(1 - sketches, (1, 1, 1, 1), value=1.0), (1, 1, 1, 1), value=0.7)
    blank = torch.ones(-len(framed) % 4, *framed.shape[1:])
    page = rearrange(torch.cat([framed, blank]), "(r c) H W -> (r H) (c W)", c=4)
    return enlarge(Image.fromarray((255 * page).byte().numpy()), 3)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw a text as the model sees its past.")
    add = parser.add_argument
    add("file", help="any file, or - for standard input")
    add("--out", default="sketch.png", help="the picture (%(default)s)")
    add("--cell", type=parse_cell, default="16x4", help=f"{KNOWN_CELLS} (%(default)s)")
    add("--chunk", type=int, default=64, help="bytes in one sketch (%(default)s)")
    add("--limit", type=int, default=64, help="sketches at most (%(default)s)")
    args = parser.parse_args(argv)
    with command_line("render.py", "--limit"):
        check_range("--limit", args.limit, 1, 2**16)
        check_range("--chunk", args.chunk, 1, 2**16)
        patches_per_chunk(args.chunk, args.cell)  # raises UserError before anything is read
        check_writable(args.out)
        text = read_file(args.file, first=args.limit * args.chunk)
        if not text:
            raise UserError(f"{args.file} is empty, expected at least one byte")
        try:
            contact_sheet(text, args.cell, args.chunk).save(args.out)
        except (KeyError, OverflowError, ValueError):  # Pillow: unknown ending, or too tall for it
            raise UserError(f"cannot write {args.out}, expected an ending such as .png") from None
        print(one_line(f"{args.out}: the first {len(text):,} bytes of {args.file}"))


if __name__ == "__main__":
    main()
