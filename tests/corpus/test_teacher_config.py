"""Configs of teachers: what is refused."""

import pytest

from msmjax.artifact import BadInput


@pytest.mark.parametrize(
    ("model", "pinned"),
    [
        ("openai/gpt-4.1-2025-04-14", True), ("anthropic/claude-sonnet-4-20250514", True), ("vllm/Qwen/Qwen3-8B@9c925d6", True),
        ("openai-api/loopback/scripted-2026-01-01", True), ("openai/gpt-4.1", False), ("openai/gpt-4o-latest", False),
        ("openai/chatgpt-4o-latest-2025-01-01", False), ("anthropic/claude-sonnet-4-0", False), ("google/gemini-2.5-pro", False),
        ("openai/gpt-3.5-turbo-0125", False), ("vllm/Qwen/Qwen3-8B@main", False), ("together/llama-70b", False),
    ],
)  # fmt: skip
def test_a_model_is_pinned(teacher_config, model, pinned):
    if pinned:
        teacher_config(model=model)
    else:
        with pytest.raises(BadInput, match="not pinned, so it may be another model tomorrow"):
            teacher_config(model=model)
        teacher_config(model=model, pinned_by="the provider's page of versions, 2026-01-01")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "gpt"}, "neither 'recorded' nor PROVIDER/NAME"), ({"model": "recorded"}, "transcript=''"),
        ({"transcript": "a.jsonl"}, "only model 'recorded' replays one"), ({"tries": 0}, "tries=0: must be at least 1"),
        ({"timeout": 0}, "timeout=0"), ({"top_p": 0.0}, "top_p must be above 0"), ({"temperature": -1.0}, "temperature at least 0"),
        ({"error_share": 2.0}, "error_share between 0 and 1"), ({"budget": -1.0}, "must not be negative"),
        ({"budget": 1.0, "input_price": 0.0}, "of dollars, which takes input_price and output_price"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(teacher_config, wrong, said):
    with pytest.raises(BadInput, match=said):
        teacher_config(**wrong)
