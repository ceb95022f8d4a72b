import errno
import multiprocessing
import os
import signal

import pytest
import torch
from conftest import info, make_model

import common
from common import (
    FORMAT,
    INFO,
    WEIGHTS,
    find_device,
    load_checkpoint,
    lock_folder,
    open_model,
    read_checkpoint,
    save_checkpoint,
    write_file,
)
from console import UserError

# ------------------------------------------------------------------------------------ devices


def test_a_device_that_is_there_is_found_by_its_name_and_number(monkeypatch):
    turned = []  # cuDNN's attention, on or off
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cpu", "auto"):
        assert find_device(name) == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == find_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", turned.append)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert find_device("cpu") == torch.device("cpu") and turned == [False] * 3


@pytest.mark.parametrize(
    "name",
    ["cuda:2", "cuda:99", "cuda:-1", "cuda:", "cuda:x", "cuda:²", "cpu:1", "auto:0", "tpu", ""]
    + ["meta", "cuda:" + "9" * 5000],  # as an int, more digits than Python converts
    ids=lambda name: name[:9],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="device '.*' is not there, expected auto or one of cpu"):
        find_device(name)


# -------------------------------------------------------------------------------------- files


def test_a_file_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    """Else a power cut can leave neither: the name is changed, what was written is lost."""
    done, path = [], tmp_path / "file"
    path.write_bytes(b"old")
    fsync, replace = os.fsync, os.replace

    def synced(number):
        done.append(("synced", os.fstat(number).st_size, path.read_bytes()))
        fsync(number)

    def replaced(source, target):
        done.append(("replaced", source.stat().st_size, path.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_file(path, b"new content")
    assert done == [("synced", 11, b"old"), ("replaced", 11, b"old")]
    assert path.read_bytes() == b"new content" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_checkpoint_and_is_named(model, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, info(step=1))

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write .*model.pt: No space left on device"):
        save_checkpoint(path, model, info(step=2))
    assert load_checkpoint(path)[1] == info(step=1) and os.listdir(tmp_path) == ["model.pt"]


def test_a_kill_while_saving_leaves_the_old_checkpoint_whole(model, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, info(step=1))

    def killed(*arguments):
        raise SystemExit

    for name in ("fsync", "replace"):  # half of the new one is written, or all of it
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(os, name, killed)
            save_checkpoint(path, model, info(step=2))
        assert load_checkpoint(path)[1] == info(step=1)


def hold(folder, held):
    with lock_folder(folder):
        held.set()
        signal.pause()


def test_a_folder_is_one_process_own_until_that_process_ends(tmp_path):
    fork = multiprocessing.get_context("fork")
    held = fork.Event()
    other = fork.Process(target=hold, args=(tmp_path, held), daemon=True)
    other.start()
    assert held.wait(60)
    with pytest.raises(UserError, match=f"another run writes to {tmp_path}"):
        with lock_folder(tmp_path):
            pass
    other.kill()  # it has no time to clean up
    other.join()
    for _ in range(2):
        with lock_folder(tmp_path):
            pass


# ------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_gives_the_same_model_back(model, tmp_path):
    path, text = tmp_path / "model.pt", torch.randint(256, (2, 3, 16))
    save_checkpoint(path, model, info(corpus="a"), optimizers=[{"step": 3}])
    again, loaded = load_checkpoint(path)
    assert loaded == info(corpus="a") and again.config == model.config and not again.training
    assert torch.equal(again(text), model(text))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in again.parameters())
    assert read_checkpoint(path)["optimizers"] == [{"step": 3}]


def test_a_checkpoint_cut_anywhere_is_damaged(model, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, info())
    whole = path.read_bytes()
    for kept in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="damaged or not a checkpoint"):
            load_checkpoint(path)


class Trap:
    """What pickle would call while it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_is_not_run(model, tmp_path):
    path, sprung = tmp_path / "model.pt", tmp_path / "sprung"
    save_checkpoint(path, model, info(), more=Trap(sprung))
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not sprung.exists()


def changed(**parts):
    """A checkpoint's content with other parts; a part that is None is left out."""

    def change(content):
        return {k: v for k, v in (content | parts).items() if v is not None}

    return change


