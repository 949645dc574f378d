"""The text LLM in process, and the fixed batches of both models in process."""

from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_writer
from tasks.models.llm.local_model import batches_by_length


def test_the_writer_answers_in_order_and_equal_prompts_once():
    writer = load_writer(LlmConfig("tasks/sample/checkpoints/writer", device="cpu", max_new_tokens=40, batch=2))
    prompts = [
        "style: short\nboth: nothing; change: remove the small red star",
        "style: imperative\nboth: nothing; change: remove the small red star",
    ]
    alone = [writer.write([prompt])[0].text for prompt in prompts]
    requests = writer.usage.requests
    assert [r.text for r in writer.write([*prompts, prompts[0]])] == [*alone, alone[0]]
    assert writer.usage.requests - requests == 2
    assert all(alone) and alone[0] != alone[1]


def test_batches_are_fixed_by_length_and_position():
    assert batches_by_length([3, 9, 3, 5], 2) == [[1, 3], [0, 2]]
    assert batches_by_length([], 2) == []
