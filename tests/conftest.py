import io
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import curriculum
import generate
from vist2 import PRESETS, Config, Vist2

# Small enough for seconds, odd enough to catch mixed-up axes.
PRESETS["mini"] = dict(chunks=4, width=48, layers=2, heads=4, kv_heads=2, head_width=16, mlp=96)
PRESETS["mini"] |= dict(encoder_width=32, encoder_layers=1, encoder_heads=2)
curriculum.DEFAULTS["mini"] = dict(batch_bytes=512, lr=5e-3)


@pytest.fixture(autouse=True)
def deterministic():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny matrices; and two would fight over the cores of a busy machine


def make_model(kind=Vist2, **changes) -> Vist2:
    """A mini model with random weights everywhere: nothing is zero by its initialisation."""
    model = kind(Config.preset("mini", **({"chunk": 16} | changes)))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def model() -> Vist2:
    return make_model()


@pytest.fixture
def small_file(tmp_path) -> Path:
    path = tmp_path / "small.txt"
    path.write_bytes(
        b"".join(b"line %d: the quick brown fox; %x\n" % (i, i * 7919) for i in range(400))
    )
    return path


def piped(monkeypatch, arguments, main=generate.main) -> bytes:
    """What generate.py, or another program, writes into a pipe."""
    with monkeypatch.context() as patch:
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        patch.setattr(sys, "stdout", out)
        main(arguments)
        out.flush()
        return out.buffer.getvalue()


def info(**changes) -> dict:
    """What a checkpoint says of a finished run."""
    seen = {"max_window": 64, "max_context": 0}
    return {"step": 9, "steps": 9, "history": "sketch"} | seen | changes
