"""The benchmarks run, small, and what they compare is equal."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import (
    camera,
    caption,
    evaluate,
    incremental,
    ingest,
    mine,
    pages,
    parts,
    records,
    select,
    vectors,
    weeks,
)


@pytest.mark.parametrize("neighbours", [None, 3])
def test_mine_gives_the_same_pairs_as_faiss_and_as_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], neighbours: int | None
):
    more = [] if neighbours is None else ["--neighbours", str(neighbours)]
    figures = mine.main(["--n", "1500", "--folder", str(tmp_path), *more])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["is_equal"] and figures["n"] == 1500 and figures["dims"] == 512 and figures["pairs"] > 3000
    slower = max(figures["faiss_cpu_s"], figures["torch_cpu_s"])
    faster = min(figures["faiss_cpu_s"], figures["torch_cpu_s"])
    assert figures[f"{figures['peer']}_cpu_s"] == faster <= slower, "the ratio is taken against the faster peer"
    assert figures["ratio"] == figures[f"ratio_{figures['peer']}"] and {"ours_cpu_s", "rss_mib"} <= set(figures)


@pytest.mark.slow
def test_evaluate_gives_the_vectors_of_the_released_loop(capsys: pytest.CaptureFixture[str]):
    figures = evaluate.main(["--images", "24", "--distinct", "8", "--preprocess", "stock"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["images"] == 24 and figures["max_vector_difference"] < 1e-6
    assert {"ours_images_per_cpu_s", "peer_images_per_cpu_s", "ratio", "peer_transformers", "again_s"} <= set(figures)


def test_the_peers_may_answer_for_a_part_of_the_rows_and_the_figures_say_so(tmp_path: Path):
    figures = mine.main(["--n", "600", "--peer-queries", "60", "--folder", str(tmp_path)])
    assert figures["is_equal"] and figures["is_extrapolated"] and figures["faiss_queries"] == 60 and figures["n"] == 600
    assert figures["faiss_measured_cpu_s"] < figures["faiss_cpu_s"]
    assert not mine.main(["--n", "300", "--folder", str(tmp_path)])["is_extrapolated"]


def test_the_device_benchmark_runs_on_a_cpu_and_finds_what_is_exact(capsys: pytest.CaptureFixture[str]):
    figures = mine.main(["--device", "cpu", "--n", "700", "--dims", "96", "--neighbours", "5"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert (
        figures["is_equal"] and figures["recall"] == 1 and 0.9 < figures["recall_half"] <= 1 and figures["pairs"] > 700
    )
    assert {"share", "matrix_tflops", "join_tflops", "all_pairs_20m_h", "rss_mib", "seconds"} <= set(figures)


def test_the_vectors_are_of_unit_length_and_always_the_same():
    rows = vectors.clustered(300, d=32)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.array_equal(rows, vectors.clustered(300, d=32)) and not np.array_equal(
        rows, vectors.clustered(300, d=32, seed=1)
    )


def test_records_are_streamed_at_two_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "new"
    figures = records.main(["--records", "300", "--simulate", "900", "--batches", "3", "--folder", str(folder)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures and not list(folder.iterdir())
    assert figures["records"] == 900 and figures["small"]["records"] == 300
    assert {"records_per_s", "rss_mib", "start_s"} <= set(figures) and 0 < figures["rss_mib"] < 4096


def test_parts_are_measured_and_give_the_files_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = parts.main(["--n", "900", "--parts", "2", "--neighbours", "4", "--folder", str(tmp_path)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["is_equal"] and figures["parts"] == 2 and figures["candidates_mib"] > 0
    assert all(figures[step]["cpu_s"] > 0 for step in ("whole", "part", "merge", "select"))


def test_a_week_is_measured_and_its_tables_hold_what_a_search_from_scratch_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    figures = incremental.main(["--n", "900", "--share", "0.1", "--neighbours", "4", "--folder", str(tmp_path)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["is_equal"] and figures["new"] == 90
    assert {"full_cpu_s", "increment_cpu_s", "share"} <= set(figures)


def test_a_week_that_was_cut_off_goes_on_with_the_stage_that_it_was_in(tmp_path: Path):
    arguments = [
        "--n",
        "500",
        "--share",
        "0.1",
        "--neighbours",
        "4",
        "--folder",
        str(tmp_path),
        "--keep",
        str(tmp_path / "store"),
    ]
    whole = incremental.main(arguments)
    seconds = tmp_path / "store" / f"seconds-{incremental.BATCHES[1]}.json"
    seconds.write_text(json.dumps({"mine": 7.5}))  # as if it had ended in the second select
    again = incremental.main(arguments)
    assert (
        again["is_equal"]
        and again["full"] == whole["full"]
        and again["increment"]["mine"] == 7.5
        and again["increment"]["select"] != 0
    )


def test_several_corpora_are_measured_one_after_another(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    figures = mine.main(["--rows", "clustered:600,scenes:150", "--neighbours", "3", "--folder", str(tmp_path)])
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == figures
    assert [(f["vectors"], f["n"], f["is_equal"]) for f in figures["rows"]] == [
        ("clustered", 600, True),
        ("scenes", 150, True),
    ] and figures["n"] == 600
    with pytest.raises(SystemExit):
        mine.main(["--rows", "faces:10"])


def test_captions_of_the_loop_and_of_the_batch_are_compared(capsys: pytest.CaptureFixture[str]):
    figures = caption.main(["--pairs", "6", "--turns", "1", "--no-vllm"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["equal_share"] == 1.0
    assert (
        figures["vllm_offline_pairs_per_cpu_s"] is None
        and figures["vllm_server_pairs_per_cpu_s"] is None
        and "--no-vllm" in figures["vllm_reason"]
    )
    assert figures["ratio"] == figures["batched_ratio"] and figures["gpu_days_1m"] is None and figures["gpu_reason"]
    assert caption.part_pairs(10.0, 50.0) == 9500  # 9,500 pairs are 190 s: 10 s are 5% of 200


@pytest.mark.parametrize(
    "name",
    [
        "caption",
        "data_efficiency",
        "embed",
        "further_rows",
        "incremental",
        "ingest",
        "loader",
        "mine",
        "photographs",
        "switches",
        "train",
    ],
)
def test_every_benchmark_runs_in_its_quick_form_as_its_page_says(name: str, tmp_path: Path):
    """In a folder without photographs, peers or a demo, as in a fresh clone: one JSON object is the last line."""
    for linked in ("benchmarks", "tasks", "params.yaml"):
        (tmp_path / linked).symlink_to(Path(linked).resolve())
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures.get("is_equal", True) is True
    described = importlib.import_module(f"benchmarks.{name}").__doc__ or ""
    assert "JSON" in described and f"python -m benchmarks.{name}" in described


def test_no_two_expand_sources_ingest_are_the_same_file_however_few_the_photographs(tmp_path: Path):
    """780 photographs make 195 different sources; 200 are asked for by default."""
    photos = []
    for n in range(2):
        photos.append(tmp_path / f"{n}.png")
        ingest.drawn(n).save(photos[-1])
    ingest.make_images(tmp_path / "sources", 40, photos)
    contents = {p.read_bytes() for p in (tmp_path / "sources").glob("*.jpg")}
    assert len(contents) == 40


def test_ingest_is_measured_also_where_no_peer_and_no_photographs_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    nowhere = tmp_path / "nowhere"
    figures = ingest.main(
        ["--images", "4", "--repeats", "1", "--folder", str(tmp_path), "--photos", str(nowhere), "--peer", str(nowhere)]
    )
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == figures and "make bench-peers" in printed
    assert (
        figures["images"] == 4
        and figures["kind"] == "drawn"
        and figures["ours_images_per_cpu_s"] > 0
        and figures["ours_psnr_db"] > 30
    )
    assert 0 < figures["rss_mib"] <= 500
    assert {k for k, v in figures.items() if v is None} == {
        *(
            "img2dataset_images_per_cpu_s",
            "ratio",
            "ratio_in_process",
            "img2dataset_psnr_db",
            "img2dataset_psnr_db_p10",
            "bytes_ratio",
            "img2dataset_rss_mib",
            "img2dataset",
        )
    }


def test_camera_like_sources_are_made_once_and_measured_against_thumbnail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert all(11_900_000 <= width * height < 12_700_000 for width, height in camera.SIZES)
    monkeypatch.setattr(camera, "SIZES", ((1200, 900), (1000, 1000)))
    nowhere = str(tmp_path / "nowhere")
    options = ["--size", "large", "--images", "2", "--repeats", "1", "--folder", str(tmp_path), "--peer", nowhere]
    figures = ingest.main(options)
    sources = sorted((tmp_path / "ingest-large-2").glob("*.jpg"))
    images = [Image.open(path) for path in sources]
    assert [(image.size, image.getexif().get(0x0112)) for image in images] == [((1200, 900), 1), ((1000, 1000), 6)]
    assert figures["ours_psnr_db"] >= figures["pillow_thumbnail_psnr_db"]
    assert figures["ours_psnr_db_p10"] >= figures["pillow_thumbnail_psnr_db_p10"]
    assert camera.camera_jpeg(0) == sources[0].read_bytes(), "the same bytes for the same number"


def test_select_is_measured_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = select.main(["--quick", "--folder", str(tmp_path / "store")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["images"] == 1200 and figures["candidates_per_image"] == 6 and figures["rows"] == 3 * 1200 * 6
    assert 6 * 1200 <= figures["candidates"] < figures["rows"] and 1200 <= figures["pairs"] <= 2 * 1200
    assert figures["peak_mib"] > 30 and figures["cpu_s"] > 0 and not (tmp_path / "store").exists()


def test_the_pages_are_measured_on_drawn_triplets(capsys: pytest.CaptureFixture[str]):
    figures = pages.main(["--quick"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["triplets"] == 2000 and figures["images"] == 500
    assert figures["explorer_p95_ms"] > 0 and figures["search_p95_ms"] > 0


def test_a_merged_table_of_weeks_has_the_same_rows_in_fewer_files(capsys: pytest.CaptureFixture[str]):
    figures = weeks.main(["--quick"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert (figures["files_before"], figures["files_after"], figures["rows"]) == (12, 3, 60) and figures["is_equal"]
