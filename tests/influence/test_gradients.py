"""Gradients of single examples: against one backward pass for each and finite differences; what projections keep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msmjax.influence import gradients, scores
from msmjax.influence.gradients import Example
from msmjax.model import transformer
from msmjax.training import sharding
from msmjax.training import step as steps

WHOLE = 10**9  # so many numbers of each matrix: all


def mesh_of(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)


def trained(model, seed=0):
    """What a stage trains, random everywhere, and the base that it does not."""
    params = transformer.init_params(model, jax.random.key(seed))
    if not model.lora_rank:
        return params, {}
    rng = np.random.default_rng(seed)
    adapter = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32), transformer.init_adapter(model, jax.random.key(1))
    )
    return adapter, params


@pytest.fixture(scope="module")
def examples():
    """Of 5 to 40 ids; of some, part counts."""
    rng = np.random.default_rng(2)
    out = []
    for length in (5, 40, 31, 33, 12, 7, 26):
        counts = rng.random(length) < 0.6
        counts[-1] = True
        out.append(Example(rng.integers(1, 96, length).astype(np.int32), counts))
    return out


def nats(model, params, base, example):
    """Of the example alone, in a row of 40."""
    whole = transformer.with_adapter(base, params) if model.lora_rank else params
    tokens, segment_ids, mask = np.zeros((1, 40), np.int32), np.zeros((1, 40), np.int32), np.zeros((1, 40), bool)
    count = len(example.ids)
    tokens[0, :count], segment_ids[0, :count], mask[0, :count] = example.ids, 1, example.counts
    return step_nats(model, whole, {"tokens": tokens, "segment_ids": segment_ids, "loss_mask": mask})


@functools.partial(jax.jit, static_argnums=0)
def step_nats(model, whole, batch):
    return steps.row_nats(model, whole, batch, 64)[0][0]


@pytest.mark.parametrize("change", [{}, {"lora_rank": 4, "lora_alpha": 8.0, "scan_layers": False}], ids=["all", "adapter"])
def test_features_are_those_of_single_backward_passes(model, examples, change):
    model = dataclasses.replace(model, **change)
    params, base = trained(model)
    scale = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 2.0), params)
    found, twice = gradients.features(model, params, base, (None, scale), mesh_of(1, 1, 1), examples, WHOLE, 3)
    np.testing.assert_allclose(twice, 2 * found, rtol=1e-4, atol=1e-4)
    for example, feature in zip(examples, found, strict=True):
        alone = jax.grad(lambda params, example=example: nats(model, params, base, example))(params)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(alone)])
        np.testing.assert_allclose(feature, flat, rtol=1e-3, atol=1e-4)
    # And of how the nats change: along a direction, by finite differences.
    direction = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape), jnp.float32), params
    )
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(direction)])
    for example, feature in zip(examples[:3], found, strict=False):
        ends = [nats(model, jax.tree.map(lambda p, d, h=h: p + h * d, params, direction), base, example) for h in (-1e-3, 1e-3)]
        assert feature @ flat == pytest.approx(float(ends[1] - ends[0]) / 2e-3, rel=0.03, abs=0.1)


def test_sharded_features_are_the_same(model, examples):
    params, base = trained(model)
    mesh, examples = mesh_of(2, 2, 2), [example for example in examples if len(example.ids) <= 32]  # one compilation
    placed = jax.device_put(params, sharding.tree_shardings(mesh, params))
    one = gradients.features(model, params, base, (None,), mesh_of(1, 1, 1), examples, 64, 4)
    np.testing.assert_allclose(gradients.features(model, placed, base, (None,), mesh, examples, 64, 3), one, rtol=1e-4, atol=1e-4)


def test_projections_keep_inner_products():
    """On average over matrices, and as near as so many numbers can. Of the product of the norms, the variance is 1.5 / k^2 for
    k x k numbers of any kind at this angle, and signs from both sides add 1.5 (1/a + 1/b) / k for random matrices [a, b]."""
    rng = np.random.default_rng(0)
    errors = {16: [], 256: [], 1024: []}
    for _ in range(40):
        pair = [{"w_LDF": rng.normal(size=(1, 64, 96)).astype(np.float32)} for _ in range(2)]
        pair[1]["w_LDF"] += pair[0]["w_LDF"]
        exact = float(np.sum(pair[0]["w_LDF"] * pair[1]["w_LDF"]))
        norms = np.prod([np.linalg.norm(one["w_LDF"]) for one in pair])
        for size, of_size in errors.items():
            one, other = (np.asarray(gradients.project(jax.tree.map(jnp.asarray, grads), size)) for grads in pair)
            assert one.shape == (size,)
            of_size.append((one @ other - exact) / norms)
    for size, of_size in errors.items():
        assert np.mean(np.square(of_size)) < 1.5 * (1.5 / size + 1.5 * (1 / 64 + 1 / 96) / size**0.5)
    spread = {size: np.std(of_size) for size, of_size in errors.items()}
    assert spread[1024] < spread[256] < spread[16]


def test_leaves_have_signs_of_their_own():
    matrix = jnp.ones((2, 8, 8))
    one, other, again = (gradients.project({name: matrix}, 16) for name in ("wq_LDF", "wk_LDF", "wq_LDF"))
    assert (one == again).all()
    assert (one != other).any()
    assert (one[:16] != one[16:]).any()  # each layer too
    assert gradients.project({"norm_D": jnp.arange(8.0)}, 16).tolist() == list(range(8))


def test_newton_is_the_inverse_of_the_matrix():
    rng = np.random.default_rng(1)
    for N, F in ((12, 30), (50, 8)):
        margins, examples = rng.normal(size=(3, F)), rng.normal(size=(N, F)) * np.geomspace(1, 30, F)
        matrix = examples.T @ examples / N
        ridge = 0.1 * np.trace(matrix) / min(N, F)
        expected = margins @ np.linalg.inv(matrix + ridge * np.eye(F))
        np.testing.assert_allclose(scores.newton(margins, examples, 0.1), expected, rtol=1e-6, atol=1e-9)


def test_datamodeling_score_is_scipys_spearman():
    import scipy.stats

    rng = np.random.default_rng(3)
    kept, of_records = rng.random((40, 20)) < 0.5, rng.normal(size=(20, 4))
    margins = kept @ of_records + rng.normal(size=(40, 4)) * np.array([0.0, 1.0, 5.0, 100.0])
    margins[:, 3] = 1.0  # the same for all: nothing to predict
    mean, of_items = scores.datamodeling_score(of_records, kept, margins)
    expected = [scipy.stats.spearmanr((kept @ of_records)[:, item], margins[:, item]).statistic for item in range(3)]
    np.testing.assert_allclose(of_items, [*expected, 0.0], atol=1e-12)
    assert of_items[0] == pytest.approx(1.0)
    assert mean == pytest.approx(np.mean(of_items))


def test_the_preconditioner_is_adams(model, step_config, examples):
    """A step without momentum, decay and clipping is the gradient times its square, at the state that it leads to."""
    plain = dataclasses.replace(step_config, b1=0.0, weight_decay=0.0, clip=float("inf"), micro_batches=1)
    mesh, longest = mesh_of(1, 1, 1), examples[1]
    batch = {"tokens": longest.ids[None], "segment_ids": np.ones((1, 40), np.int32), "loss_mask": longest.counts[None]}
    state = steps.compile_init(model, plain, mesh)(jax.random.key(0))
    before = jax.device_get(state["params"])
    state, metrics = steps.compile_step(model, plain, mesh)(state, {}, batch, np.float32(0.25))
    gradient = gradients.features(model, before, {}, (None,), mesh, [longest], WHOLE, 1)[0, 0] / float(metrics["supervised_tokens"])
    roots, moved = gradients.preconditioner(state, plain.epsilon, plain.b2), jax.tree.map(np.subtract, state["params"], before)
    roots, moved = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (roots, moved))
    sure = np.abs(gradient) > 1e-4  # below, the sign of a rounded gradient is chance
    assert sure.mean() > 0.3
    np.testing.assert_allclose(moved[sure], -0.25 * (roots**2 * gradient)[sure], rtol=0.02)
