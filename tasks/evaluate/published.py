"""Published scores of other models, as their papers print them, for the results page. Percent; `source` says where.

They are of the split that the paper used, with the paper's own query text: beside our numbers they show where a model
stands, not that one is better by a tenth.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A model's published scores: metric -> percent."""

    model: str
    scores: dict[str, float]
    source: str


MEGAPAIRS = "arXiv:2412.14475"
PINPOINT = "README of the PinPoint dataset (arXiv:2603.04598)"
ICIR = "github.com/billpsomas/icir README (arXiv:2510.25387)"

# protocol -> (what the numbers are of, rows)
PUBLISHED: dict[str, tuple[str, tuple[Published, ...]]] = {
    "circo": (
        "test split",
        (
            Published("SEARLE-XL", {"map_at_5": 11.7}, MEGAPAIRS),
            Published("CIReVL (G)", {"map_at_5": 26.8}, MEGAPAIRS),
            Published("MagicLens-L (CLIP)", {"map_at_5": 29.6}, MEGAPAIRS),
            Published(
                "BGE-VL-base", {"map_at_5": 34.3, "map_at_10": 35.0, "map_at_25": 37.6, "map_at_50": 38.7}, MEGAPAIRS
            ),
            Published(
                "BGE-VL-large", {"map_at_5": 39.2, "map_at_10": 40.2, "map_at_25": 42.9, "map_at_50": 44.0}, MEGAPAIRS
            ),
            Published(
                "BGE-VL-MLLM-S1", {"map_at_5": 42.2, "map_at_10": 43.4, "map_at_25": 46.5, "map_at_50": 47.6}, MEGAPAIRS
            ),
        ),
    ),
    "cirr": (
        "test1 split",
        (
            Published("MagicLens-L (CLIP)", {"recall_at_1": 30.1, "recall_subset_at_1": 68.1}, MEGAPAIRS),
            Published("CIReVL (G)", {"recall_at_1": 34.7, "recall_subset_at_1": 68.0}, MEGAPAIRS),
            Published(
                "BGE-VL-base",
                {"recall_at_1": 36.1, "recall_at_5": 68.1, "recall_at_10": 79.5, "recall_subset_at_1": 71.6},
                MEGAPAIRS,
            ),
            Published(
                "BGE-VL-large",
                {"recall_at_1": 38.0, "recall_at_5": 70.3, "recall_at_10": 81.1, "recall_subset_at_1": 73.2},
                MEGAPAIRS,
            ),
            Published(
                "BGE-VL-MLLM-S1",
                {"recall_at_1": 46.7, "recall_at_5": 76.0, "recall_at_10": 85.1, "recall_subset_at_1": 75.4},
                MEGAPAIRS,
            ),
        ),
    ),
    "fashioniq": (
        "validation, original split",
        (
            Published("LinCIR (G)", {"recall_at_10": 45.1}, MEGAPAIRS),
            Published("MagicLens-L (CLIP)", {"recall_at_10": 30.7}, MEGAPAIRS),
            Published("BGE-VL-base", {"recall_at_10": 31.9, "recall_at_50": 53.4}, MEGAPAIRS),
            Published("BGE-VL-large", {"recall_at_10": 34.6, "recall_at_50": 55.2}, MEGAPAIRS),
            Published("BGE-VL-MLLM-S1", {"recall_at_10": 35.6, "recall_at_50": 56.6}, MEGAPAIRS),
        ),
    ),
    "genecis": (
        "mean of the four tasks",
        (
            Published("MagicLens-L (CLIP)", {"recall_at_1": 16.3}, MEGAPAIRS),
            Published("CIReVL (G)", {"recall_at_1": 17.4}, MEGAPAIRS),
            Published("BGE-VL-base", {"recall_at_1": 18.0}, MEGAPAIRS),
            Published("BGE-VL-large", {"recall_at_1": 18.1}, MEGAPAIRS),
            Published("BGE-VL-MLLM-S1", {"recall_at_1": 21.1}, MEGAPAIRS),
        ),
    ),
    "mmeb": (
        "36 tasks, zero-shot unless said",
        (
            Published("CLIP", {"precision_at_1": 37.8}, MEGAPAIRS),
            Published(
                "BGE-VL-MLLM-S1",
                {
                    "precision_at_1": 44.0,
                    "CLS.precision_at_1": 47.2,
                    "VQA.precision_at_1": 18.4,
                    "RET.precision_at_1": 56.5,
                    "GRD.precision_at_1": 62.2,
                },
                MEGAPAIRS,
            ),
            Published("mmE5-11B", {"precision_at_1": 58.6}, "arXiv:2502.08468"),
            Published(
                "BGE-VL-MLLM-S2 (trained on MMEB)",
                {"precision_at_1": 64.1, "IND.precision_at_1": 68.0, "OOD.precision_at_1": 59.1},
                MEGAPAIRS,
            ),
        ),
    ),
    "icir": (
        "all queries",
        (
            Published("SEARLE", {"map": 19.9}, ICIR),
            Published("MagicLens", {"map": 27.35}, ICIR),
            Published("CoVR", {"map": 28.5}, ICIR),
            Published("BASIC", {"map": 31.64}, ICIR),
            Published("BASIC, without query expansion", {"map": 34.35}, ICIR),
        ),
    ),
    "pinpoint": (
        "all queries; neg_recall: lower is better",
        (
            Published(
                "MetaCLIP2 (combined)",
                {"map_at_10": 7.6, "precision_at_10": 10.2, "precision_at_1": 9.2, "neg_recall_at_10": 14.1},
                PINPOINT,
            ),
            Published(
                "BGE-VL-large",
                {"map_at_10": 11.0, "precision_at_10": 12.7, "precision_at_1": 18.4, "neg_recall_at_10": 10.1},
                PINPOINT,
            ),
            Published(
                "BGE-VL-MLLM-S1",
                {"map_at_10": 13.1, "precision_at_10": 14.2, "precision_at_1": 23.3, "neg_recall_at_10": 8.7},
                PINPOINT,
            ),
            Published(
                "BGE-VL-MLLM-S1, reranked by an MLLM",
                {"map_at_10": 17.0, "precision_at_10": 17.6, "precision_at_1": 29.6, "neg_recall_at_10": 5.7},
                PINPOINT,
            ),
        ),
    ),
}
