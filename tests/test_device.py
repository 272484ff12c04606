"""What must hold on whatever device there is, computed as the program computes it there: `MSMJAX_TEST_PLATFORM=gpu pytest
-m nightly tests/test_device.py` runs these on a GPU, with its own back end of attention; every night they run on a CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msmjax import artifact
from msmjax.data.mixture import Mixture
from msmjax.generation import generate
from msmjax.model import attention
from msmjax.model.transformer import ModelConfig, forward, init_params, unembed
from msmjax.training import checkpoint, loop, sharding
from msmjax.training import step as steps
from msmjax.training.loop import LogConfig, StageConfig
from msmjax.training.step import StepConfig

pytestmark = pytest.mark.nightly  # on a CPU, the tests of training/ and model/ say nearly the same

LENGTH, HEAD_DIM = 256, 32
STAGE = StageConfig((("base", 1.0),), 0, 20, 4, 1e-3, 4, 0.1, False)


def model_of(dtype: str, **changes) -> ModelConfig:
    back_end, _ = attention.resolve("auto", *attention.kind_of(jax.devices()[0]), LENGTH, HEAD_DIM, dtype)
    model = ModelConfig(
        vocab=96, layers=2, width=64, mlp=96, heads=4, kv_heads=2, head_dim=HEAD_DIM, rope_theta=10_000.0, rope_scaling=(),
        norm_epsilon=1e-6, qkv_bias=False, qk_norm=True, tied_embeddings=False, embedding_init=0.5, matrix_init=1.0,
        lora_rank=0, lora_alpha=0.0, compute_dtype=dtype, scan_layers=False, remat="none", attention=back_end,
    )  # fmt: skip
    return dataclasses.replace(model, **changes)


@pytest.fixture(scope="module")
def place():
    devices = jax.devices()[:1]
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)
    return sharding.Placement(mesh)


class Rows:
    """Packed rows of a few documents and padding; after `fails_after` reads, the plug is pulled."""

    def __init__(self, fails_after=None):
        self.reads, self.fails_after = 0, fails_after

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.reads += 1
        if self.fails_after == self.reads - 1:
            raise KeyboardInterrupt
        rng = np.random.default_rng(index)
        segment_ids = np.repeat([1, 2, 3, 0], [100, 37, 64, 55]).astype(np.int32)
        tokens = rng.integers(4, 96, LENGTH).astype(np.int32)
        return {"tokens": tokens, "segment_ids": segment_ids, "loss_mask": (rng.random(LENGTH) < 0.7) & (segment_ids > 0)}


def stacked(rows) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in ("tokens", "segment_ids", "loss_mask")}


def test_packed_equals_unpacked(place):
    """Loss and gradient of packed rows are those of their documents alone, each in a row of its own: in float32 but for the last
    digits, in bfloat16 as nearly as rounding lets either come to float32."""
    packed = [Rows()[index] for index in range(2)]
    alone = []
    for row in packed:
        for segment in (1, 2, 3):
            inside = row["segment_ids"] == segment
            alone.append({name: np.pad(array[inside], (0, LENGTH - inside.sum())) for name, array in row.items()})
    params = init_params(model_of("float32"), jax.random.key(0))

    def value_and_gradients(dtype, rows):
        def loss(params, batch):
            total, count = steps.loss_sum(model_of(dtype), params, batch, 64, place, 4)
            return total / count, count

        with jax.default_matmul_precision("highest"):
            (value, _), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, stacked(rows))
        return [np.asarray(value), *map(np.asarray, jax.tree.leaves(gradients))]

    exact = value_and_gradients("float32", alone)
    for one, other in zip(value_and_gradients("float32", packed), exact, strict=True):
        assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(other)
    rounded = zip(value_and_gradients("bfloat16", packed), value_and_gradients("bfloat16", alone), exact, strict=True)
    for one, other, right in rounded:
        assert 0 < np.linalg.norm(one - right) < 2 * np.linalg.norm(other - right) < 0.2 * np.linalg.norm(right)


# On a CPU, auto is xla, and test_loop.py has more to say of it.
CASES = [(4, "auto")] if jax.default_backend() == "cpu" else [(0, "xla"), (4, "xla"), (4, "auto")]


@pytest.mark.parametrize(("lora_rank", "back_end"), CASES)
def test_interrupted_equals_uninterrupted(tmp_path, place, monkeypatch, lora_rank, back_end):
    """Parameters, moments and the log, bit for bit; but cuDNN's attention sums a gradient in any order, so that there it is the
    same batches, and losses that differ by rounding."""
    model = model_of("bfloat16", lora_rank=lora_rank, lora_alpha=2.0 * lora_rank)
    if back_end == "xla":
        model = dataclasses.replace(model, attention="xla")
    config = StepConfig(b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.1, clip=1.0, micro_batches=2, loss_chunk=64)
    abstract = steps.abstract_base(model, place.mesh)
    base = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.02, leaf.dtype, device=leaf.sharding), abstract)
    monkeypatch.setattr(loop.weights, "base", lambda *_: base)

    def train(name, rows):
        mixture = Mixture((rows,), (1.0,), 0)
        loop.train(tmp_path / name, "stage", model, config, STAGE, LogConfig(5, 8), mixture, place.mesh, None, None, 0)

    train("whole", Rows())
    with pytest.raises(KeyboardInterrupt):
        train("parts", Rows(fails_after=13 * 4))
    steps.compile_step.cache_clear()  # another process would compile it again
    train("parts", Rows())
    found = []
    for name in ("whole", "parts"):
        with checkpoint.open_manager(tmp_path / name) as manager:
            state = checkpoint.restore(manager, 20, steps.abstract_state(model, config, place.mesh))
        log = artifact.read_jsonl(tmp_path / name / "metrics.jsonl")
        kept = [{key: line[key] for key in ("step", "loss", "gradient_norm", "batch")} for line in log]
        found.append((jax.device_get(state), kept))
    (state, log), (other_state, other_log) = found
    assert [line["batch"] for line in log] == [line["batch"] for line in other_log]
    assert len({line["batch"] for line in log}) == 20
    if model.attention == "cudnn":
        np.testing.assert_allclose([line["loss"] for line in log], [line["loss"] for line in other_log], rtol=2e-3)
    else:
        jax.tree.map(np.testing.assert_array_equal, state, other_state)
        assert log == other_log


def test_generation_continues_as_the_forward_pass_would(place):
    """Greedy ids with a cache are those that a pass over the whole row without one would choose."""
    model = model_of("float32")
    params = init_params(model, jax.random.key(1))
    prompts = [np.random.default_rng(row).integers(4, 96, length).tolist() for row, length in enumerate((5, 40, 33))]
    with jax.default_matmul_precision("highest"):
        requests = [generate.Request(tuple(ids), generate.Settings(12, 0.0, 1.0, 0)) for ids in prompts]
        for index, made in generate.generate(model, params, place.mesh, requests, placement=sharding.Placement, stop=()):
            prompt, ids = prompts[index], made.ids
            row = jnp.asarray([prompt + ids])
            logits = unembed(model, params, forward(model, params, row, jnp.ones_like(row), place))[0]
            assert jnp.argmax(logits[len(prompt) - 1 : -1], axis=-1).tolist() == ids


def test_bfloat16_is_near_float32(place):
    """The distribution of every next token, in KL divergence: what the device's products and attention round."""
    tokens, segment_ids = (stacked([Rows()[0]])[name] for name in ("tokens", "segment_ids"))
    logs = []
    for dtype in ("float32", "bfloat16"):
        model = model_of(dtype)
        params = init_params(model, jax.random.key(2))
        with jax.default_matmul_precision("highest"):
            logs.append(jax.nn.log_softmax(unembed(model, params, forward(model, params, tokens, segment_ids, place, 4))))
    divergence = jnp.sum(jnp.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)
    assert 0 < float(jnp.mean(divergence)) < 1e-3
