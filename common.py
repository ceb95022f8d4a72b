"""Devices and checkpoints: what every program here shares."""

import contextlib
import io
import os
from dataclasses import asdict
from pathlib import Path

import torch

from console import UserError, out_of_memory, warn
from vist2 import Config, Vist2

FORMAT = "vist2 checkpoint 6"
# What every info holds; max_window and max_context are the most bytes of text that training saw at
# a time, and of what it was asked about.
INFO = {"step": int, "steps": int, "history": str, "max_window": int, "max_context": int}
CHECKPOINT = "runs/sketch/model.pt"  # what train.py writes
WEIGHTS = Path(__file__).parent / "weights/tiny.pt"  # come with the code


def find_device(name: str) -> torch.device:
    """'auto' takes CUDA, then Apple's MPS, then the CPU; 'cuda:1' is the second GPU. Turns cuDNN's
    attention off where CUDA is taken. Raises UserError for what is not there."""
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here = ["cpu"] + ["mps"] * torch.backends.mps.is_available() + ["cuda"] * bool(cards)
    chosen = here[-1] if name == "auto" else name
    if chosen not in here + cards:
        raise UserError(f"device {name!r} is not there, expected auto or one of {', '.join(here)}")
    if chosen in ["cuda", *cards]:  # cuDNN's attention plans anew for every shape: a second a step
        torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(chosen)


def write_file(path: Path, content: bytes) -> None:
    """Write the whole file or none: to a temporary file, to the disk, then over the old one.
    Raises OSError, and leaves the old file as it was."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def lock_folder(folder: Path):
    """Raises UserError if another process holds the folder. A lock ends with its process."""
    with open(folder / "lock", "a") as file:
        try:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # Windows
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError):
            raise UserError(f"another run writes to {folder}, expected one of its own") from None
        yield


# ------------------------------------------------------------------------------- checkpoints


def save_checkpoint(path: str | Path, model: Vist2, info: dict, **more) -> None:
    """Write a whole checkpoint or none: plain types and tensors.

    info: at least INFO. more: what a resume needs besides, such as optimizers. Raises OSError.
    """
    content = {"format": FORMAT, "config": asdict(model.config), "model": model.state_dict()}
    buffer = io.BytesIO()  # torch would hide why a file cannot be written
    torch.save(content | {"architecture": type(model).__name__, "info": info} | more, buffer)
    write_file(Path(path), buffer.getbuffer())


def read_checkpoint(path: str | Path, device="cpu") -> dict:
    """The content of a checkpoint: plain types and tensors, never pickled code.

    Raises UserError for a file that is missing, truncated or not a checkpoint of this project,
    and OSError for one that cannot be opened.
    """
    if not Path(path).is_file():
        found = "is no file" if Path(path).exists() else "is not there"
        raise UserError(f"{path} {found}, expected a checkpoint that train.py has written")
    with open(path, "rb") as file:
        try:
            content = dict(torch.load(file, map_location=device, weights_only=True))
            known = content["format"] == FORMAT
        except Exception as error:  # torch raises a dozen kinds, OSError too
            if out_of_memory(error):  # nothing is wrong with the file
                raise
            raise UserError(f"{path} is damaged or not a checkpoint of this project") from None
    if not known:
        raise UserError(f"{path} is a {content['format']!r}, expected a {FORMAT!r}")
    info = content.get("info")
    for name, kind in INFO.items():
        if not isinstance(info, dict) or type(info.get(name)) is not kind:
            raise UserError(f"{path} lacks {name!r} in its info, expected what train.py writes")
    return content


def restore(content: dict, path: str | Path, kind: type[Vist2] = Vist2) -> Vist2:
    """The model in a checkpoint's content. Raises UserError if it does not fit this code."""
    if content.get("architecture", kind.__name__) != kind.__name__:  # older files do not say
        raise UserError(f"{path} holds a {content['architecture']}, expected a {kind.__name__}")
    try:
        with torch.device("meta"):  # sizes are compared before any memory is taken
            model = kind(Config(**content["config"]))
        model.load_state_dict(content["model"], assign=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit this code's config: {reason}") from None
    return model.float()


def load_checkpoint(path: str | Path, device="cpu") -> tuple[Vist2, dict]:
    """(model, info) from a file. info: INFO, and more that train.py tells of the run.

    Raises UserError for a file that is missing, damaged, or does not fit this code's config.
    """
    content = read_checkpoint(path, device)
    return restore(content, path).to(device).eval(), content["info"]


def open_model(given: str | None, device="cpu", load=load_checkpoint):
    """(model, info) of the checkpoint that is given, else of CHECKPOINT, else of WEIGHTS. Says
    which, and how far it was trained."""
    usual = CHECKPOINT if Path(CHECKPOINT).exists() else WEIGHTS
    path = usual if given is None else given
    model, info = load(path, device)
    step, steps = info["step"], info["steps"]
    unfinished = f", UNFINISHED: step {step:,} of {steps:,}" if step < steps else ""
    warn(f"{path} answers{unfinished}")
    return model, info | {"path": str(path)}
