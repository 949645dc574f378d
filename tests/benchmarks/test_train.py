"""The benchmarks of training run, small, and both sides take the same loss of the same pixels."""

import json

import pytest

from benchmarks import loader, train


def test_our_step_and_sentence_transformers_take_the_same_loss_of_the_same_batches(capsys: pytest.CaptureFixture[str]):
    figures = train.main(["--shape", "tiny", "--batch", "6", "--repeats", "2", "--no-memory", "--no-loader"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["is_equal"] and figures["loss_difference"] < 1e-4 and len(figures["losses"][0]) == 3
    assert figures["hard_negatives"] == 4 and figures["total_images"] == 36 and figures["unique_images"] < 15
    assert {"ours_samples_per_s", "sentence_transformers_samples_per_s", "ratio", "rss_mib"} <= set(figures)


def test_memory_with_and_without_gradient_caching_is_of_the_same_loss(capsys: pytest.CaptureFixture[str]):
    sizes = {"--shape": "tiny", "--batch": "6", "--memory-shape": "tiny", "--memory-batch": "40", "--memory-chunk": "4"}
    line = ["--no-speed", "--no-loader", *(word for pair in sizes.items() for word in pair)]
    memory = train.main(line)["memory"]
    plain, cached = memory["plain"], memory["cached"]
    assert memory["loss_difference"] < 1e-5 and memory["batch"] == 40 and cached["images"] == plain["images"]
    step_mib, cached_step_mib = (m["peak_mib"] - m["before_mib"] for m in (plain, cached))
    assert step_mib > 0 and memory["ratio"] == pytest.approx(step_mib / max(1.0, cached_step_mib), abs=0.01)


def test_the_loader_and_webdataset_give_the_same_pixels(capsys: pytest.CaptureFixture[str]):
    figures = loader.main(["--side", "96", "--batch", "8", "--batches", "2", "--turns", "1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["is_equal"] and figures["triplets"] == 16
    assert figures["images_webdataset"] == 16 * 5 > 2 * figures["images_ours"]
    for kind in ("", "prepared_"):
        quotient = figures[f"{kind}ours"] / figures[f"{kind}webdataset"]
        assert figures[f"{kind}ratio"] == pytest.approx(quotient, rel=0.05)
