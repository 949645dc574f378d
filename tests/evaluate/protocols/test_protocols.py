"""Readers and protocols against the official definitions, written out below on the raw annotation files.

Each test runs on a small benchmark that is made here in the official form, and on the official files where ../shared
has them: a perfect model, a random one, and for CIRCO the benchmark's own example submission.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks.errors import ConfigError, DataError
from tasks.evaluate.contamination import fingerprint
from tasks.evaluate.protocols import PROTOCOLS, Benchmark, Prediction, Query, Task
from tasks.evaluate.protocols.base import TaskValues, fill_template, image_reader
from tasks.evaluate.protocols.genecis import crop_box
from tests.support.official_benchmarks import MADE, circo_folder, cirr_folder, dump, fashioniq_folder, genecis_folder

SHARED = Path("../shared/benchmarks")


@pytest.fixture(params=["made", pytest.param("official", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """protocol -> a folder with its files."""

    def place(protocol: str) -> Path:
        if request.param == "made":
            return MADE[protocol](tmp_path)
        if not SHARED.is_dir():
            pytest.skip(f"{SHARED} is not here; the benchmark made in its form runs the same test")
        if protocol == "circo":
            return circo_folder(tmp_path, json.loads((SHARED / "circo/val.json").read_text()))
        return SHARED / protocol

    return place


# --- the official definitions, written out on the raw files -----------------------------------------------------------


def raw(folder: Path, *names: str) -> Any:
    return json.loads(next(p for n in names if (p := folder / n).exists()).read_text())


def naive_circo(folder: Path, similarity: "Model", gallery: list[str]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    ids = np.array([int(g) for g in gallery])
    for n, a in enumerate(raw(folder, "annotations/val.json")):
        predictions = ids[np.argsort(-similarity(0, n), kind="stable")][:50]
        labels = np.isin(predictions, a["gt_img_ids"])
        precisions = np.cumsum(labels) * labels / np.arange(1, 51)[: len(labels)]
        for k in (5, 10, 25, 50):
            found.setdefault(f"map_at_{k}", []).append(np.sum(precisions[:k]) / min(len(a["gt_img_ids"]), k))
        for k in (1, 5, 10, 25, 50):
            found.setdefault(f"recall_at_{k}", []).append(a["target_img_id"] in predictions[:k])
    return {name: float(np.mean(v)) for name, v in found.items()}


def naive_cirr(folder: Path, similarity: "Model", gallery: list[str]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for n, a in enumerate(raw(folder, "captions/cap.rc2.val.json", "cap.rc2.val.json")):
        names = np.array(gallery)[np.argsort(-similarity(0, n), kind="stable")]
        names = names[names != a["reference"]]
        for k in (1, 5, 10, 50):
            found.setdefault(f"recall_at_{k}", []).append(bool((names[:k] == a["target_hard"]).any()))
        inside = names[np.isin(names, a["img_set"]["members"])]
        assert len(inside) == 5
        for k in (1, 2, 3):
            found.setdefault(f"recall_subset_at_{k}", []).append(bool((inside[:k] == a["target_hard"]).any()))
    return {name: float(np.mean(v)) for name, v in found.items()}


def naive_fashioniq(folder: Path, similarity: "Model", gallery: list[str]) -> dict[str, float]:
    by_category: dict[str, list[float]] = {}
    for t, category in enumerate(("dress", "shirt", "toptee")):
        split = np.array(raw(folder, f"image_splits/split.{category}.val.json", f"split.{category}.val.json"))
        queries = raw(folder, f"captions/cap.{category}.val.json", f"cap.{category}.val.json")
        scores = [(similarity(t, n), int(np.flatnonzero(split == a["target"])[0])) for n, a in enumerate(queries)]
        places = [int((row > row[target]).sum()) for row, target in scores]
        for k in (10, 50):
            by_category.setdefault(f"recall_at_{k}", []).append(float(np.mean([p < k for p in places])))
    return {name: sum(v) / 3 for name, v in by_category.items()}


def naive_genecis(folder: Path, similarity: "Model", gallery: list[str]) -> dict[str, float]:
    by_task: dict[str, list[float]] = {}
    t = 0
    for task in ("focus_attribute", "change_attribute", "focus_object", "change_object"):
        if not any((folder / p / f"{task}.json").exists() for p in ("genecis", ".")):
            continue
        rows = raw(folder, f"genecis/{task}.json", f"{task}.json")
        sizes = [len(r["gallery"]) for r in rows]
        rows = [r for r in rows if len(r["gallery"]) == max(set(sizes), key=sizes.count)]
        ranks = []
        for n, r in enumerate(rows):
            scores = similarity.of(t, n, [identity(c) for c in (r["target"], *r["gallery"])])
            ranks.append(sum(s >= scores[0] for s in scores[1:]))  # ties are lost
        for k in (1, 2, 3):
            by_task.setdefault(f"recall_at_{k}", []).append(float(np.mean([rank < k for rank in ranks])))
        t += 1
    return {name: float(np.mean(v)) for name, v in by_task.items()}


def identity(entry: dict[str, Any]) -> str:
    return (
        str(entry["val_image_id"])
        if "val_image_id" in entry
        else f"{entry['image_id']}:" + ",".join(map(str, entry["instance_bbox"]))
    )


NAIVE = {"circo": naive_circo, "cirr": naive_cirr, "fashioniq": naive_fashioniq, "genecis": naive_genecis}


class Model:
    """Similarities of a made-up model: random, or with every right answer above all else."""

    def __init__(self, benchmark: Benchmark, *, is_perfect: bool) -> None:
        self.tasks, self.is_perfect = benchmark.tasks, is_perfect

    def __call__(self, task: int, query: int) -> np.ndarray:
        scores = np.random.default_rng([task, query]).random(len(self.tasks[task].gallery))
        if self.is_perfect:
            scores[[self.tasks[task].positions[key] for key in self.tasks[task].queries[query].ground_truths]] += 1
        for key, n in self.tasks[task].positions.items():
            if key.endswith("#copy"):  # a candidate with the target's own image
                scores[n] = scores[self.tasks[task].positions[key.removesuffix("#copy")]]
        return scores

    def of(self, task: int, query: int, keys: list[str]) -> list[float]:
        scores = self(task, query)
        return [scores[self.tasks[task].positions[key]] for key in keys]


def protocol_scores(benchmark: Benchmark, model: Model) -> dict[str, float]:
    """What our protocol makes of the model: mean over queries, then over tasks."""
    protocol = PROTOCOLS[benchmark.protocol]
    rows = [
        [protocol.measure(q, protocol.predict(task, q, model(t, n))) for n, q in enumerate(task.queries)]
        for t, task in enumerate(benchmark.tasks)
    ]  # fmt: skip
    return {name: float(np.mean([np.mean([r[name] for r in task]) for task in rows])) for name in rows[0][0]}


@pytest.mark.parametrize("protocol", sorted(NAIVE))
@pytest.mark.parametrize("is_perfect", [True, False], ids=["perfect", "random"])
def test_scores_are_the_official_ones(protocol: str, is_perfect: bool, folder: Any):
    place = folder(protocol)
    benchmark = PROTOCOLS[protocol].read(place, "val", None, "b")
    model = Model(benchmark, is_perfect=is_perfect)
    ours, official = protocol_scores(benchmark, model), NAIVE[protocol](place, model, benchmark.tasks[0].gallery)
    assert set(ours) == set(official) and PROTOCOLS[protocol].main_metric in ours
    assert ours == pytest.approx(official, abs=1e-6)
    # one query of GeneCIS' change_object names its target's image twice: a tie that is lost
    assert ours[PROTOCOLS[protocol].main_metric] > 0.94 if is_perfect else ours[PROTOCOLS[protocol].main_metric] < 0.5


def test_the_example_submission_of_circo(folder: Any):
    place = folder("circo")
    benchmark = PROTOCOLS["circo"].read(place, "val", None, "circo")
    (task,) = benchmark.tasks
    if (SHARED / "circo").is_dir() and len(task.queries) == 220:
        submitted = json.loads((SHARED / "circo/submission_val.json").read_text())
    else:
        model = Model(benchmark, is_perfect=False)
        predicted = [(q, PROTOCOLS["circo"].predict(task, q, model(0, n))) for n, q in enumerate(task.queries)]
        assert PROTOCOLS["circo"].submission
        submitted = PROTOCOLS["circo"].submission(predicted)["circo.json"]
    truth = {str(a["id"]): a for a in raw(place, "annotations/val.json")}
    assert set(submitted) == set(truth) and all(len(set(v)) == 50 for v in submitted.values())
    ours = [PROTOCOLS["circo"].measure(q, Prediction([str(i) for i in submitted[q.query_id]])) for q in task.queries]
    for k in (5, 10, 25, 50):
        aps = []
        for query, ids in submitted.items():
            right = truth[query]["gt_img_ids"]
            precisions = [sum(i in right for i in ids[: n + 1]) / (n + 1) for n in range(k) if ids[n] in right]
            aps.append(sum(precisions) / min(len(right), k))
        assert np.mean([o[f"map_at_{k}"] for o in ours]) == pytest.approx(np.mean(aps), abs=1e-6)


def test_a_hidden_split_becomes_the_servers_files(tmp_path: Path):
    circo = PROTOCOLS["circo"].read(circo_folder(tmp_path / "circo", None), "test", None, "circo")
    cirr = PROTOCOLS["cirr"].read(cirr_folder(tmp_path / "cirr"), "test", None, "cirr")
    assert not circo.has_ground_truth and not cirr.has_ground_truth and cirr.split == "test1"
    files: dict[str, Any] = {}
    for benchmark in (circo, cirr):
        protocol, model, (task,) = PROTOCOLS[benchmark.protocol], Model(benchmark, is_perfect=False), benchmark.tasks
        assert protocol.submission
        files |= protocol.submission([(q, protocol.predict(task, q, model(0, n))) for n, q in enumerate(task.queries)])
    assert set(files["circo.json"]) == {str(n) for n in range(25)}
    assert all(len(v) == 50 and all(isinstance(i, int) for i in v) for v in files["circo.json"].values())
    assert (files["cirr_recall.json"]["version"], files["cirr_recall.json"]["metric"]) == ("rc2", "recall")
    assert files["cirr_recall_subset.json"]["metric"] == "recall_subset"
    for query in cirr.tasks[0].queries:
        assert (
            len(files["cirr_recall.json"][query.query_id]) == 50
            and query.reference not in files["cirr_recall.json"][query.query_id]
        )
        assert len(files["cirr_recall_subset.json"][query.query_id]) == 3 and set(
            files["cirr_recall_subset.json"][query.query_id]
        ) < set(query.subset)


def test_counts_of_the_official_files():
    if not SHARED.is_dir():
        pytest.skip(
            f"{SHARED} is not here; only the official files have these counts, the readers are tested on benchmarks "
            "made in their format"
        )
    cirr = PROTOCOLS["cirr"].read(SHARED / "cirr", "val", None, "cirr")
    fashioniq = PROTOCOLS["fashioniq"].read(SHARED / "fashioniq", "val", None, "fashioniq")
    genecis = PROTOCOLS["genecis"].read(SHARED / "genecis", "val", None, "genecis")
    assert [(len(t.queries), len(t.gallery)) for t in cirr.tasks] == [(4181, 2297)]
    assert [(t.name, len(t.queries), len(t.gallery)) for t in fashioniq.tasks] == [
        ("dress", 2017, 3817),
        ("shirt", 2038, 6346),
        ("toptee", 1961, 5373),
    ]
    assert [(t.name, len(t.queries), {len(q.candidates) for q in t.queries}) for t in genecis.tasks] == [
        ("focus_object", 1960, {15}),
        ("change_object", 1960, {15}),
    ]


def test_a_report_quotes_the_rule_as_a_whole_sentence():
    assert {name: p.rule[-1] for name, p in PROTOCOLS.items()} == dict.fromkeys(PROTOCOLS, ".")


# --- the rules that differ between benchmarks -------------------------------------------------------------------------


def test_the_reference_is_ranked_for_circo_and_fashioniq_and_excluded_for_cirr():
    task = Task("", [], ["ref", "target", "other"])
    query = Query("0", "ref", "x", ("target",), subset=("target", "other"))
    near = np.array([0.9, 0.8, 0.1])
    assert PROTOCOLS["circo"].predict(task, query, near).ranked[0] == "ref"
    assert PROTOCOLS["fashioniq"].predict(task, query, near).ranked[0] == "ref"
    assert PROTOCOLS["cirr"].predict(task, query, near).ranked == ["target", "other"]


@pytest.mark.parametrize("protocol", ["genecis", "mmeb"])
def test_a_model_with_equal_similarities_scores_zero(protocol: str):
    query = Query("0", "ref", "x", ("target",), candidates=("target", "a", "b", "c"))
    prediction = PROTOCOLS[protocol].predict(Task("", [query], ["target", "a", "b", "c"]), query, np.zeros(4))
    assert prediction.ranked[-1] == "target" and set(PROTOCOLS[protocol].measure(query, prediction).values()) == {0.0}


def test_templates_are_pinned_and_filled(tmp_path: Path):
    circo = PROTOCOLS["circo"].read(circo_folder(tmp_path / "a", None), "val", None, "circo")
    assert circo.templates == {"": "Find a picture that also {shared_concept}, but {relative_caption}."}
    assert circo.tasks[0].queries[0].text.startswith("Find a picture that also a ")
    fashioniq = PROTOCOLS["fashioniq"].read(fashioniq_folder(tmp_path / "b"), "val", None, "fashioniq")
    query = fashioniq.tasks[0].queries[0]
    assert query.wordings[0] == query.text and query.wordings[1].split(", and ") == query.text.split(", and ")[::-1]
    genecis = PROTOCOLS["genecis"].read(genecis_folder(tmp_path / "c"), "val", None, "genecis")
    assert set(genecis.templates) == {t.name for t in genecis.tasks} and len(genecis.tasks) == 4
    assert len(genecis.tasks[0].queries) == 19, (
        "the query with another gallery size is left out, as by the official loader"
    )
    assert fill_template("{a} {b}", {"a": "{b}", "b": "x"}) == "{b} x", "braces in a value are not replaced"
    with pytest.raises(ConfigError, match=r"this benchmark has \['relative_caption', 'shared_concept'\]"):
        PROTOCOLS["circo"].read(tmp_path / "a", "val", "{relative_caption} {other}", "circo")


def test_a_box_is_cropped_with_its_margin_and_padded():
    image = Image.new("RGB", (100, 50), "white")
    whole = crop_box(image, [20, 10, 20, 10])
    assert whole.size == (34, 34)  # left 20 - 14 = 6, right 6 + 34 = 40; top 3, bottom 20; then padded
    assert whole.getpixel((17, 0)) == (0, 0, 0) and whole.getpixel((17, 17)) == (255, 255, 255)
    assert crop_box(image, [0, 0, 100, 50]).size == (100, 100)


def test_mmeb_in_vlm2vecs_format(tmp_path: Path):
    rows = [
        {
            "qry_text": "<|image_1|>\nWhat is it?\n",
            "qry_img_path": "a/1.jpg",
            "tgt_text": ["a cat", "a dog"],
            "tgt_img_path": ["", ""],
        },
        {
            "qry_text": "Find a dog",
            "qry_img_path": "",
            "tgt_text": ["<|image_1|>", "a dog"],
            "tgt_img_path": ["a/2.jpg", ""],
        },
    ]
    (tmp_path / "B").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "B" / "test-00000-of-00001.parquet")
    (tmp_path / "A.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:1]))
    benchmark = PROTOCOLS["mmeb"].read(tmp_path, "test", None, "mmeb")
    first, second = benchmark.tasks[1].queries
    assert [t.name for t in benchmark.tasks] == ["A", "B"] and (first.text, first.reference, second.reference) == (
        "What is it?",
        "a/1.jpg",
        None,
    )
    assert (
        benchmark.item(second.candidates[0]) == ("a/2.jpg", "") and benchmark.item(second.candidates[1]).text == "a dog"
    )
    assert benchmark.image_keys() == ["a/1.jpg", "a/2.jpg"] and benchmark.has_ground_truth
    scores = np.array([0.2, 0.1, 0.3])  # cat, dog, image 2
    assert benchmark.tasks[1].gallery == [first.candidates[0], first.candidates[1], second.candidates[0]]
    assert PROTOCOLS["mmeb"].measure(first, PROTOCOLS["mmeb"].predict(benchmark.tasks[1], first, scores)) == {
        "precision_at_1": 1.0
    }
    (tmp_path / "A.jsonl").write_text(json.dumps({**rows[0], "tgt_text": []}))
    with pytest.raises(DataError, match="at least one"):
        PROTOCOLS["mmeb"].read(tmp_path, "test", None, "mmeb")


def test_mmebs_empty_text_stands_for_all_candidates_and_other_columns_are_refused(tmp_path: Path):
    row = {"qry_text": "<|vision_start|><|image_pad|><|vision_end|> <|image_2|>Find it", "qry_img_path": "1.jpg"}
    row |= {"tgt_text": "", "tgt_img_path": ["2.jpg", "3.jpg"]}
    (tmp_path / "A.jsonl").write_text(json.dumps(row))
    benchmark = PROTOCOLS["mmeb"].read(tmp_path, "test", None, "mmeb")
    assert benchmark.tasks[0].queries[0].text == "Find it"
    assert {benchmark.item(key) for key in benchmark.tasks[0].gallery} == {("2.jpg", ""), ("3.jpg", "")}
    (tmp_path / "A.jsonl").write_text(json.dumps(row | {"qry_video_path": "a.mp4"}))
    with pytest.raises(DataError, match=r"columns \['qry_video_path'\] are not read"):
        PROTOCOLS["mmeb"].read(tmp_path, "test", None, "mmeb")


def inconsistent_files() -> Iterator[tuple[str, str, Any, str]]:
    yield (
        "circo",
        "annotations/val.json",
        [{"reference_img_id": 1, "target_img_id": 2, "gt_img_ids": [2], "relative_caption": "x", "id": 0}],
        "names images",
    )
    yield (
        "cirr",
        "captions/cap.rc2.val.json",
        [{"pairid": 1, "reference": "no", "caption": "", "img_set": {"members": []}}],
        "does not list",
    )
    yield (
        "fashioniq",
        "captions/cap.dress.val.json",
        [{"target": "no", "candidate": "no", "captions": ["a", "b"]}],
        "does not list",
    )


@pytest.mark.parametrize(("protocol", "file", "content", "message"), list(inconsistent_files()))
def test_inconsistent_files_are_named(protocol: str, file: str, content: Any, message: str, tmp_path: Path):
    place = MADE[protocol](tmp_path)
    dump(place / file, content)
    with pytest.raises(DataError, match=message):
        PROTOCOLS[protocol].read(place, "val", None, "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"path|none of"):
        PROTOCOLS[protocol].read(tmp_path / "empty", "val", None, "b")


MMEB_ROW = {"qry_text": "Find it", "qry_img_path": "1.jpg", "tgt_text": ["a", "b"], "tgt_img_path": ["", ""]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"qry_text": "cut', "line 3: not JSON"),
        ("[1]", "line 3: expected an object .* found list"),
        (json.dumps(MMEB_ROW | {"qry_text": 5}), "line 3: qry_text has 5; expected text"),
        (json.dumps(MMEB_ROW | {"tgt_text": ["a", {}]}), r"line 3: tgt_text has \{\}; expected text"),
        (json.dumps(MMEB_ROW | {"qry_inst": ["a"]}), r"line 3: qry_inst has \['a'\]; expected text"),
        (json.dumps(MMEB_ROW | {"tgt_text": "a"}), "line 3: tgt_text and tgt_img_path are no lists"),
    ],
)
def test_a_row_of_mmeb_in_another_form_is_named_by_file_and_line(line: str, said: str, tmp_path: Path):
    (tmp_path / "A.jsonl").write_text(json.dumps(MMEB_ROW) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=rf"A\.jsonl: {said}"):
        PROTOCOLS["mmeb"].read(tmp_path, "test", None, "mmeb")


def test_a_row_of_mmebs_parquet_is_named_by_file_and_row(tmp_path: Path):
    (tmp_path / "B").mkdir()
    pq.write_table(pa.Table.from_pylist([MMEB_ROW] * 2), tmp_path / "B" / "test-0.parquet")
    pq.write_table(pa.Table.from_pylist([MMEB_ROW, MMEB_ROW | {"tgt_text": ["a"]}]), tmp_path / "B" / "test-1.parquet")
    benchmark = PROTOCOLS["mmeb"].read(tmp_path, "test", None, "mmeb")
    assert benchmark.dropped.count == 1 and "test-1.parquet: row 1 has 1 texts" in benchmark.dropped.first[0]


RECORDS = {
    "circo": ("annotations/val.json", "gt_img_ids", 7),
    "cirr": ("captions/cap.rc2.val.json", "img_set", [1]),
    "fashioniq": ("captions/cap.shirt.val.json", "captions", 3),
    "genecis": ("genecis/change_object.json", "gallery", [{"val_image_id": 3}, 5]),
}


@pytest.mark.parametrize("protocol", sorted(RECORDS))
def test_a_record_with_a_field_of_another_type_is_named(protocol: str, tmp_path: Path):
    place, (file, key, value) = MADE[protocol](tmp_path), RECORDS[protocol]
    rows = json.loads((place / file).read_text())
    dump(
        place / file, [*rows[:2], rows[2] | {key: value * (len(rows[2][key]) // 2) if protocol == "genecis" else value}]
    )
    with pytest.raises(DataError, match=r"record 2 has a field of another form \(\w+Error: "):
        PROTOCOLS[protocol].read(place, "val", None, "b")


def test_mmeb_v2s_instructions_stand_before_their_texts(tmp_path: Path):
    """MMEB-V2's image part: qry_inst and tgt_inst in columns of their own; a text may hold a line separator."""
    row = {
        "qry_inst": "<|image_1|> Represent the given image with the question:",
        "qry_text": "What\u2028is it?",
        "qry_img_path": "1.jpg",
        "tgt_inst": "Represent the answer:",
        "tgt_text": ["a cat", "a dog"],
        "tgt_img_path": ["", ""],
    }
    (tmp_path / "A-OKVQA.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "MSCOCO.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    benchmark = PROTOCOLS["mmeb"].read(tmp_path, "test", None, "mmeb")
    query = benchmark.tasks[0].queries[0]
    assert query.text == "Represent the given image with the question: What\u2028is it?"
    assert benchmark.item(query.candidates[1]).text == "Represent the answer: a dog"
    values = [TaskValues("A-OKVQA", [], np.array([[1.0], [0.0]])), TaskValues("GQA", [], np.array([[1.0]]))]
    values.append(TaskValues("MSCOCO", [], np.array([[0.0]])))
    assert PROTOCOLS["mmeb"].summary
    assert PROTOCOLS["mmeb"].summary(["precision_at_1"], values) == {
        "VQA.precision_at_1": 0.75,
        "GRD.precision_at_1": 0.0,
        "IND.precision_at_1": 0.25,
        "OOD.precision_at_1": 1.0,
    }
    (tmp_path / "MSCOCO.jsonl").write_text(json.dumps({k: v for k, v in row.items() if k != "tgt_img_path"}))
    with pytest.raises(DataError, match=r"line 1 has no \['tgt_img_path'\]; expected \['qry_text'"):
        PROTOCOLS["mmeb"].read(tmp_path, "test", None, "mmeb")


def test_the_servers_ranking_score_of_cirr(tmp_path: Path):
    benchmark = PROTOCOLS["cirr"].read(cirr_folder(tmp_path), "val", None, "cirr")
    values = [TaskValues("", benchmark.tasks[0].queries, np.array([[0, 1, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1]]))]
    assert PROTOCOLS["cirr"].summary
    assert PROTOCOLS["cirr"].summary(PROTOCOLS["cirr"].metrics(), values) == {"recall_5_subset_1_mean": 0.5}


def test_images_with_a_palette_or_transparency_reach_the_model_as_they_are(tmp_path: Path):
    """The released code resizes first and converts to RGB after: a palette is resized otherwise than colours are."""
    noise = Image.effect_noise((40, 30), 90)
    kinds = {"P": noise.convert("RGB").quantize(16), "RGBA": noise.convert("RGBA"), "L": noise}
    for mode, image in kinds.items():
        image.save(tmp_path / f"{mode}.png")
    read = image_reader({mode: tmp_path / f"{mode}.png" for mode in kinds})
    assert [read(mode).mode for mode in kinds] == ["P", "RGBA", "RGB"]
    assert fingerprint(read("P")) == fingerprint(read("P").convert("RGB"))
