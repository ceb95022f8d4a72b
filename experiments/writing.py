"""Long writing: what becomes of a text when each memory lives on its own output.

    python -m experiments.writing runs/sketch/model.pt runs/full/model.pt --json written.json
    python -m experiments.writing written.json --judge runs/judge/model.pt

Texts go on for eight times their prompts, which are half a window of training, at temperature 0.8:
`tiny` writes 32 chunks after four, and holds them all. "Names again" are those of the later half
that begin like one of the earlier half, "spelled right" the share that is one of these. "Repeated"
is the share of 16-byte strings that have come before in the same four chunks. A `full` of another
seed reads the texts and tells bits per byte: `python train.py --history full --seed 1 --out
runs/judge`. It may favour `full`.
"""

import json
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from cache import Session
from common import find_device, open_model
from console import UserError, check_writable, command_line, read_file
from data import Corpus, generator
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


def held_out_texts(model: Vist2, corpus: Corpus) -> Tensor:
    """(B, T) bytes: prompts of half a training window, and LENGTH times as much after each."""
    half = max(1, model.config.chunks // 2) * model.config.chunk
    windows = corpus.held_out.windows((1 + LENGTH) * half)
    if not len(windows):
        raise UserError(f"no held-out file has the {(1 + LENGTH) * half} bytes of a long text")
    return windows[torch.randperm(len(windows), generator=generator(0))[:TEXTS]]


def prompts_of(texts: Tensor) -> Tensor:
    """(B, T) texts -> (B, half), half a training window of each."""
    return texts[:, : texts.shape[1] // (1 + LENGTH)]


def write_texts(model: Vist2, rival: str, texts: Tensor) -> Tensor:
    """What a model writes after the prompts of texts (B, T), up to their length, on the memory of
    its own output. Nothing is dropped: `tiny` holds 36 chunks, its training sees 32 at most."""
    (B, T), prompts = texts.shape, prompts_of(texts)
    session = RIVALS[rival].writing(model, B, capacity=T + model.config.chunk)
    return continue_texts(session, prompts, T - prompts.shape[1])


def read_texts(path: str) -> tuple[int, dict[str, tuple[dict, Tensor]]]:
    """(chunk, info and texts by writer) as --json has written them. Raises UserError for anything
    else."""
    try:
        content, found = json.loads(read_file(path)), {}
        chunk, rows = content["chunk"], content["rows"]
        for row in rows:
            text = torch.tensor([list(one.encode("latin-1")) for one in row["texts"]])
            found[str(row["writer"])] = dict(row["info"]), text
            half, rest = divmod(len(text[0]), 1 + LENGTH)
            if type(chunk) is not int or chunk < 1 or rest or half < 16 or half % chunk:
                raise ValueError
        if REAL not in found or len(found) < len(rows):
            raise ValueError
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise UserError(f"{path} has no texts, expected what writing --json writes") from None
    return chunk, found


def writing_rows(texts: dict[str, Tensor], n: int, judge: Vist2 | None) -> Iterator[dict]:
    """A row for each writer. n: bytes of a chunk."""
    for name, text in texts.items():
        half = prompts_of(text).shape[1]
        copies = [right for one in text.tolist() for right in copies_of_names(bytes(one), n)]
        row = {"writer": name, "names again": len(copies)}
        row["spelled right"] = sum(copies) / len(copies) if copies else ""
        row["repeated"] = share_repeated(text, half)
        yield row | (judge_texts(judge, text, half) if judge else {})


def open_file(path: str, device: torch.device) -> tuple[int, dict]:
    """(chunk, by writer its info and its texts, or the model that is to write them)."""
    if path.endswith(".json"):
        return read_texts(path)
    model, info = open_model(path, device, load_rival)
    if not RIVALS[info["rival"]].writing:
        writers = ", ".join(name for name, rival in RIVALS.items() if rival.writing)
        raise UserError(f"{path} is of {info['rival']}, expected one of {writers}")
    return model.config.chunk, {info["rival"]: (info, model)}


def open_all(paths: list[str], device: torch.device) -> tuple[int, dict]:
    """`open_file` of many, before any of them writes. Raises UserError for files that do not go
    together."""
    chunk, sources = None, {}
    for path in paths:
        n, found = open_file(path, device)
        if n != (chunk := chunk or n):
            raise UserError(f"{path} has chunks of {n} bytes, expected {chunk} as in {paths[0]}")
        for name in found.keys() & sources.keys() - {REAL}:
            raise UserError(f"{path} is a second {name}, expected one of each")
        sources |= found
    kept = {name: source for name, (_, source) in sources.items() if isinstance(source, Tensor)}
    for name, text in kept.items():
        if not torch.equal(prompts_of(text), prompts_of(kept[REAL])):
            raise UserError(f"{name} has prompts of its own, expected texts of one corpus")
    return chunk, sources


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("writing", __doc__, "--data", "--device", "--json")
    add = parser.add_argument
    add("files", nargs="+", help="checkpoints, and .json that an earlier --json has written")
    add("--judge", metavar="CHECKPOINT", help="of history full (no judge)")
    args = parser.parse_args(argv)
    with command_line("writing.py", "model"):
        check_writable(args.json)
        device = find_device(args.device)
        n, sources = open_all(args.files, device)
        judge, judged = (None, {}) if args.judge is None else open_model(args.judge, device)
        if judge:
            found = judged["history"], judge.config.chunk
            if found != ("full", n):
                raise UserError(f"--judge has history, chunk {found}, expected {('full', n)}")
            load_test_corpus(judge, judged, args.data)  # warns of another
        infos, texts = {REAL: {}}, {REAL: sources.pop(REAL, ({}, None))[1]}
        for name, (info, source) in sources.items():
            if isinstance(source, Vist2):
                corpus = load_test_corpus(source, info, args.data)
                if texts[REAL] is None:
                    texts[REAL] = held_out_texts(source, corpus)
                info |= {"machine": this_machine(device)}
                source = write_texts(source, name, texts[REAL])
            infos[name], texts[name] = info, source
        title = f"Texts that go on for {LENGTH} times their prompts, judged by "
        rows = show(title + (args.judge or "nobody"), writing_rows(texts, n, judge))
        for row, info, text in zip(rows, infos.values(), texts.values(), strict=True):
            strings = [bytes(one).decode("latin-1") for one in text.tolist()]
            row |= {"info": info, "texts": strings}
        if args.json:
            save_json(args.json, {"judge": judged, "chunk": n, "rows": rows})


if __name__ == "__main__":
    main()