def config(**sizes):
    return lambda content: content | {"config": content["config"] | sizes}


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda content: {"weights": 1}, "damaged or not a checkpoint"),
        (lambda content: torch.zeros(3), "damaged or not a checkpoint"),
        (changed(format="vist2 checkpoint 3"), f"is a 'vist2 checkpoint 3', expected a '{FORMAT}'"),
        (changed(info=None), "lacks 'step' in its info, expected what train.py writes"),
        (changed(info={}), "lacks 'step' in its info"),
        (changed(info=[]), "lacks 'step' in its info"),
        (changed(info=info(history=7)), "lacks 'history' in its info"),
        (changed(config=None), "does not fit this code's config"),
        (changed(config=3), "does not fit this code's config"),
        (changed(model=None), "does not fit this code's config"),
        (changed(model=[]), "does not fit this code's config"),
        (config(layers=3), "does not fit this code's config: .*Missing key"),
        (config(width=64), "does not fit this code's config: .*size mismatch"),
        (config(colour=3), "does not fit this code's config: .*colour"),
        (config(layers=10**9), "does not fit this code's config: layers is 1000000000"),
        (config(width=2**20, mlp=2**20, layers=9), "does not fit this code's config"),  # 36 TB
        (config(cell=[16, 4]), "does not fit this code's config: cell"),
    ],
)
def test_a_checkpoint_that_is_not_this_codes_is_refused_in_one_line(
    model, tmp_path, recwarn, change, said
):
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, info())
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(UserError, match=said) as refused:
        load_checkpoint(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert not recwarn.list  # which would be lines of torch's own


@pytest.mark.parametrize("name", INFO)
def test_a_checkpoint_says_how_far_and_for_what_it_was_trained(model, tmp_path, name):
    path, said = tmp_path / "model.pt", info()
    del said[name]
    save_checkpoint(path, model, said)
    with pytest.raises(UserError, match=f"lacks '{name}' in its info"):
        load_checkpoint(path)


def test_what_is_no_file_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # opened, it would wait for a writer
    for name, said in (("fifo", "is no file"), (".", "is no file"), ("gone", "is not there")):
        with pytest.raises(UserError, match=f"{said}, expected a checkpoint"):
            load_checkpoint(tmp_path / name)


def test_what_cannot_be_opened_or_held_is_not_called_damaged(model, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "model.pt", model, info())

    def raise_it(error):
        def call(*arguments, **more):
            raise error

        return call

    for place, error in (
        ("builtins.open", PermissionError("not yours")),
        ("torch.load", RuntimeError("CUDA out of memory")),
    ):
        with monkeypatch.context() as patch, pytest.raises(type(error), match=str(error)):
            patch.setattr(place, raise_it(error))
            load_checkpoint(tmp_path / "model.pt")


def test_it_is_said_which_checkpoint_answers_and_whether_it_was_finished(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    trained, other = "runs/model.pt", "other.pt"
    monkeypatch.setattr(common, "CHECKPOINT", trained)
    for path, step, answering, said in (
        (None, None, str(WEIGHTS), "tiny.pt answers\n"),  # nothing was trained here
        (trained, 9000, trained, "runs/model.pt answers\n"),
        (trained, 1234, trained, "runs/model.pt answers, UNFINISHED: step 1,234 of 9,000\n"),
        (other, 9000, other, "other.pt answers\n"),
    ):
        if path:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            save_checkpoint(path, make_model(), info(step=step, steps=9000))
        _, found = open_model(other if path == other else None)
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.endswith(said)
        assert found["path"] == answering and found["step"] == (step or found["steps"])


def test_the_weights_that_come_with_the_code_are_small_plain_and_finished():
    content = read_checkpoint(WEIGHTS)
    assert WEIGHTS.stat().st_size <= 6_000_000
    assert content.keys() == {"format", "config", "model", "info"}
    assert content["info"]["step"] == content["info"]["steps"]
    assert content["info"]["max_context"] > 0
