"""Images that nobody captioned: calibrated windows, one run of the DAG, and every file and pair accounted for.

Once as a dataset of one's own, which `new-dataset` lays out, on a drawn folder that has what photographs have (sizes,
EXIF turns, crops, recolours, copies, broken files); once on real photographs where they are: `../shared/photos`, kept
out of the repository. Each run gets a deployment of its own.
"""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from markupsafe import escape
from PIL import Image, ImageEnhance

from tasks.calibrate.params_file import set_values
from tasks.demo.watch import DATASET_DAG
from tasks.publish.git import git
from tasks.reasons import REASONS
from tasks.store import Store
from tests.support.browser import start_from_form
from tests.support.textured_images import motif

from .conftest import FOLDERS, Factory

PHOTOGRAPHS = Path(__file__).resolve().parents[3].parent / "shared" / "photos"
# of judge's reasons; the others leave out a text or a negative of a pair that stays
ENDS_A_PAIR = ("wrong_target", "ambiguous", "duplicate")
BASES = 8  # drawn motifs


class Run(NamedTuple):
    """A finished run: its form's values, its tasks' reports, and a clone of its version, or why there is none."""

    conf: dict[str, Any]
    reports: dict[str, list[dict[str, Any]]]
    clone: Path | None
    why_none: str

    def total(self, task: str, name: str) -> int:
        return sum(report[name] for report in self.reports[task])

    def dropped(self, task: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for report in self.reports[task]:
            for reason, count in report["dropped"].items():
                counts[reason] = counts.get(reason, 0) + count
        return counts


# --- a folder that looks like photographs


def draw_photographs(folder: Path) -> dict[str, str]:
    """46 files, among them five of each motif; returns path -> the reason for which ingest must leave it out."""
    folder.mkdir()
    for n in range(BASES):
        width, height = ((640, 480), (480, 640), (900, 300), (512, 512))[n % 4]
        base = motif(n, width, height)
        family = {
            "whole": base,
            "crop": base.crop((width // 6, height // 8, width, height * 7 // 8)),
            "warm": Image.merge(
                "RGB",
                [
                    c.point(lambda v, f=f: min(255, int(v * f)))
                    for c, f in zip(base.split(), (1.25, 0.95, 0.6), strict=True)
                ],
            ),
            "pale": ImageEnhance.Color(ImageEnhance.Brightness(base).enhance(1.35)).enhance(0.3),
            "close": base.crop((0, 0, width * 2 // 3, height * 2 // 3)),
        }
        for name, image in family.items():
            exif = Image.Exif()
            if name == "close":
                exif[0x0112] = 6  # the camera was held on its side
            image.save(folder / f"{n}_{name}.jpg", quality=88, exif=exif)
    (folder / "broken_cut.jpg").write_bytes((folder / "0_whole.jpg").read_bytes()[:3000])
    (folder / "broken_noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    shutil.copyfile(folder / "1_whole.jpg", folder / "z_same.jpg")
    motif(2, 900, 300).resize((450, 150)).save(folder / "z_smaller.png")
    motif(3, 30, 40).save(folder / "z_tiny.png")
    (folder / "notes.txt").write_text("where these were taken")
    return {
        "broken_cut.jpg": "undecodable",
        "broken_noise.png": "undecodable",
        "z_same.jpg": "duplicate",
        "z_smaller.png": "near_duplicate",
        "z_tiny.png": "too_small",
        "notes.txt": "not_a_picture",
    }


@pytest.fixture
def deployment(factory: Factory) -> Iterator[Factory]:
    """The shared Airflow with nothing published yet."""
    with factory.empty_deployment():
        yield factory


def calibrated(folder: Path, *, limit: int) -> dict[str, Any]:
    """Values of the trigger form that `python -m tasks calibrate` proposes for a folder in its last line."""
    command = [
        sys.executable,
        "-m",
        "tasks",
        "calibrate",
        "--source",
        str(folder),
        "--profile",
        "demo",
        "--limit",
        str(limit),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def lay_out_dataset(root: Path, name: str, folder: Path) -> None:
    """`python -m tasks new-dataset`, in place of the deployment that is there."""
    for part in FOLDERS:
        shutil.rmtree(root / part, ignore_errors=True)
    command = [sys.executable, "-m", "tasks", "new-dataset", name, "--source", str(folder), "--root", str(root)]
    done = subprocess.run([*command, "--profile", "demo"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def refresh(deployment: Factory, conf: dict[str, Any], clone: Path) -> Run:
    """One run of dataset_refresh, green; then what a researcher has of it."""
    return collect(deployment, deployment.airflow.trigger(DATASET_DAG, conf), conf, clone)


def collect(deployment: Factory, run_id: str, conf: dict[str, Any], clone: Path) -> Run:
    """What a started run became, green; then what a researcher has of it."""
    airflow = deployment.airflow
    state, states = deployment.follow(run_id)
    assert state == "success", states
    reports: dict[str, list[dict[str, Any]]] = {}
    why_none = ""
    for task in airflow.task_instances(DATASET_DAG, run_id):
        if task["state"] == "success":
            reports.setdefault(task["task_id"], []).append(
                airflow.xcom(DATASET_DAG, run_id, task["task_id"], task["map_index"])
            )
        elif task["task_id"] == "version":
            why_none = "\n".join(airflow.task_log(DATASET_DAG, run_id, task))
    if not deployment.versions():
        return Run(conf, reports, None, why_none)
    subprocess.run(["git", "clone", "-q", str(deployment.root / "origin.git"), str(clone)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "pull", "-q"], cwd=clone, check=True)
    return Run(conf, reports, clone, "")


# --- the account


def assert_counts_add_up(run: Run, files: int) -> None:
    """What the tasks' logs say: nothing appears, nothing is lost, every reason is one of the list."""
    for task in ("ingest", "recaption", "embed", "select", "caption", "judge"):
        assert set(run.dropped(task)) <= set(REASONS[task]), task
    images, pairs, captioned, triplets = (
        run.total(task, "written") for task in ("ingest", "select", "caption", "judge")
    )
    assert run.total("ingest", "read") == files == images + sum(run.dropped("ingest").values())
    assert (
        run.total("recaption", "read")
        == images
        == run.total("recaption", "written") + sum(run.dropped("recaption").values())
    )
    assert run.total("embed", "written") == 3 * images - sum(run.dropped("embed").values())
    assert 0 < pairs <= run.conf["pairs_per_batch"]
    assert run.total("caption", "read") == pairs == captioned + sum(run.dropped("caption").values())
    assert (
        run.total("judge", "read")
        == captioned
        == triplets + sum(run.dropped("judge").get(reason, 0) for reason in ENDS_A_PAIR)
    )
    if run.clone is None:
        assert triplets == 0 and "no new triplet" in run.why_none and f"new pairs {pairs}" in run.why_none, run.why_none


def assert_rows_add_up(clone: Path, folder: Path) -> None:
    """What the version holds: each file and each pair, once, as what became of it."""
    store = Store(clone)
    images = store.read_table("images").to_pylist()
    dropped = store.read_dropped().to_pylist()
    left = {stage: [row["key"] for row in dropped if row["stage"] == stage] for stage in REASONS}
    uris = [row["source_uri"].partition(":")[2] for row in images] + [key.partition(":")[2] for key in left["ingest"]]
    assert sorted(uris) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    captions = store.captions()
    assert {row["image_id"] for row in images} == set(captions) | set(left["recaption"]) and all(captions.values())
    pairs = store.read_table("pairs", ["pair_id"]).column("pair_id").to_pylist()
    ended = [
        row["key"]
        for row in dropped
        if row["stage"] == "caption" or (row["stage"] == "judge" and row["reason"] in ENDS_A_PAIR)
    ]
    assert sorted(pairs) == sorted(store.read_table("triplets", ["pair_id"]).column("pair_id").to_pylist() + ended)
    assert all(row["reason"] in REASONS[row["stage"]] for row in dropped)


def assert_the_gallery_shows_them(clone: Path, most: int = 48) -> None:
    """Every image of the page decodes and keeps its shape; every reason is explained; what the scores mean is said."""
    page, version = (clone / "reports" / "gallery.html").read_text(), json.loads((clone / "version.json").read_text())
    assert page.count('<article class="card">') == min(most, version["rows"]["triplets"])
    shapes = {
        Image.open(io.BytesIO(base64.b64decode(content))).size
        for content in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    }
    stored = Store(clone).read_table("images", ["width_px", "height_px"]).to_pylist()
    assert shapes and all(any(abs(w / h - i["width_px"] / i["height_px"]) < 0.03 for i in stored) for w, h in shapes)
    for stage, reasons in version["drops"].items():
        for reason in reasons:
            assert escape(REASONS[stage][reason]) in page, (stage, reason)
    assert "on other images their words mean nothing" in page


def let_the_tiny_judge_pass(clone: Path) -> None:
    """Deploy parameters without the checks that keep a bad judge out: this one knows drawn scenes alone, and with it
    the story would end without a version. What is tested is the way from a folder to a version, not the models.
    """
    path = clone / "params.yaml"
    path.write_text(set_values(path.read_text(), {"judge.labelled": None, "judge.negative_threshold": 1.0}))
    git(clone, "commit", "-q", "-am", "A judge that may know nothing")
    git(clone, "push", "-q", "origin", "main")


def start_by_clicks(deployment: Factory, fields: dict[str, tuple[str, str]]) -> str:
    """Start dataset_refresh from Airflow's form, or where there is no Chromium by the REST API; the run's id.

    Args:
        deployment: whose Airflow.
        fields: name of the form's field -> heading of its section, and what a person types.
    """
    airflow = deployment.airflow
    before = {run["dag_run_id"] for run in airflow.runs(DATASET_DAG)}
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        return airflow.trigger(DATASET_DAG, {name: text for name, (_, text) in fields.items()})
    typed = [(heading, name, text) for name, (heading, text) in fields.items()]
    start_from_form(chromium, airflow.url, airflow.credentials(), DATASET_DAG, typed)
    [started] = [run["dag_run_id"] for run in airflow.runs(DATASET_DAG) if run["dag_run_id"] not in before]
    return str(started)


def test_a_drawn_folder_like_photographs(deployment: Factory, tmp_path: Path):
    """From an empty folder to a published version, as `make ui DATASET=drawn SOURCE=...` and a person do it."""
    folder = tmp_path / "drawn"
    expected = draw_photographs(folder)
    lay_out_dataset(deployment.root, "drawn", folder)
    deployed = yaml.safe_load((deployment.root / "dataset" / "params.yaml").read_text())
    assert deployed["validate"]["images"]["caption_share_min"] == 0  # no image has a caption
    let_the_tiny_judge_pass(deployment.root / "dataset")
    # windows, source and floors are the dataset's own
    fields = {"pairs_per_batch": ("Mining", "40"), "judge_threshold": ("Instructions and judge", "0")}
    run_id = start_by_clicks(deployment, fields)
    run = collect(deployment, run_id, {"pairs_per_batch": 40}, tmp_path / "clone")
    assert_counts_add_up(run, files=5 * BASES + len(expected))
    assert run.clone is not None, run.why_none
    assert_rows_add_up(run.clone, folder)
    store = Store(run.clone)
    assert {row["key"].partition(":")[2]: row["reason"] for row in store.read_dropped("ingest").to_pylist()} == expected
    sizes = {row["source_uri"]: (row["width_px"], row["height_px"]) for row in store.read_table("images").to_pylist()}
    # turned upright; at most 512 px
    assert sizes["drawn:0_close.jpg"] == (320, 426) and sizes["drawn:2_whole.jpg"] == (512, 171)
    assert_the_gallery_shows_them(run.clone, most=12)  # of profile test, which this Airflow's form names
    version = json.loads((run.clone / "version.json").read_text())
    assert version["dataset"] == "drawn" and version["rows"]["triplets"] > 0


@pytest.mark.skipif(
    not PHOTOGRAPHS.is_dir(), reason=f"no photographs: {PHOTOGRAPHS} is not there; the drawn folder replaces it"
)
def test_a_folder_of_real_photographs(deployment: Factory, tmp_path: Path):
    conf = {"profile": "demo", **calibrated(PHOTOGRAPHS, limit=400), "pairs_per_batch": 256}
    run = refresh(deployment, conf, tmp_path / "clone")
    assert_counts_add_up(run, files=sum(path.is_file() for path in PHOTOGRAPHS.rglob("*")))
    assert run.total("ingest", "written") >= 1000
    if run.clone is None:
        return
    assert_rows_add_up(run.clone, PHOTOGRAPHS)
    assert_the_gallery_shows_them(run.clone)
