"""Validate: the gate after a table. Great Expectations checks this run's new rows and a one-row table of its figures.

Reads one table (images, pairs, triplets), what was dropped, the last version's version.json, and the suite
expectations/<table>.json, whose `$PARAMETER` numbers come from params.yaml (`validate.<table>`; `max_side_px` from ingest). Writes
reports/validation/<table>.json, data/quarantine/<table>/<batch>.parquet (failing rows' ids), and GX's Data Docs in
reports/data_docs. A failing expectation ends the run: DataError, exit 65. A run without new rows is green. It costs what
the run added: of earlier versions only ids are read. Importing Great Expectations takes 2 to 3 s, the check itself 0.1 s.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.names import batch_of
from tasks.records import StageReport
from tasks.store import Store
from tasks.validate.data_docs import make_readable

if TYPE_CHECKING:
    import pandas as pd

Table = Literal["images", "pairs", "triplets"]
KEYS: dict[str, str] = {"images": "image_id", "pairs": "pair_id", "triplets": "triplet_id"}
STAGE_BEFORE: dict[str, str] = {"images": "ingest", "pairs": "select", "triplets": "judge"}  # whose report and drops belong to the table
COPIES = ("duplicate", "near_duplicate")
UNREADABLE = ("undecodable", "truncated", "unreadable", "corrupt", "too_large")
EXAMPLES = 5

# --- new rows, with what the suites need to know about each ----------------------------------------------------------


def images_rows(rows: Sequence[Mapping[str, Any]], known_ids: set[str]) -> list[dict[str, Any]]:
    """New pictures: the table's columns but the thumbnail, and whether an earlier version holds the picture."""
    return [{**{k: v for k, v in r.items() if k != "thumbnail"}, "is_known_before": r["image_id"] in known_ids} for r in rows]


def _relations(row: Mapping[str, Any], images: set[str]) -> dict[str, Any]:
    """What pairs and triplets have in common: the pictures that they name."""
    negatives = row["negative_image_ids"] or []
    named = {row["query_image_id"], row["target_image_id"], *negatives}
    return {
        "query_image_id": row["query_image_id"],
        "target_image_id": row["target_image_id"],
        "is_query_first_negative": bool(negatives) and negatives[0] == row["query_image_id"],
        "is_target_a_negative": row["target_image_id"] in negatives,
        "are_images_known": named <= images,
    }


def pairs_rows(rows: Sequence[Mapping[str, Any]], known_ids: set[str], images: set[str]) -> list[dict[str, Any]]:
    """New pairs, one flat mapping each. `images` are the ids of all pictures."""
    out = []
    for r in rows:
        mined_by = r["mined_by"] or []
        scores = [r[f"similarity_{e}"] for e in mined_by if r.get(f"similarity_{e}") is not None]
        out.append(
            {
                "pair_id": r["pair_id"],
                "is_known_before": r["pair_id"] in known_ids,
                **_relations(r, images),
                "is_same_picture": r["query_image_id"] == r["target_image_id"],
                "encoders": len(mined_by),
                "rank": r["rank"],
                "similarity_of_miners": max(scores, default=math.nan),
            }
        )
    return out


def triplets_rows(rows: Sequence[Mapping[str, Any]], known_ids: set[str], images: set[str]) -> list[dict[str, Any]]:
    """New triplets, one flat mapping each. `images` are the ids of all pictures."""
    out = []
    for r in rows:
        texts, target, negative = r["instructions"] or [], r["judge_target"] or [], r["judge_negative"] or []
        out.append(
            {
                "triplet_id": r["triplet_id"],
                "is_known_before": r["triplet_id"] in known_ids,
                **_relations(r, images),
                "instructions_count": len(texts),
                "are_instructions_distinct": len({t.strip().lower() for t in texts}) == len(texts),
                "shortest_instruction_chars": min((len(t.strip()) for t in texts), default=0),
                "lowest_judge_target": min(target, default=math.nan),
                "are_scores_whole": len(target) == len(texts)
                and len(negative) == len(r["negative_image_ids"] or [])
                and all(s is not None and 0 <= s <= 1 for s in [*target, *negative]),
                "prompt_sha256": r["prompt_sha256"],
                "captioner_revision": r["captioner_revision"],
                "judge_revision": r["judge_revision"],
                "text": " | ".join(texts)[:300],
            }
        )
    return out


