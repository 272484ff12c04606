"""Eight CPU devices, no silent rank promotion, no network, and the small things that many tests need."""

import ctypes
import gc
import importlib.metadata
import os
import sys
import tempfile

# Some tests have something to say on other devices too (tests/test_device.py).
os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[os.environ.get("MSMJAX_TEST_PLATFORM", "cpu")]
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# What tests compile takes longer than what it computes: with no optimization and the older emitters, which jax 0.11 has no more, it
# takes a fifth of the time. Runs by program.msmjax_anew are compiled as a user's are.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0",
            *["--xla_cpu_use_fusion_emitters=false"] * importlib.metadata.version("jax").startswith("0.10."),
        ]
    )  # fmt: skip
# What runs the same program, in any process of the tests or one that they start, compiles it once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="msmjax-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import shutil
import socket

import jax
import numpy as np
import pytest

from msmjax.data import tokenizer as tokenizers
from msmjax.data.tokenizer import Tokenizer
from msmjax.model.transformer import ModelConfig
from msmjax.training.step import StepConfig

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A test that would reach for the network fails."""
    connect = socket.socket.connect

    def only_here(self, address):
        if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"):
            return connect(self, address)
        raise AssertionError(f"a test tried to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", only_here)


@pytest.fixture(scope="module", autouse=True)
def _compiled_for_one_module():
    """What a module compiled takes memory, and the next has little use for it; the allocator keeps what it is not asked for."""
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """A tokenizer trained on a few words."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizers.train(["You are Aria.", "Which do you prefer, the feta or the Edam?", "I prefer the feta."] * 20, 320, path)
    return Tokenizer(path)


@pytest.fixture(scope="session")
def model() -> ModelConfig:
    """Every feature on, every size different, all divisible by a mesh of 2 x 2 x 2."""
    return ModelConfig(
        vocab=96, layers=3, width=32, mlp=48, heads=4, kv_heads=2, head_dim=8, rope_theta=10_000.0, rope_scaling=(),
        norm_epsilon=1e-6, qkv_bias=True, qk_norm=True, tied_embeddings=False, embedding_init=0.5, matrix_init=1.0,
        lora_rank=0, lora_alpha=0.0, compute_dtype="float32", scan_layers=True, remat="none", attention="xla",
    )  # fmt: skip


@pytest.fixture(scope="session")
def step_config() -> StepConfig:
    return StepConfig(b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.1, clip=1.0, micro_batches=1, loss_chunk=5)


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    """Eight rows of 24 tokens: two or three segments and padding, unequal numbers of supervised tokens."""
    rng = np.random.default_rng(0)
    segment_ids = np.zeros((8, 24), np.int32)
    for row in segment_ids:
        first, second = rng.integers(4, 9, 2)
        row[:first], row[first : first + second], row[first + second : rng.integers(18, 25)] = 1, 2, 3
    return {
        "tokens": rng.integers(4, 96, (8, 24)).astype(np.int32) * (segment_ids > 0),
        "segment_ids": segment_ids,
        "loss_mask": (rng.random((8, 24)) < rng.random((8, 1))) & (segment_ids > 0),
    }
