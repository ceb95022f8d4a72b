import json
from pathlib import Path

import pytest
import torch
from conftest import make_model

from data import generator, language_batch, load_corpus, reading_batch, spelling_batch
from experiments import dryrun
from questions import question_batch, recall_example
from train import Settings

N, n = 4, 16


@pytest.fixture
def batches(small_file):
    text = load_corpus(str(small_file), N * n).train
    rng = generator("test")
    return {
        "spelling": spelling_batch(text, 3, n, rng),
        "reading": reading_batch(text, 3, n, rng),
        "whole": language_batch(text.sample(3, N * n, rng), n),
        "text": language_batch(text.sample(3, N * n, rng), n),
        "recall": question_batch([recall_example(text, rng, n, 3) for _ in range(3)], n),
    }


def count(task, batch, model):
    return dryrun.count_task(model, "sketch", task, batch)


@pytest.fixture
def on_meta():
    return make_model().to("meta")


@pytest.mark.parametrize("task", ["spelling", "reading", "whole", "text", "recall"])
def test_what_is_kept_is_what_the_cpu_keeps(batches, task, request):
    _, real = count(task, batches[task], make_model())
    _, counted = count(task, batches[task], request.getfixturevalue("on_meta"))
    assert counted == real > 0


def test_flops_of_spelling_are_six_a_weight_and_token(batches, on_meta):
    """Forward, gradients of inputs and of weights: two each. The pixels want no gradient."""
    c, (work, _) = on_meta.config, count("spelling", batches["spelling"], on_meta)
    tokens, parts = 3 * c.sketch_tokens, (on_meta.encoder, on_meta.aligner, on_meta.speller)
    weights = sum(p.numel() for part in parts for p in part.parameters() if p.ndim == 2)
    products = 6 * tokens * weights - 2 * tokens * on_meta.encoder.embed.weight.numel()
    alphabet = 6 * tokens * c.ratio * 256 * c.width  # cosines
    scores = 6 * 2 * c.encoder_layers * 3 * c.sketch_tokens**2 * c.encoder_width
    assert work == products + alphabet + scores


def test_attention_keeps_its_inputs_and_its_output_but_no_scores(on_meta):
    q, k, v = torch.randn(3, 2, 4, 32, 16, device="meta", requires_grad=True).unbind()
    with dryrun.counting_kept(on_meta) as kept:
        torch.nn.functional.scaled_dot_product_attention(2 * q, 2 * k, 2 * v)
    assert sum(storage.nbytes() for storage in kept) == 4 * q.numel() * 4


def test_a_stage_takes_the_mean_of_its_steps_and_the_most_that_a_task_keeps(
    small_file, on_meta, monkeypatch
):
    def sampled(stage, config, corpus, settings, step, language_step):
        yield from (("one", 1, step + 1), ("other", 1, step + 1))

    def counted(model, history, task, size):
        return size * 10**12, size * dryrun.GIB * (2 if task == "one" else 1)

    monkeypatch.setattr(dryrun, "sample_batches", sampled)
    monkeypatch.setattr(dryrun, "count_task", counted)
    corpus = load_corpus(str(small_file), N * n)
    for row in dryrun.stage_rows(on_meta, Settings(device="cpu").resolve(), corpus, 2):
        assert (row["TFLOP a step"], row["GiB kept"]) == (3, 4)


def test_what_is_kept_grows_with_the_bytes_alone(small_file, on_meta):
    """No scores count and no weights, which `embed_text` looks at in place: twice the rows or twice
    the bytes in each are alike."""
    text = load_corpus(str(small_file), N * n).train
    few, rows, long = (
        count("text", language_batch(text.sample(rows, length, generator("test")), n), on_meta)[1]
        for rows, length in ((2, 4 * n), (4, 4 * n), (2, 8 * n))
    )
    assert all(1.98 * few < more < 2 * few for more in (rows, long))


def test_the_command_counts_every_stage(small_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--data", str(small_file), "--samples", "1", "--json", "counted.json"]
    dryrun.main([*command, "--preset", "mini", "--history", "full"])
    content = json.loads(Path("counted.json").read_text())
    names = [row["stage"] for row in content["stages"]]
    assert names == ["mixed chunks", "whole chunks", "long windows"]
    whole = sum(row["steps"] * row["TFLOP a step"] for row in content["stages"])
    assert content["PFLOP"] == pytest.approx(whole / 1000) and whole > 0
    [held] = content["held"]
    assert held["weights"] == sum(p.numel() for p in make_model(chunk=64).parameters())
    assert held["of Muon and AdamW"] < 2 * held["GiB of weights"] == 2 * held["of gradients"]
    assert " PFLOP in all\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--samples is 0, expected 1 to 1,000"):
        dryrun.main(["--samples", "0"])