# --- the run's figures -----------------------------------------------------------------------------------------------


def share(part: int, whole: int) -> float:
    """part / whole; NaN (which no expectation complains about) when there is nothing."""
    return part / whole if whole else math.nan


def figures_of(
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    dropped: Mapping[str, int],
    reported: Mapping[str, float],
    last: Mapping[str, Any] | None,
    pairs_before: int = 0,
) -> dict[str, float]:
    """The run's figures for a table: counts, shares, medians, and the drop against the last version.

    Args:
        rows: new rows, as `*_rows` makes them.
        dropped: rows that the stage before left out in this run, by reason.
        reported: figures that the stage before reported (`median_caption_cosine_new` and `encoder_yield_lowest` for pairs).
        last: the last version's version.json.
        pairs_before: captioned pairs of this run, for the triplets' yield.
    """
    out: dict[str, float] = {"rows": float(len(rows)) if rows or dropped else math.nan}
    if table == "images":
        seen = len(rows) + sum(dropped.values())
        out["looked_at"] = float(seen)
        out["duplicate_share"] = share(sum(dropped.get(r, 0) for r in COPIES), seen)
        out["unreadable_share"] = share(sum(dropped.get(r, 0) for r in UNREADABLE), seen)
        out["caption_share"] = share(sum(1 for r in rows if r["caption"]), len(rows))
    elif table == "pairs":
        new = reported.get("median_caption_cosine_new", math.nan)
        before = ((last or {}).get("quality", {}).get("select") or {}).get("median_caption_cosine_new")
        out["median_caption_cosine_new"] = math.nan if new is None else float(new)
        out["median_caption_cosine_drop"] = float(before) - out["median_caption_cosine_new"] if before is not None else math.nan
        out["encoder_yield_lowest"] = float(reported.get("encoder_yield_lowest", math.nan))
        for key, value in reported.items():
            out.setdefault(key, float(value))
    else:
        out["yield"] = share(len(rows), pairs_before)
        out["instructions_mean"] = statistics.fmean(r["instructions_count"] for r in rows) if rows else math.nan
        for key, value in reported.items():
            out.setdefault(key, float(value))
    return out


def last_figures(last: Mapping[str, Any] | None, table: Table) -> dict[str, Any]:
    """The last version's figures of a table, as its own gate saw them."""
    found = ((last or {}).get("quality", {}).get(f"validate@{table}") or (last or {}).get("quality", {}).get("validate") or {}) if last else {}
    prefix = f"{table}_"
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


# --- Great Expectations ----------------------------------------------------------------------------------------------


