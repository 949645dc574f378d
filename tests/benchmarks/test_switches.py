"""The table of benchmarks.switches: each arm against the default of the same seed."""

from benchmarks.switches import ARMS, MAIN_PHASE, summary_of, table_lines
from tasks.config import load_params
from tasks.config.training import TrainConfig


def scores(*values: float) -> list[dict[str, float]]:
    return [{"map_at_5": v, "recall_at_1": v / 2, "recall_at_10": 2 * v, "cpu_s": 10.0} for v in values]


def test_an_arm_is_compared_with_the_default_of_the_same_seed():
    found = summary_of({"default": scores(40.0, 42.0, 44.0), "other": scores(41.0, 43.0, 45.0)})
    assert found["other"]["map_at_5"] == (43.0, 2.0) and found["other"]["recall_at_1"] == (21.5, 1.0)
    assert found["other"]["difference"] == (1.0, 0.0), "every seed gained one point, though the spread is two"
    lines = table_lines(found)
    assert lines[2] == "| default | 42.0 ± 2.0 |  | 21.0 ± 1.0 | 84.0 ± 4.0 |"
    assert lines[3] == "| other | 43.0 ± 2.0 | +1.00 ± 0.00 | 21.5 ± 1.0 | 86.0 ± 4.0 |"


def test_every_arm_is_a_recipe_that_can_be_trained():
    base = load_params("params.yaml").train.model_dump(mode="json")
    assert set(TrainConfig.model_fields) >= MAIN_PHASE
    for name, changes in ARMS.items():
        known = {key: base[key] | value if isinstance(base[key], dict) else value for key, value in changes.items()}
        TrainConfig.model_validate(base | known)
        assert name == "default" or base | known != base or name.startswith("warm-up"), name
