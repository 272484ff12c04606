"""Hugging Face directories that transformers saved."""

import functools
import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`saved(name)`: the directory in which transformers saved the model of that name."""
    from tests.models import torch_model  # and torch with it

    @functools.cache
    def save(name):
        directory = tmp_path_factory.mktemp("saved") / name.replace(" ", "_")
        torch_model(name).save_pretrained(directory)
        return directory

    return save


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """A bfloat16 model in several files, with the companions of a model."""
    from tests.models import rounded

    directory = tmp_path_factory.mktemp("sharded") / "saved"
    rounded("qwen3").save_pretrained(directory, max_shard_size="15KB")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "generation_config.json").write_text('{"temperature": 0.6}')
    return directory


@pytest.fixture(scope="session")
def deep(tmp_path_factory):
    """A model whose stacked leaves are much larger than any tensor: 16 layers of 1.4 MB."""
    import transformers

    from tests.models import SIZES

    directory = tmp_path_factory.mktemp("deep") / "saved"
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 16, "hidden_size": 128, "intermediate_size": 768})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory
