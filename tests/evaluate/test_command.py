"""`python -m tasks evaluate --model ... --benchmark ...`: no run, everything checked before the first batch."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tasks.evaluate.command
from tasks.__main__ import main
from tasks.evaluate.benchmarks import read_named
from tasks.models.retrievers.clip import ClipRetriever
from tasks.models.retrievers.load import retriever_type
from tests.support.official_benchmarks import cirr_folder, dump, fashioniq_folder, genecis_folder

CLIP = "tasks/sample/checkpoints/clip"


class MeanColour:
    """A retriever of mean colours; counts what it encodes."""

    revision, device, is_joint = "colour", "cpu", False
    content_encoder = ClipRetriever.content_encoder
    encoded = 0

    def __init__(self, model: str, **_: Any) -> None:
        self.name = model

    def raw_image_features(self, images: Sequence[Image.Image]) -> np.ndarray:
        MeanColour.encoded += len(images)
        return np.array([np.asarray(i, np.float32).mean((0, 1)) for i in images])

    def raw_text_features(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(t), 1.0, t.count("e")] for t in texts], np.float32)


@pytest.fixture(autouse=True)
def fast_models(monkeypatch: pytest.MonkeyPatch) -> None:
    MeanColour.encoded = 0
    monkeypatch.setattr(tasks.evaluate.command, "load_retriever", MeanColour)
    monkeypatch.setattr(tasks.evaluate.command, "retriever_type", lambda model, revision: "clip")


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def circo(tmp_path: Path) -> Path:
    """The official layout, 60 images, 12 queries of val with semantic aspects, the same hidden in test."""
    folder, rng = tmp_path / "CIRCO", random.Random(3)
    images = folder / "COCO2017_unlabeled" / "unlabeled2017"
    for n in range(1, 61):
        draw(images / f"{n:012d}.jpg", n)
    dump(
        folder / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json",
        {"images": [{"id": n} for n in range(1, 61)]},
    )
    val: list[dict[str, Any]] = []
    for n in range(12):
        reference, *right = rng.sample(range(1, 61), 4)
        row = {"id": n, "reference_img_id": reference, "target_img_id": right[0], "gt_img_ids": right}
        aspects = ["negation"] if n % 3 else ["negation", "viewpoint"]
        val.append({**row, "relative_caption": f"is {n}", "shared_concept": "a dot", "semantic_aspects": aspects})
    dump(folder / "annotations/val.json", val)
    hidden = [{k: v for k, v in a.items() if k not in ("target_img_id", "gt_img_ids")} for a in val]
    dump(folder / "annotations/test.json", hidden)
    return folder


def evaluate(*words: str | Path) -> int:
    return main(["evaluate", *map(str, words)])


def test_two_models_on_a_benchmark_and_a_hidden_split_without_any_run(
    circo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    both = ("--benchmark", f"circo={circo}", "--benchmark", f"circo:test={circo}")
    assert evaluate("--model", "one/base", "--model", "two/tuned", *both, "--out", out) == 0
    found = json.loads((out / "evaluation.json").read_text())
    section = found["benchmarks"]["circo"]
    assert set(found["models"]) == {"base", "tuned"} and set(section["metrics"]) == {"base", "tuned"}
    scores = section["metrics"]["base"]["composed"]
    assert {"map_at_5", "recall_at_1", "negation.map_at_10", "viewpoint.map_at_10"} <= set(scores)
    assert scores["negation.map_at_10"] == pytest.approx(scores["map_at_10"]), "every query has a negation"
    page = (out / "results.md").read_text()
    assert page in capsys.readouterr().out and "BGE-VL-MLLM-S1" in page and "arXiv:2412.14475" in page
    submitted = json.loads((out / "submissions/circo-test/tuned/circo.json").read_text())
    assert set(submitted) == {str(n) for n in range(12)} and all(len(set(v)) == 50 for v in submitted.values())


def test_a_submission_is_scored_as_the_model_that_made_it(circo: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert evaluate("--model", "m", "--benchmark", f"circo:test={circo}", "--out", out) == 0
    file = out / "submissions/circo-test/m/circo.json"
    assert evaluate("--model", "m", "--benchmark", f"circo={circo}", "--out", out) == 0
    expected = json.loads((out / "evaluation.json").read_text())["benchmarks"]["circo"]["metrics"]["m"]["composed"]
    assert evaluate("--predictions", file, "--benchmark", f"circo={circo}", "--out", tmp_path / "again") == 0
    found = json.loads((tmp_path / "again/evaluation.json").read_text())["benchmarks"]["circo"]["metrics"]
    assert found == {"predictions": {"composed": expected}}


def test_a_submission_is_scored_from_the_answers_alone(circo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Neither images nor COCO's list are there: the ranking may name any image, each once, 50 a query."""
    rows = json.loads((circo / "annotations/val.json").read_text())
    ranked = {str(a["id"]): [*a["gt_img_ids"], *range(1000, 1050)][:50] for a in rows}
    shutil.rmtree(circo / "COCO2017_unlabeled")
    file, asked = tmp_path / "file.json", ("--benchmark", f"circo={circo}", "--out", tmp_path / "out")
    dump(file, ranked)
    assert evaluate(*asked, "--predictions", file) == 0
    section = json.loads((tmp_path / "out/evaluation.json").read_text())["benchmarks"]["circo"]
    assert section["metrics"]["predictions"]["composed"]["map_at_5"] == 1
    for damaged, said in ((ranked["3"][:49], "49 images are ranked; expected 50"), ([1, 1], "predicted twice")):
        dump(file, ranked | {"3": damaged})
        assert evaluate(*asked, "--predictions", file) == 65
        assert f"{file}: query 3: " in (error := capsys.readouterr().err) and said in error
    assert evaluate(*asked, "--model", "m") == 78
    assert "none of COCO2017_unlabeled/unlabeled2017, unlabeled2017, images is there" in capsys.readouterr().err


def test_a_file_of_cirr_is_scored_by_the_metrics_that_it_allows(tmp_path: Path):
    folder = cirr_folder(tmp_path / "cirr")
    captions = json.loads((folder / "captions/cap.rc2.val.json").read_text())
    names = [*json.loads((folder / "image_splits/split.rc2.val.json").read_text())]
    recall = {str(a["pairid"]): [a["target_hard"], *(n for n in names if n != a["target_hard"])][:50] for a in captions}
    dump(tmp_path / "recall.json", {"version": "rc2", "metric": "recall", **recall})
    subset = {
        str(a["pairid"]): [i for i in a["img_set"]["members"] if i not in (a["target_hard"], a["reference"])][:3]
        for a in captions
    }
    dump(tmp_path / "subset.json", {"version": "rc2", "metric": "recall_subset", **subset})
    asked = ("--benchmark", f"cirr={folder}", "--out", tmp_path / "out", "--predictions")
    assert evaluate(*asked, tmp_path / "recall.json") == 0

    def scores() -> dict[str, float]:
        found = json.loads((tmp_path / "out/evaluation.json").read_text())
        return found["benchmarks"]["cirr"]["metrics"]["predictions"]["composed"]

    assert scores() == dict.fromkeys(("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50"), 1.0)
    assert evaluate(*asked, tmp_path / "recall.json", tmp_path / "subset.json") == 0
    assert (scores()["recall_subset_at_1"], scores()["recall_at_1"]) == (0.0, 1.0)


def drop_field(name: str) -> Callable[[Path], None]:
    def damage(circo: Path) -> None:
        path = circo / "annotations/val.json"
        dump(path, [{k: v for k, v in a.items() if k != name} for a in json.loads(path.read_text())])

    return damage


def keep_one_answer(circo: Path) -> None:
    path = circo / "annotations/val.json"
    rows = json.loads(path.read_text())
    for row in rows[1:]:
        del row["target_img_id"], row["gt_img_ids"]
    dump(path, rows)


def cut_most(circo: Path) -> None:
    for path in sorted((circo / "COCO2017_unlabeled/unlabeled2017").iterdir())[:10]:
        path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("words", "damage", "code", "said"),
    [
        (["--benchmark", "circo={}"], None, 78, "--model is missing"),
        (["--model", "m"], None, 78, "--benchmark is missing"),
        (["--model", "m", "--benchmark", "circo"], None, 78, "expected PROTOCOL=FOLDER"),
        (["--model", "m", "--benchmark", "cirko={}"], None, 78, "did you mean 'circo'"),
        (["--model", "m", "--benchmark", "circus={}"], None, 78, "--subset BENCHMARK=FILE"),
        (["--model", "m", "--benchmark", "circo={}/none"], None, 78, "no such folder"),
        (["--model", "m", "--benchmark", "circo:train={}"], None, 78, "none of annotations/train.json"),
        (["--model", "m", "--benchmark", "circo={}", "--metric", "recall_at_2"], None, 78, "has ['map_at_5'"),
        (["--model", "m", "--benchmark", "circo={}", "--template", "{{nothing}}"], None, 78, "relative_caption"),
        (["--model", "m", "--model", "m", "--benchmark", "circo={}"], None, 78, "named twice"),
        (["--model", "m", "--benchmark", "circo={}", "--predictions", "x"], None, 78, "--predictions goes with one"),
        (["--model", "m", "--benchmark", "circo={}"], drop_field("relative_caption"), 65, "record 0 has no"),
        (["--model", "m", "--benchmark", "circo={}"], drop_field("gt_img_ids"), 65, "only one of target_img_id"),
        (["--model", "m", "--benchmark", "circo={}"], keep_one_answer, 65, "1 of 12 queries have answers"),
        (["--model", "m", "--benchmark", "circo={}"], cut_most, 65, "queries cannot be used"),
    ],
)
def test_what_can_be_known_is_refused_before_the_first_batch(
    words: list[str],
    damage: Callable[[Path], None] | None,
    code: int,
    said: str,
    circo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    if damage:
        damage(circo)
    assert evaluate(*(w.format(circo) for w in words), "--out", tmp_path / "out") == code
    assert said in capsys.readouterr().err
    assert MeanColour.encoded == 0 and not (tmp_path / "out").exists()


def test_a_file_for_a_server_is_never_made_without_some_of_its_queries(
    circo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    reference = json.loads((circo / "annotations/test.json").read_text())[3]["reference_img_id"]
    (circo / f"COCO2017_unlabeled/unlabeled2017/{reference:012d}.jpg").write_bytes(b"<html>")
    assert evaluate("--model", "m", "--benchmark", f"circo:test={circo}", "--out", tmp_path / "out") == 65
    said = capsys.readouterr().err
    assert "its server refuses a file without every query" in said and f"{reference:012d}.jpg" in said
    assert MeanColour.encoded == 0 and not (tmp_path / "out").exists()


def test_the_page_has_every_official_number_and_says_what_is_not_there(tmp_path: Path):
    folder, out = cirr_folder(tmp_path / "cirr"), tmp_path / "out"
    for name in json.loads((folder / "image_splits/split.rc2.val.json").read_text()).values():
        draw(folder / name, 3)
    assert evaluate("--model", "a/one", "--model", "b/two", "--benchmark", f"cirr={folder}", "--out", out) == 0
    section = json.loads((out / "evaluation.json").read_text())["benchmarks"]["cirr"]
    page = (out / "results.md").read_text()
    assert "Not the whole split: 30 of 4,181 queries, 72 of 2,297 gallery entries." in page
    scores = [section["metrics"][model]["composed"]["recall_5_subset_1_mean"] for model in ("one", "two")]
    assert f"| recall_5_subset_1_mean | {100 * scores[0]:.1f} | {100 * scores[1]:.1f} |" in page
    assert all(f"{metric} |" in page for metric in section["metrics"]["one"]["composed"])


@pytest.mark.parametrize("how", ["cut", "text", "header", "middle"])
def test_a_broken_image_is_counted_and_named(how: str, circo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    answers = {i for a in json.loads((circo / "annotations/val.json").read_text()) for i in a["gt_img_ids"]}
    references = {a["reference_img_id"] for a in json.loads((circo / "annotations/val.json").read_text())}
    broken = min(set(range(1, 61)) - answers - references)
    path = circo / f"COCO2017_unlabeled/unlabeled2017/{broken:012d}.jpg"
    content = path.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "text": b"<html>not found</html>",
        "header": content[:3],
        "middle": content[:200] + b"\xff\xd9",  # a whole end, and nothing to decode before it
    }
    path.write_bytes(damaged[how])
    assert evaluate("--model", "m", "--benchmark", f"circo={circo}", "--out", tmp_path / "out") == 0
    section = json.loads((tmp_path / "out/evaluation.json").read_text())["benchmarks"]["circo"]
    assert section["gallery"] == 59 and section["queries"] == 12
    assert "0 queries and 1 gallery images are left out" in section["left_out"]


def test_check_alone_loads_no_model(circo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(circo / "COCO2017_unlabeled/annotations")
    assert evaluate("--check", "--benchmark", f"circo={circo}", "--out", tmp_path / "out") == 0
    assert "circo (val): 12 queries, 60 in the gallery" in capsys.readouterr().out
    assert MeanColour.encoded == 0 and not (tmp_path / "out").exists()


def test_the_official_folders_of_genecis(tmp_path: Path):
    """config.py: Visual Genome's images all in VG_100K_all, COCO's in val2017 below the root of COCO."""
    folder = genecis_folder(tmp_path / "g")
    for task in ("focus_object", "focus_attribute"):
        for row in json.loads((folder / f"genecis/{task}.json").read_text()):
            for entry in (row["reference"], row["target"], *row["gallery"]):
                if "val_image_id" in entry:
                    draw(folder / f"COCO/022719/val2017/{entry['val_image_id']:012d}.jpg", 1)
                else:
                    draw(folder / f"VisualGenome1.2/061517/VG_100K_all/{entry['image_id']}.jpg", 2)
    for task in ("change_object", "change_attribute"):
        (folder / f"genecis/{task}.json").unlink()
    assert evaluate("--model", "m", "--benchmark", f"genecis={folder}", "--out", tmp_path / "out") == 0
    section = json.loads((tmp_path / "out/evaluation.json").read_text())["benchmarks"]["genecis"]
    assert section["queries"] == 39 and "left_out" not in section


def test_the_test_split_of_fashioniq_becomes_the_challenges_files(tmp_path: Path):
    folder, out = fashioniq_folder(tmp_path / "f"), tmp_path / "out"
    for category in ("dress", "shirt", "toptee"):
        rows = json.loads((folder / f"captions/cap.{category}.val.json").read_text())
        gallery = json.loads((folder / f"image_splits/split.{category}.val.json").read_text())
        dump(
            folder / f"captions/cap.{category}.test.json", [{k: r[k] for k in ("candidate", "captions")} for r in rows]
        )
        dump(folder / f"image_splits/split.{category}.test.json", gallery)
        for n, name in enumerate(gallery):
            draw(folder / "images" / f"{name}.png", n)
    for split in ("test", "val"):
        assert evaluate("--model", "m", "--benchmark", f"fashioniq:{split}={folder}", "--out", out) == 0
    files = sorted((out / "submissions/fashioniq-test/m").iterdir())
    assert [f.name for f in files] == [f"{c}.test.pred.json" for c in ("dress", "shirt", "toptee")]
    first = json.loads(files[0].read_text())[0]
    assert set(first) == {"candidate", "captions", "ranking"} and len(set(first["ranking"])) == 50
    expected = json.loads((out / "evaluation.json").read_text())["benchmarks"]["fashioniq-val"]["metrics"]["m"]
    both = [expected["composed"][f"recall_at_{k}"] for k in (10, 50)]
    assert expected["composed"]["recall_at_10_50_mean"] == pytest.approx(sum(both) / 2)
    asked = ("--benchmark", f"fashioniq={folder}", "--out", tmp_path / "again", "--predictions", *files)
    assert evaluate(*asked) == 0
    found = json.loads((tmp_path / "again/evaluation.json").read_text())["benchmarks"]["fashioniq"]["metrics"]
    assert found["predictions"]["composed"]["recall_at_10"] == expected["composed"]["recall_at_10"]


def test_circus_subsets_of_circo_and_fashioniq_in_their_published_forms(circo: Path, tmp_path: Path):
    """The CSV that croissant/exports has, with its further columns; the JSONL of M-BEIR's form; a list of indices."""
    val = json.loads((circo / "annotations/val.json").read_text())
    head = "dataset,query_idx,query_text,full_text,query_image_ref,target_image_ref\n"
    rows = [
        f'circo,{a["id"]},{a["relative_caption"].upper()}.\u2028,"Retrieve it.\n{a["relative_caption"]}",'
        f"CIRCO/COCO2017_unlabeled/unlabeled2017/{a['reference_img_id']:012d}.jpg,x.jpg\n"
        for a in val[:5]
    ]
    (tmp_path / "circo_validated.csv").write_text(head + "".join(rows))
    dump(tmp_path / "indices.json", {"dataset": "circo", "query_indices": [0, 1, 2, 3, 4]})
    found = []
    for file in ("circo_validated.csv", "indices.json"):
        words = ("--model", "m", "--benchmark", f"circo={circo}", "--out", tmp_path / "out")
        assert evaluate(*words, "--subset", f"circo={tmp_path / file}") == 0
        found.append(json.loads((tmp_path / "out/evaluation.json").read_text())["benchmarks"]["circo"])
        assert "names." in (tmp_path / "out/results.md").read_text()
    assert [s["queries"] for s in found] == [5, 5] and found[0]["metrics"] == found[1]["metrics"]
    assert found[0]["gallery"] == 60, "the gallery stays whole"
    fashioniq = fashioniq_folder(tmp_path / "f")
    lines = [
        {"query_txt": f"{a['captions'][1]} and {a['captions'][0]}.", "query_img_path": f"mbeir/{a['candidate']}.jpg"}
        for a in json.loads((fashioniq / "captions/cap.shirt.val.json").read_text())[:4]
    ]
    (tmp_path / "fiq.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tasks.evaluate.command.parse_benchmark(
        f"fashioniq={fashioniq}", None, {"fashioniq": str(tmp_path / "fiq.jsonl")}
    )
    read = read_named(config)
    assert [task.name for task in read.tasks] == ["shirt"] and len(read.tasks[0].queries) >= 4


def test_a_subset_of_another_benchmark_is_refused(circo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dump(tmp_path / "ids.json", ["0", "77", "78"])
    words = ("--model", "m", "--benchmark", f"circo={circo}", "--out", tmp_path / "out", "--subset")
    assert evaluate(*words, f"circo={tmp_path / 'ids.json'}") == 65
    assert "2 of 3 rows are no query of circo (val), such as ['77', '78']" in capsys.readouterr().err
    assert evaluate(*words, f"cirr={tmp_path / 'ids.json'}") == 78
    assert evaluate(*words, f"circo={tmp_path / 'none.csv'}") == 78


@pytest.mark.parametrize(
    ("typed", "protocol"),
    [
        ("CIRCO", "circo"),
        ("i-CIR", "icir"),
        ("Fashion-IQ:test", "fashioniq"),
        ("mmeb-v2", "mmeb"),
        ("fiq", "fashioniq"),
    ],
)
def test_a_protocol_is_known_by_the_names_that_people_write(typed: str, protocol: str):
    config = tasks.evaluate.command.parse_benchmark(f"{typed}=x", None, {})
    assert (config.protocol, config.name) == (protocol, typed.replace(":", "-"))


def test_the_task_instruction_of_the_command_is_stored_with_the_scores(circo: Path, tmp_path: Path):
    asked = ("--model", "m", "--benchmark", f"circo={circo}", "--instruction", "Find the changed scene.")
    assert evaluate(*asked, "--out", tmp_path / "out") == 0
    section = json.loads((tmp_path / "out/evaluation.json").read_text())["benchmarks"]["circo"]
    assert section["instruction"] == "Find the changed scene."
    assert "Task instruction: `Find the changed scene.`" in (tmp_path / "out/results.md").read_text()


def test_a_model_that_is_no_retriever_is_refused_before_the_first_one_is_encoded(
    circo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tasks.evaluate.command, "retriever_type", retriever_type)
    dump(tmp_path / "bert/config.json", {"model_type": "bert"})
    (tmp_path / "bert/model.safetensors").touch()
    models = ("--model", CLIP, "--model", tmp_path / "bert")
    assert evaluate(*models, "--benchmark", f"circo={circo}", "--out", tmp_path / "out") == 78
    assert "a bert is no supported retriever; expected a CLIP or SigLIP" in capsys.readouterr().err
    assert MeanColour.encoded == 0 and not (tmp_path / "out").exists()
