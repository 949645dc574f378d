"""The cards: what `datasets` and the Hub read, every column explained, hostile names and reasons shown as text."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from tasks.pages.dataset_card import dataset_card, size_category
from tasks.pages.model_card import ModelFacts, model_card
from tasks.records import schemas
from tests.support.markup import markdown_tokens, table_widths

EVIL = "<script>alert(1)</script> | [x](javascript:alert(1)) `tick`\n---\n# heading"
STAGE_USAGE = {
    "requests": 5683,
    "cached_share": 0.25,
    "prompt_tokens": 265_095,
    "output_tokens": 149_076,
    "cpu_s": 50.2,
    "gpu_s": 0.0,
    "rejected": {"not_text": 5},
}
EACH = {"requests": 79.8, "prompt_tokens": 4087.0, "output_tokens": 678.0, "cpu_s": 0.54, "gpu_s": 0.0}
SCORES = {"composed": {"map_at_5": 0.31, "recall_at_1": 0.2}, "text_only": {"map_at_5": 0.01}}
FACTS = ModelFacts("model/2026.11.28", "dataset/2026.11.28", "base", {"steps": 120}, "better")


def version(**changes: Any) -> dict[str, Any]:
    rows = {"triplets": 1173, "images": 2236}
    return {
        "version": "2026.11.28",
        "parent": "2026.11.21",
        "fingerprint": "f" * 64,
        "rows": rows,
        "new_rows": {"triplets": 220, "images": 237},
        "drops": {"judge": {"wrong_target": 1543}},
        "new_drops": {},
        "encoders": {"semantic": {"pairs": 518, "triplets": 183, "yield": 0.3532}},
        "params": {"train": {"held_out_share": 0.1}, "ingest": {"benchmark_hashes": []}},
        "ledger": {"stages": {"caption": STAGE_USAGE}, "triplets": 220, "per_triplet": EACH},
        **changes,
    }


def card(*, name: str = "my-set", license_name: str = "other", exported: int = 3, **changes: Any) -> str:
    sizes = {"data/triplets": 10, "data/images": 20, "data/export": 30}
    return dataset_card(
        version(**changes),
        name=name,
        license_name=license_name,
        exported=exported,
        parquet_bytes=sizes,
        is_held_out_split=True,
    )


def header(text: str) -> dict[str, Any]:
    """The YAML between the first two lines of dashes, as the Hub reads it."""
    front, dashes, _ = text.removeprefix("---\n").partition("\n---\n")
    assert dashes
    return dict(yaml.safe_load(front))


def links(text: str) -> list[str]:
    return [str(t.attrs["href"]) for t in markdown_tokens(text) if t.type == "link_open"]


def test_the_header_offers_a_config_for_each_table_with_its_columns_and_counts():
    front = header(card())
    assert [c["config_name"] for c in front["configs"]] == ["triplets", "images", "with_images"]
    assert front["configs"][0]["default"] is True
    triplets, images, exported = front["dataset_info"]
    assert [f["name"] for f in triplets["features"]] == schemas()["triplets"].names
    assert {"name": "judge_target", "list": "float32"} in triplets["features"]
    assert images["splits"] == [{"name": "train", "num_bytes": 20, "num_examples": 2236}]
    assert "features" not in exported and exported["splits"][0]["num_examples"] == 3
    assert front["license"] == "other" and front["license_name"] == "see-license_code-of-each-image"
    plain = card(exported=0, license_name="CC0-1.0")
    assert len(header(plain)["configs"]) == 2 and "license_name" not in header(plain) and '"with_images"' not in plain


@pytest.mark.parametrize("table", ["triplets", "images"])
def test_the_card_explains_every_column_of_a_published_table(table: str):
    _, _, rest = card().partition(f"## Columns of `{table}`")
    section = rest.partition("\n## ")[0]
    assert [name for name in schemas()[table].names if f"`{name}`" not in section] == []


def test_the_card_tells_counts_usage_and_the_way_back():
    text = card()
    for part in (
        "1,173 triplets over 2,236 images",
        "compared with 2026.11.21:\n220 triplets and 237 images",
        "git checkout dataset/2026.11.28 && dvc pull",
        "| `judge` | `wrong_target` | 1543 |",
        "| `caption` | 5,683 | 25% | 265,095 | 149,076 | 50 | 0 | not_text 5 |",
        "took 79.8 requests, 4,087 prompt tokens, 678 output tokens, 0.54 CPU-s and 0.00 GPU-s.",
        "| `semantic` | 518 | 183 | 0.353 |",
        "a share of 0.1",
    ):
        assert part in text
    first = card(parent=None, drops={}, ledger={})
    assert "the first one" in first and "Nothing." in first and "## Model calls" not in first


def test_the_card_says_whom_to_ask_how_to_cite_and_under_which_licences():
    stated = {"version": {"contact": "data@example.org", "citation": "@misc{ours}"}, "caption": {"languages": ["de"]}}
    text = card(params={**version()["params"], **stated}, licenses={"CC0-1.0": 2000, "CC-BY-4.0": 236})
    for part in (
        "(name its `image_id` or `source_uri`): data@example.org",
        "@misc{ours}",
        "- `CC-BY-4.0`: 236 images",
        "10 bytes of Parquet",
    ):
        assert part in text
    assert header(text)["language"] == ["de"] and header(text)["license_link"] == "README.md#licence"
    for heading in ("Intended use", "Limits", "Personal data", "Citation", "Sizes"):
        assert f"\n## {heading}\n" in text
    assert "MegaPairs: Massive Data Synthesis" in card() and "has stated no contact" in card()


def test_the_card_shows_every_week_by_itself_and_the_truth_only_where_it_is_known():
    judged = {"pairs": 948, "triplets": 218, "yield": 0.23, "shortcut_share": 0.07, "distinct_3": 0.25}
    judged["styles"] = {"keep": 0.4, "short": 0.6}
    weeks = {
        "2026.11.21": {**judged, "yield": 0.53, "true_share": 0.964},
        "2026.11.28": {**judged, "true_share": 0.898},
    }
    text = card(weeks=weeks)
    assert "| `2026.11.21` | 948 | 218 | 53.0% | 7.0% | 96.4% | 0.25 |" in text
    assert "| `2026.11.28` | 948 | 218 | 23.0% | 7.0% | 89.8% | 0.25 |" in text
    assert "Styles of the newest week: keep 40%, short 60%." in text and "the sample world's truth" in text
    photographs = card(weeks={"2026.11.28": judged})
    assert "## Week by week" in photographs and "true texts" not in photographs and "truth" not in photographs
    assert {len(set(widths)) for widths in table_widths(text)} == {1} and "## Week by week" not in card()


def test_every_table_of_a_card_is_a_table_to_a_renderer_with_rows_as_wide_as_its_head():
    widths = table_widths(card(drops={"judge": {"a|b": 1, "c`d": 2}}))
    assert [w[0] for w in widths] == [2, 2, 3, 8, 4] and all(len(set(w)) == 1 for w in widths)


def test_hostile_names_and_reasons_are_text_in_the_dataset_card():
    text = card(name=EVIL, drops={EVIL: {EVIL: 7}}, encoders={EVIL: {"pairs": 1, "triplets": 1, "yield": None}})
    assert header(text)["pretty_name"] == EVIL
    tokens = markdown_tokens(text)
    assert not [t for t in tokens if t.type in ("html_block", "html_inline")] and links(text) == []
    headings = [tokens[n + 1].content for n, t in enumerate(tokens) if t.type == "heading_open"]
    assert len([h for h in headings if h.startswith("Columns")]) == 2 and "heading" not in headings
    rows = [tokens[n + 1 :] for n, t in enumerate(tokens) if t.type == "tr_open"]
    cells = [t.content for row in rows for t in row if t.type == "code_inline"]
    assert " ".join(EVIL.split()) in cells


def test_hostile_values_are_text_in_the_model_card():
    facts = replace(FACTS, base_model=EVIL, recipe={EVIL: EVIL}, why=EVIL)
    text = model_card({"metrics": {EVIL: SCORES}, "benchmark": EVIL, "main_metric": "map_at_5"}, facts)
    assert header(text)["base_model"] == EVIL
    tokens = markdown_tokens(text)
    assert not [t for t in tokens if t.type in ("html_block", "html_inline")] and links(text) == []
    assert sum(t.type == "table_open" for t in tokens) == 2


def test_a_model_card_of_scores_alone_says_what_was_not_measured():
    text = model_card({"metrics": {"base": SCORES}}, FACTS)
    for part in (
        "## Scores (held-out triplets)",
        "| model | query | mAP@5 | Recall@1 |",
        "| `base` | composed | 0.3100 | 0.2000 |",
        "| `base` | text_only | 0.0100 |  |",
        "was not measured",
        "Not recorded.",
    ):
        assert part in text
    assert "seeds" not in text


def test_the_hubs_size_class():
    assert [size_category(n) for n in (0, 999, 1000, 9_999_999, 10_000_000)] == [
        "n<1K",
        "n<1K",
        "1K<n<10K",
        "1M<n<10M",
        "n>10M",
    ]
