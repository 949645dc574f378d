"""The table of benchmarks.switches: each arm against the default of the same seed."""

from pathlib import Path

from benchmarks.switches import ARMS, MAIN_PHASE, Bench, summary_of, table_lines
from tasks.config import parse_params, read_raw, resolve
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
    base = parse_params(resolve(read_raw(Path("params.yaml")), "demo", {})).train.model_dump(mode="json")
    assert set(TrainConfig.model_fields) >= MAIN_PHASE
    for name, changes in ARMS.items():
        known = {key: base[key] | value if isinstance(base[key], dict) else value for key, value in changes.items()}
        TrainConfig.model_validate(base | known)
        assert name == "default" or base | known != base or name.startswith("warm-up"), name


def test_what_one_world_and_seed_gave_is_never_taken_for_another(tmp_path: Path):
    """Two worlds may share --out: results, weights of the locked phase and teachers have names of their own."""
    one, other = (Bench(tmp_path / name, tmp_path / "out", {}) for name in ("11", "demo"))
    assert one.locked_folder(0) == Bench(tmp_path / "11", tmp_path / "out", {}).locked_folder(0)
    folders = {b.locked_folder(seed) for b in (one, other) for seed in (0, 1)}
    assert len(folders) == 4 and one.teacher_folder() != other.teacher_folder()
    assert len({b.name_of(arm, 0) for b in (one, other) for arm in ("default", "cosine")}) == 4


def test_a_training_that_was_cut_off_finds_its_checkpoint_again(tmp_path: Path):
    bench = Bench(tmp_path / "11", tmp_path / "out", {})
    kept = bench.work_store(bench.work / "one").folder(".run", "train", "checkpoint-50")
    kept.mkdir(parents=True)
    assert bench.work_store(bench.work / "one").folder("data").is_symlink() and kept.is_dir()


def test_a_recipe_that_keeps_the_base_never_starts_from_the_locked_phases_weights(tmp_path: Path):
    """The copy that is kept would be of those weights, and the training another one."""
    bench = Bench(tmp_path / "11", tmp_path / "out", {})
    params = bench.params_of("main phase of 20 steps", 0)
    assert params.train.datasets[0].keep_base and params.train.locked_steps
    assert params.train.base_model == bench.params({}, 0).train.base_model
