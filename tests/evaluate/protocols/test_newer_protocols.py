"""PinPoint, i-CIR and Domain-Transfer ImageNet: made in their official layouts, scored by the official definitions,
which are written out below on the raw files.
"""

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import ConfigError, DataError
from tasks.evaluate.benchmarks import checked
from tasks.evaluate.protocols import PROTOCOLS, Benchmark
from tasks.evaluate.protocols.icir import average_precision
from tasks.evaluate.retrieval import with_more_references
from tasks.evaluate.scores import mean_metrics, query_metrics


def similarity(query: str, key: str) -> float:
    """Of a made-up model: random, the same for the same names."""
    return random.Random(f"{query}/{key}").random()


def scores(benchmark: Benchmark) -> dict[str, float]:
    """What our protocol makes of the made-up model."""
    protocol, predictions = PROTOCOLS[benchmark.protocol], []
    for task in benchmark.tasks:
        rows = [(q, np.array([similarity(q.query_id, key) for key in task.gallery])) for q in task.queries]
        predictions.append([(q, protocol.predict(task, q, row)) for q, row in rows])
    return mean_metrics(benchmark, query_metrics(benchmark, predictions), predictions)


# --- i-CIR ------------------------------------------------------------------------------------------------------------


def icir_folder(folder: Path) -> Path:
    """Three instances, two texts each, databases of 20 with 3 right images a text."""
    database, queries = [], []
    for instance in ("temple", "mug", "car"):
        for n in range(20):
            text = ("at night", "as a toy")[n // 3] if n < 6 else "hard negative"
            database.append((f"icir/database/{instance}/{n}.jpg", text, instance))
        queries += [(f"icir/query/{instance}/{n}.jpg", ("at night", "as a toy")[n % 2], instance) for n in range(4)]
    folder.mkdir(parents=True)
    for name, rows in (("database", database), ("query", queries)):
        with (folder / f"{name}_files.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def test_icir_by_the_official_definition(tmp_path: Path):
    benchmark = PROTOCOLS["icir"].read(icir_folder(tmp_path / "icir"), "all", None, "icir")
    rows = {
        name: [line.strip().split(",") for line in (tmp_path / f"icir/{name}_files.csv").read_text().splitlines()]
        for name in ("database", "query")
    }
    by_instance: dict[str, list[float]] = {}
    for n, (_, text, instance) in enumerate(rows["query"]):
        database = [r for r in rows["database"] if r[2] == instance]
        order = sorted(database, key=lambda r: -similarity(str(n), f"{r[2]}/{r[0]}"))
        places = [place for place, r in enumerate(order) if r[1] == text]
        ap = 0.0
        for j, place in enumerate(places):
            before = 1.0 if place == 0 else j / place
            ap += (before + (j + 1) / (place + 1)) / 2 / (len(places) + 1e-5)
        by_instance.setdefault(instance, []).append(ap)
    found = scores(benchmark)
    assert found["map"] == pytest.approx(np.mean(sum(by_instance.values(), [])))
    assert found["instance_mean_map"] == pytest.approx(np.mean([np.mean(v) for v in by_instance.values()]))
    assert found["instance_min_map"] == pytest.approx(np.mean([min(v) for v in by_instance.values()]))
    assert average_precision([0, 1, 2]) == pytest.approx(1, abs=1e-5)
    assert set(benchmark.image_keys()) == {r[0] for part in rows.values() for r in part}
    (tmp_path / "icir/query").mkdir()
    (tmp_path / "icir/query/temple").mkdir()
    (tmp_path / "icir/query/temple/0.jpg").touch()
    read = PROTOCOLS["icir"].read(tmp_path / "icir", "all", None, "icir")
    assert read.files["icir/query/temple/0.jpg"].is_file(), "the paths begin with the folder's own name"


def test_icir_in_other_forms_is_refused(tmp_path: Path):
    folder = icir_folder(tmp_path / "icir")
    (folder / "query_files.csv").write_text("icir/query/temple/0.jpg,at dawn,temple\n")
    with pytest.raises(DataError, match="no image of the database is right"):
        PROTOCOLS["icir"].read(folder, "all", None, "icir")
    (folder / "query_files.csv").write_text("icir/query/temple/0.jpg\n")
    with pytest.raises(DataError, match="line 1 has 1 fields"):
        PROTOCOLS["icir"].read(folder, "all", None, "icir")
    (tmp_path / "shards/webdataset").mkdir(parents=True)
    with pytest.raises(ConfigError, match="WebDataset form"):
        PROTOCOLS["icir"].read(tmp_path / "shards", "all", None, "icir")


# --- PinPoint ---------------------------------------------------------------------------------------------------------


def pinpoint_folder(folder: Path) -> Path:
    """Five pairs of reference images, six wordings each, over an index of 120."""
    rng = random.Random(8)
    index = [f"{n:032x}" for n in range(1, 121)]
    rows = []
    for n in range(30):
        group = n // 6
        right = random.Random(group).sample(index, 5)
        wrong = [key for key in rng.sample(index, 25) if key not in right]
        second = f"{900 + group:032x}" if group % 2 else "None"  # as the published table has it
        rows.append(
            {
                "query_id": f"query_{n + 1:05d}",
                "query_image_signature": f"{800 + group:032x}",
                "query_image_signature2": second,
                "instruction": f"wording {n % 6}",
                "positive_candidates": right,
                "negative_candidates": wrong if n % 5 else [],
            }
        )
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "pinpoint_licensed.parquet")
    (folder / "index_signatures.txt").write_text("\n".join(index) + "\n")
    return folder


def official_pinpoint(folder: Path) -> dict[str, float]:
    rows = pq.read_table(folder / "pinpoint_licensed.parquet").to_pylist()
    index = (folder / "index_signatures.txt").read_text().split()
    out: dict[str, list[float]] = {}
    groups: dict[Any, list[float]] = {}
    two = []

    def ap(ranked: list[str], right: list[str], k: int) -> float:
        hits, total = 0, 0.0
        for place, key in enumerate(ranked[:k]):
            if key in right:
                hits += 1
                total += hits / (place + 1)
        return total / min(len(right), k)

    for row in rows:
        number = row["query_id"].removeprefix("query_")
        ranked = sorted(index, key=lambda key: -similarity(number, key))
        right, wrong = row["positive_candidates"], row["negative_candidates"]
        for k in (1, 5, 10, 50):
            out.setdefault(f"map_at_{k}", []).append(ap(ranked, right, k))
            left = [key for key in ranked if key not in wrong]
            out.setdefault(f"map_no_neg_at_{k}", []).append(ap(left, right, k))
            hits = len(set(ranked[:k]) & set(right))
            out.setdefault(f"precision_at_{k}", []).append(hits / k)
            out.setdefault(f"recall_at_{k}", []).append(hits / len(right))
            taken = len(set(ranked[:k]) & set(wrong)) / min(len(wrong), k) if wrong else 0.0
            out.setdefault(f"neg_recall_at_{k}", []).append(taken)
        images = (row["query_image_signature"], row["query_image_signature2"])
        groups.setdefault(images, []).append(out["precision_at_10"][-1])
        if images[1] != "None":
            two.append(out["map_at_10"][-1])
    means = {name: float(np.mean(values)) for name, values in out.items()}
    means["wording_range"] = float(np.mean([max(v) - min(v) for v in groups.values()]))
    means["wording_deviation"] = float(np.mean([np.std(v) for v in groups.values()]))
    return means | {"two_images.map_at_10": float(np.mean(two))}


def test_pinpoint_by_the_official_definition(tmp_path: Path):
    folder = pinpoint_folder(tmp_path / "pinpoint")
    benchmark = PROTOCOLS["pinpoint"].read(folder, "all", None, "pinpoint")
    assert scores(benchmark) == pytest.approx(official_pinpoint(folder))
    assert sum(bool(q.more_references) for q in benchmark.tasks[0].queries) == 12
    assert len(benchmark.image_keys()) == 120 + 5 + 2
    key = benchmark.tasks[0].gallery[0]
    assert str(benchmark.files[key]).endswith(f"images/00/00/00/{key}.jpg"), "as the images' addresses are built"
    (folder / "images").mkdir()
    (folder / f"images/{key}.png").touch()
    assert PROTOCOLS["pinpoint"].read(folder, "all", None, "p").files[key].name == f"{key}.png"


def test_pinpoints_result_file_is_the_one_that_its_script_reads(tmp_path: Path):
    benchmark = PROTOCOLS["pinpoint"].read(pinpoint_folder(tmp_path / "p"), "all", None, "p")
    (task,), protocol = benchmark.tasks, PROTOCOLS["pinpoint"]
    predictions = [(q, protocol.predict(task, q, np.arange(120.0))) for q in task.queries]
    assert protocol.submission
    content = json.loads(json.dumps(protocol.submission(predictions)["pinpoint.json"]))
    assert set(content) == {f"{n:05d}" for n in range(1, 31)}
    assert content["00001"]["retrieved_items"] == task.gallery[:-51:-1]


def test_a_query_of_two_images_is_the_mean_of_its_composed_vectors(tmp_path: Path):
    benchmark = PROTOCOLS["pinpoint"].read(pinpoint_folder(tmp_path / "p"), "all", None, "p")
    queries = benchmark.tasks[0].queries[4:8]  # the first group has one image, the second has two

    class Encoder:
        def encode(self, contents: list[tuple[str | None, str]], role: str) -> np.ndarray:
            assert [text for _, text in contents] == [q.text for q in queries[2:]]
            return np.array([[0.0, 1.0]] * len(contents), np.float32)

    first = np.array([[1.0, 0.0]] * 4, np.float32)
    found = with_more_references(Encoder(), queries, "composed", first)  # type: ignore[arg-type]
    assert np.allclose(found[:2], [1, 0]) and np.allclose(found[2:], 0.5**0.5)
    assert np.array_equal(with_more_references(Encoder(), queries, "text_only", first), first)  # type: ignore[arg-type]


def test_pinpoint_without_its_columns_is_refused(tmp_path: Path):
    folder = pinpoint_folder(tmp_path / "p")
    table = pq.read_table(folder / "pinpoint_licensed.parquet")
    pq.write_table(table.drop_columns(["negative_candidates"]), folder / "pinpoint_licensed.parquet")
    with pytest.raises(DataError, match=r"no columns \['negative_candidates'\]"):
        PROTOCOLS["pinpoint"].read(folder, "all", None, "p")


# --- Domain-Transfer ImageNet -----------------------------------------------------------------------------------------


def dtin_folder(folder: Path) -> Path:
    """Three classes; class 2 has no toy."""
    folder.mkdir(parents=True)
    queries = [f"imgnet/real/n{c}/val_{n}.JPEG {c}" for c in range(3) for n in range(4)]
    targets = [
        f"imgnet/imagenet-r/n{c}/{domain}_{n}.jpg {c + 1000 * d}"
        for d, domain in enumerate(("cartoon", "origami", "toy", "sculpture"))
        for c in range(3)
        for n in range(5 + c)
        if (c, domain) != (2, "toy")
    ]
    targets += [f"imgnet/real/n{c}/other_{n}.JPEG {c + 6000}" for c in range(3) for n in range(20)]
    (folder / "imgnet_real_query.txt").write_text("\n".join(queries) + "\n")
    (folder / "imgnet_targets.txt").write_text("\n".join(targets) + "\n")
    return folder


def test_dtin_by_the_official_definition(tmp_path: Path):
    benchmark = PROTOCOLS["dtin"].read(dtin_folder(tmp_path / "imgnet"), "all", None, "dtin")
    targets = [line.rsplit(" ", 1) for line in (tmp_path / "imgnet/imgnet_targets.txt").read_text().splitlines()]
    queries = [line.rsplit(" ", 1) for line in (tmp_path / "imgnet/imgnet_real_query.txt").read_text().splitlines()]
    expected: dict[str, list[float]] = {"recall_at_10": [], "recall_at_50": []}
    for d, domain in enumerate(("cartoon", "origami", "toy", "sculpture")):
        values: dict[str, list[float]] = {name: [] for name in expected}
        for n, (_, label) in enumerate(queries):
            right = [path for path, said in targets if int(said) == int(label) + 1000 * d]
            ranked = sorted((p for p, _ in targets), key=lambda key: -similarity(f"{domain}:{n}", key))
            for k in (10, 50):
                values[f"recall_at_{k}"].append(len(set(ranked[:k]) & set(right)) / (len(right) + 1e-5))
        for name, each in values.items():
            expected[name].append(float(np.mean(each)))
    found = scores(benchmark)
    assert {name: found[name] for name in expected} == pytest.approx({k: np.mean(v) for k, v in expected.items()})
    assert sum(not q.is_answerable for q in benchmark.tasks[2].queries) == 4, "no toy of this class"
    assert checked(benchmark).has_ground_truth and benchmark.dropped.count == 0
    assert benchmark.tasks[2].queries[0].text == "the same object as toy"
    for line, said in (("imgnet/a.jpg x\n", "line 1"), ("imgnet/a.jpg 1\n", "domain origami")):
        (tmp_path / "imgnet/imgnet_targets.txt").write_text(line)
        with pytest.raises(DataError, match=said):
            PROTOCOLS["dtin"].read(tmp_path / "imgnet", "all", None, "dtin")