def read_suite(path: Path, given: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The suite's two halves, `rows` and `figures`.

    Raises:
        ConfigError: not a suite, or it uses a `$PARAMETER` that `given` lacks.
    """
    try:
        suite: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a suite ({error})") from error
    for half in ("rows", "figures"):
        for e in suite.get(half, {}).get("expectations", []):
            for value in e["kwargs"].values():
                name = value.get("$PARAMETER") if isinstance(value, dict) else None
                if name is not None and name not in given:
                    raise ConfigError(f"{path}: {e['type']} wants parameter '{name}'; known in validate.{path.stem}: {sorted(given)}")
    return suite


def check(
    frames: Mapping[str, pd.DataFrame], suite: Mapping[str, Mapping[str, Any]], given: Mapping[str, float], key: str, docs: Path | None
) -> dict[str, list[dict[str, Any]]]:
    """Run both halves of a suite with Great Expectations; Data Docs go to `docs`.

    Returns:
        {"rows" | "figures": [GX's result of each expectation, in the suite's order]}.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    source = context.data_sources.add_pandas("run")
    results: dict[str, list[dict[str, Any]]] = {}
    for half, frame in frames.items():
        name = str(suite[half]["name"]).replace(" ", "_")
        expectations = gx.ExpectationSuite(name=name)
        expectations.add_expectation_configurations([ExpectationConfiguration(**e) for e in suite[half]["expectations"]])
        expectations = context.suites.add(expectations)
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=expectations))
        form: dict[str, Any] = {"result_format": "COMPLETE"}
        if half == "rows":
            form["unexpected_index_column_names"] = [key]
        used = {v["$PARAMETER"] for e in suite[half]["expectations"] for v in e["kwargs"].values() if isinstance(v, dict)}
        done = definition.run(batch_parameters={"dataframe": frame}, expectation_parameters={k: given[k] for k in used}, result_format=form)
        by_kwargs = {_identity(r.expectation_config.type, r.expectation_config.kwargs): r.to_json_dict() for r in done.results}
        results[half] = [by_kwargs[_identity(e["type"], e["kwargs"])] for e in suite[half]["expectations"]]
    if docs is not None:
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
        }
        context.add_data_docs_site(site_name="docs", site_config=site)
        context.build_data_docs(site_names=["docs"])
        make_readable(docs)
    return results


def _identity(kind: str, kwargs: Mapping[str, Any]) -> str:
    """An expectation's name: its type and column (a suite asks each kind once per column)."""
    return f"{kind}({kwargs.get('column', '')})"


def failure_of(
    result: Mapping[str, Any],
    half: str,
    given: Mapping[str, float],
    last: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    rows: int,
) -> dict[str, Any]:
    """One failing expectation for people: observed, expected, the last version's value, example rows."""
    config, outcome = result["expectation_config"], result.get("result") or {}
    expected = {}
    for name, value in config["kwargs"].items():
        if name not in ("column", "batch_id"):
            expected[name] = given.get(value["$PARAMETER"]) if isinstance(value, dict) and "$PARAMETER" in value else value
    if half == "figures":
        observed: Any = (outcome.get("partial_unexpected_list") or [None])[0]
    elif outcome:
        observed = f"{outcome.get('unexpected_count')} of {rows} rows, e.g. {outcome.get('partial_unexpected_list', [])[:3]}"
    else:
        observed = str((result.get("exception_info") or {}).get("exception_message", "could not be evaluated"))[:300]
    return {
        "expectation": _readable(config["type"]),
        "type": config["type"],
        "table_half": half,
        "column": config["kwargs"].get("column"),
        "why": (config.get("meta") or {}).get("why", ""),
        "observed": observed,
        "expected": _range(expected),
        "last": last_value(str(config["kwargs"].get("column")), last),
        "examples": [dict(e) for e in examples[:EXAMPLES]],
    }


def last_value(column: str, last: Mapping[str, Any]) -> Any:
    """The last version's value of a figure; for a drop, the value that it is measured from."""
    return last.get(f"{column.removesuffix('_drop')}_new", last.get(column)) if column.endswith("_drop") else last.get(column)


def _readable(kind: str) -> str:
    return kind.removeprefix("expect_column_values_to_").removeprefix("expect_column_").replace("_", " ")


def _range(expected: Mapping[str, Any]) -> str:
    low, high = expected.get("min_value"), expected.get("max_value")
    if low is not None or high is not None:
        return " and ".join(t for t in (f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else "") if t)
    if "value_set" in expected:
        return "one of " + ", ".join(map(str, expected["value_set"]))
    return ", ".join(f"{k} {v}" for k, v in expected.items()) or "every row"


