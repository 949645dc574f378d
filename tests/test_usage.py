"""Usage of models: counters add up over parts, tries and stages; a line that a crash cut off is skipped."""

from pathlib import Path

from tasks.usage import Usage, append_usage, read_usage, usage_summary


def test_usage_adds_up_over_parts_and_tries(tmp_path: Path):
    one = Usage(
        requests=10, cached=4, prompt_tokens=100, output_tokens=20, seconds=1.5, cpu_s=1.0, rejected={"refused": 2}
    )
    for part in ((1, 2), (2, 2), (2, 2)):
        append_usage(tmp_path, "caption", part, one)
    append_usage(tmp_path, "judge", None, Usage(requests=30, prompt_tokens=50, gpu_s=2.0))
    with open(tmp_path / ".run" / "usage" / "judge.jsonl", "ab") as file:
        file.write(b'{"requests": 5, "pro')  # cut off by a crash
    stages = read_usage(tmp_path)
    assert stages["caption"] == Usage(30, 12, 300, 60, 4.5, 3.0, 0.0, {"refused": 6}) and stages["judge"].requests == 30
    summary = usage_summary(stages, triplets=10, pairs=20)
    assert summary["per_triplet"] == {
        "requests": 6.0,
        "prompt_tokens": 35.0,
        "output_tokens": 6.0,
        "cpu_s": 0.3,
        "gpu_s": 0.2,
    }
    assert summary["stages"]["caption"]["cached_share"] == 0.4
    assert usage_summary({}, triplets=0, pairs=0) == {} and "40% from the cache" in one.sentence()
