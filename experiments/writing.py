"""Long writing: what becomes of a text when each memory lives on its own output.

    python -m experiments.writing runs/compare/*/model.pt --json written.json
    python -m experiments.writing written.json --judge runs/judge/model.pt

Texts go on for 32 chunks after four of held-out text, at temperature 0.8. Names tell whether what
stood early is still spelled right late. A `full` of another seed reads the texts and tells bits per
byte: `python train.py --history full --seed 1 --out runs/judge`. It may favour `full`.
"""

import json
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from cache import Session
from common import find_device, load_checkpoint, open_model
from console import UserError, check_writable, command_line, read_file
from data import Corpus
from evaluate import bits_of
from experiments.kinds import NAME
from experiments.report import load_test_corpus, make_parser, save_json, show, this_machine
from experiments.rivals import RIVALS, load_rival
from generate import write
from vist2 import Vist2

TEXTS = 32
LENGTH = 8  # stretches that are written, each of half a training window
BEGUN = 4  # letters by which a name is told to be meant
REAL = "held-out text"  # in the place of a writer's name


def continue_texts(session: Session, prompts: Tensor, length: int) -> Tensor:
    """(B, T) prompts -> (B, T + length), drawn at temperature 0.8."""
    logits = session.prefill(prompts)
    steps = tqdm(write(session, logits, length, temperature=0.8), "writing", length, leave=False)
    return torch.cat([prompts, torch.stack(list(steps), dim=1).cpu()], dim=1)


def judge_texts(judge: Vist2, text: Tensor, half: int) -> dict[str, float]:
    """Bits per byte of texts (B, k half) after their first `half` bytes, under a model that sees
    `half` or more bytes before each: of the first and last stretch of `half` bytes and of all."""
    windows = text.unfold(1, 2 * half, half).flatten(0, 1)  # (B (k - 1), 2 half)
    chunks = windows.unflatten(1, (-1, judge.config.chunk))
    bits = bits_of(judge, chunks, "full").flatten(1)[:, half:]
    first, *_, last = bits.view(len(text), -1, half).mean(dim=(0, 2)).tolist()
    every = bits.mean().item()
    return {"judge bpb, first": first, "judge bpb, last": last, "judge bpb, all": every}


def share_repeated(text: Tensor, half: int) -> float:
    """Of all 16-byte strings after the first `half` bytes, the share that has come before in its
    stretch of `half` bytes."""
    repeated = []
    for row in text[:, half:].unfold(1, half, half).flatten(0, 1).tolist():
        strings = [bytes(row[i : i + 16]) for i in range(len(row) - 15)]
        repeated.append(1 - len(set(strings)) / len(strings))
    return statistics.mean(repeated)


def copies_of_names(text: bytes, chunk: int) -> list[bool]:
    """Whether it is spelled right, of each name of the later half whose first letters begin a name
    of the earlier half: one of these, or none. What stands in the first chunk of the later half, is
    cut by the end, or has a name that begins so before it in this half, does not count."""
    half, found = len(text) // 2, list(NAME.finditer(text))
    early = {name[0] for name in found if name.end() <= half}
    meant, right = {name[:BEGUN] for name in early}, []
    for name in (name for name in found if name.start() >= half):
        if name[0][:BEGUN] in meant:
            meant.remove(name[0][:BEGUN])
            if name.start() >= half + chunk and name.end() < len(text):
                right.append(name[0] in early)
    return right


def write_texts(path: str, model: Vist2, info: dict, corpus: Corpus) -> dict[str, Tensor]:
    """Held-out texts (B, T), and what a model writes in place of all but their first 1 / (1 +
    LENGTH), on the memory of its own output. Nothing is dropped: 36 chunks are held, training's
    longest windows have 32. Raises UserError for a rival without a rolling cache."""
    if not (writing := RIVALS[info["rival"]].writing):
        writers = ", ".join(name for name, rival in RIVALS.items() if rival.writing)
        raise UserError(f"{path} is of {info['rival']}, expected one of {writers}")
    n, half = model.config.chunk, model.config.chunks // 2 * model.config.chunk
    windows = corpus.held_out.windows((1 + LENGTH) * half)
    rng = torch.Generator().manual_seed(0)
    real = windows[torch.randperm(len(windows), generator=rng)[:TEXTS]]
    session = writing(model, len(real), capacity=real.shape[1] + n)
    return {REAL: real, info["rival"]: continue_texts(session, real[:, :half], LENGTH * half)}


def read_texts(path: str) -> tuple[int, dict[str, Tensor]]:
    """(chunk, texts by writer) as --json has written them. Raises UserError for anything else."""
    try:
        content = json.loads(read_file(path))
        texts = {
            row["writer"]: torch.tensor([list(text.encode("latin-1")) for text in row["texts"]])
            for row in content["rows"]
        }
        return int(content["chunk"]), texts
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} has no texts, expected what writing --json writes") from None


def writing_rows(texts: dict[str, Tensor], n: int, judge: Vist2 | None) -> Iterator[dict]:
    """A row for each writer. n: bytes of a chunk."""
    for name, text in texts.items():
        half = text.shape[1] // (1 + LENGTH)
        copies = [right for one in text.tolist() for right in copies_of_names(bytes(one), n)]
        row = {"writer": name, "names again": len(copies)}
        row["spelled right"] = sum(copies) / len(copies) if copies else ""
        row["repeated %"] = 100 * share_repeated(text, half)
        yield row | (judge_texts(judge, text, half) if judge else {})


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("writing", __doc__)
    add = parser.add_argument
    add("files", nargs="+", help="checkpoints, and .json that an earlier --json has written")
    add("--judge", metavar="CHECKPOINT", help="of history full (no judge)")
    add("--data", metavar="PATH", help="file or folder of the training; default as in train.py")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (%(default)s)")
    add("--json", metavar="PATH", help="write the table and all texts as JSON")
    args = parser.parse_args(argv)
    with command_line("writing.py", "--data"):
        check_writable(args.json)
        device, judge, texts, chunks = find_device(args.device), None, {}, set()
        if args.judge:
            judge, info = load_checkpoint(args.judge, device)
            if info["history"] != "full":
                raise UserError(f"--judge has history {info['history']}, expected full")
        for path in args.files:
            if path.endswith(".json"):
                n, found = read_texts(path)
            else:
                model, info = open_model(path, "", device, load_rival)
                corpus = load_test_corpus(model, info, args.data)
                n, found = model.config.chunk, write_texts(path, model, info, corpus)
            chunks.add(n)
            for name, text in found.items():
                if name != REAL and name in texts:
                    raise UserError(f"{path} is a second {name}, expected one of each")
                if len(chunks) > 1 or not torch.equal(text, texts.setdefault(name, text)):
                    raise UserError(f"{path} is of other chunks or texts than {args.files[0]}")
        title = f"Texts of {LENGTH} times their prompts, judged by {args.judge or 'nobody'}"
        rows = show(title, writing_rows(texts, n, judge))
        for row, text in zip(rows, texts.values(), strict=True):
            row["texts"] = [bytes(one).decode("latin-1") for one in text.tolist()]
        if args.json:
            content = {"machine": this_machine(device), "judge": args.judge, "chunk": n}
            save_json(args.json, content | {"rows": rows})


if __name__ == "__main__":
    main()