def failing_keys(result: Mapping[str, Any], key: str) -> list[str]:
    """Ids of the rows that an expectation complains about."""
    found = (result.get("result") or {}).get("unexpected_index_list") or []
    return [str(e[key]) for e in found if isinstance(e, dict) and key in e]


# --- examples for figures: rows a person should look at --------------------------------------------------------------


def copies(store: Store, batch: str) -> list[dict[str, Any]]:
    """Dropped copies of this run, with the kept picture that each repeats when its detail names one."""
    rows = store.read_dropped("ingest", batch).to_pylist()
    wanted = [r for r in rows if r["reason"] in (*COPIES, *UNREADABLE)]
    return [{"key": r["key"], "image_ids": re.findall(r"\b[0-9a-f]{64}\b", r["detail"] or ""), "reason": r["reason"], "detail": r["detail"]} for r in wanted]


def worst_captions(store: Store, batch: str, new_images: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """New pictures whose caption fits worst, by the cosine of the two vectors when one model made both kinds."""
    captions = store.captions()
    shards = sorted({r["shard"] for r in new_images})
    try:
        image_ids, images, revision = store.read_embeddings("semantic", shards)
        text_ids, texts, text_revision = store.read_embeddings("caption", shards)
    except (DataError, OSError):
        return []
    scores = {r["image_id"]: math.nan for r in new_images}
    if revision == text_revision and images.shape[1] == texts.shape[1]:
        place = {i: n for n, i in enumerate(text_ids)}
        for n, i in enumerate(image_ids):
            if i in place and i in scores:
                scores[i] = float(images[n].astype("float64") @ texts[place[i]].astype("float64"))
    ordered = sorted(scores, key=lambda i: (math.isnan(scores[i]), scores[i], i))
    return [{"key": i, "image_ids": [i], "caption": captions.get(i, ""), "cosine": None if math.isnan(scores[i]) else round(scores[i], 4)} for i in ordered]


def rows_examples(rows: Iterable[Mapping[str, Any]], key: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these ids, with the pictures that they name and what a person reads first."""
    wanted = set(keys[:EXAMPLES])
    out: list[dict[str, Any]] = []
    for r in rows:
        if str(r[key]) in wanted and len(out) < EXAMPLES:
            image_ids = [r[c] for c in ("image_id", "query_image_id", "target_image_id") if r.get(c)]
            shown = {c: r[c] for c in ("source_uri", "caption", "text", "similarity_of_miners", "lowest_judge_target") if r.get(c) is not None}
            out.append({"key": str(r[key]), "image_ids": image_ids, **shown})
    return out


# --- the stage -------------------------------------------------------------------------------------------------------


def last_version(root: Path, batch: str) -> dict[str, Any] | None:
    """version.json of the version that this run continues; None for the first."""
    path = root / "version.json"
    version = json.loads(path.read_text()) if path.exists() else None
    return version if version and version["version"] != batch else None


def frame_of(rows: Sequence[Mapping[str, Any]], suite: Mapping[str, Any]) -> pd.DataFrame:
    """Rows as a frame that has every column that the suite names, also when there is no row."""
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    for e in suite["expectations"]:
        column = e["kwargs"].get("column")
        if column and column not in frame.columns:
            frame[column] = None if len(frame) == 0 else math.nan
    return frame.where(frame.notna(), None) if len(frame) else frame


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures that are numbers: JSON knows no NaN."""
    return {k: v for k, v in figures.items() if math.isfinite(v)}


def run(params: Params, store: Store, table: Table) -> StageReport:
    """Check one table; see the module's docstring.

    Raises:
        DataError: an expectation does not hold; lists each with observed against expected.
        ConfigError: the suite asks for a number that params.yaml lacks.
    """
    if table not in KEYS:
        raise ConfigError(f"validate: no table {table!r}; known: {sorted(KEYS)}")
    batch, key = batch_of(params), KEYS[table]
    given: dict[str, float] = {**getattr(params.validate_, table)}
    if table == "images":
        given.setdefault("max_side_px", params.ingest.max_side_px)
    suite = read_suite(store.folder("expectations", f"{table}.json"), given)
    new = store.read_table(table, batch=batch).to_pylist()
    new_keys = {r[key] for r in new}
    all_ids = store.read_table(table, [key]).column(key).to_pylist()
    known = set(all_ids) - new_keys
    if len(all_ids) != len(known) + len(new):  # some new id stands in an earlier version too
        counted: dict[str, int] = {}
        for i in all_ids:
            counted[i] = counted.get(i, 0) + 1
        own: dict[str, int] = {}
        for r in new:
            own[r[key]] = own.get(r[key], 0) + 1
        known |= {i for i in new_keys if counted[i] > own[i]}
    images = set(store.read_table("images", ["image_id"]).column("image_id").to_pylist()) if table != "images" else set()
    rows = images_rows(new, known) if table == "images" else pairs_rows(new, known, images) if table == "pairs" else triplets_rows(new, known, images)

    last = last_version(store.root, batch)
    before = STAGE_BEFORE[table]
    reasons: dict[str, int] = {}
    for reason in store.read_dropped(before, batch).column("reason").to_pylist():
        reasons[reason] = reasons.get(reason, 0) + 1
    report_before = store.read_reports().get(before)
    captioned = store.read_table("captioned", ["pair_id"], batch).num_rows if table == "triplets" else 0
    figures = figures_of(table, rows, reasons, report_before.figures if report_before else {}, last, captioned)

    docs = store.folder("reports", "data_docs")
    frames = {"rows": frame_of(rows, suite["rows"]), "figures": frame_of([figures], suite["figures"])}
    results = check(frames, suite, given, key, docs)
    previous = last_figures(last, table)
    failures, quarantined = [], []
    for half, outcomes in results.items():
        for result in outcomes:
            if result["success"]:
                continue
            config = result["expectation_config"]
            keys = failing_keys(result, key) if half == "rows" else []
            column = str(config["kwargs"].get("column"))
            if half == "rows":
                examples = rows_examples(rows, key, keys)
            elif table == "images":
                examples = [e for e in copies(store, batch) if (e["reason"] in UNREADABLE) == (column == "unreadable_share")]
            elif column.startswith("median_caption_cosine"):
                examples = worst_captions(store, batch, store.read_table("images", ["image_id", "shard"], batch).to_pylist())
            else:
                examples = rows_examples(rows, key, [str(r[key]) for r in rows])
            failures.append(failure_of(result, half, given, previous, examples, len(rows)))
            values = {str(r[key]): r.get(column) for r in rows} if keys else {}
            quarantined += [
                {"table": table, "batch": batch, "key": k, "expectation": config["type"], "column": column, "observed": str(values.get(k))} for k in keys
            ]
    store.write(store.folder("data", "quarantine", table, f"{batch}.parquet"), quarantined, "quarantine")
    report = {
        "table": table,
        "batch": batch,
        "is_valid": not failures,
        "rows": len(rows),
        "figures": finite(figures),
        "last_version": last["version"] if last else None,
        "last_figures": previous,
        "expectations": sum(len(r) for r in results.values()),
        "failures": failures,
    }
    content = json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True, default=str)
    store.write_bytes(store.folder("reports", "validation", f"{table}.json"), content.encode())
    if failures:
        lines = [f"{f['column']}: {f['expectation']}: observed {f['observed']}, expected {f['expected']}, last version {f['last']}" for f in failures]
        raise DataError(f"gate '{table}' holds batch {batch}: " + "; ".join(lines) + f". See reports/validation/{table}.json and {docs / 'index.html'}")
    named = {f"{table}_{k}": v for k, v in finite(figures).items()}
    return StageReport("validate", read=len(rows), written=len(quarantined), new=len(rows), done=len(rows), reused=len(known), figures=named)
