"""How models encode benchmarks: the task instruction of a benchmark."""

from types import SimpleNamespace

from tasks.evaluate.encode import task_instruction


def test_a_benchmarks_task_instruction_holds_for_its_queries_alone():
    mllm, clip = SimpleNamespace(instruction="own"), SimpleNamespace()
    with task_instruction(mllm, ""), task_instruction(clip, "x"):
        assert mllm.instruction == "" and not hasattr(clip, "instruction")
    with task_instruction(mllm, None):
        assert mllm.instruction == "own"
    assert mllm.instruction == "own"
