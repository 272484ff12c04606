"""The transformer: no information where none may go, and the same function however it is computed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msmjax.artifact import BadInput
from msmjax.model import transformer
from msmjax.training.step import loss_sum


@pytest.fixture(scope="module")
def params(model):
    return transformer.init_params(model, jax.random.key(0))


@pytest.fixture(scope="module")
def lora(model):
    return dataclasses.replace(model, lora_rank=6, lora_alpha=9.0)


@pytest.fixture(scope="module")
def adapter(lora):
    return transformer.init_adapter(lora, jax.random.key(1))


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, segment_ids):
    return transformer.forward(model, params, tokens, segment_ids)


def hidden(model, params, tokens, segment_ids):
    return np.asarray(forward(model, params, tokens, segment_ids))


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grads(model, params, rows):
    return jax.value_and_grad(lambda params: loss_sum(model, params, rows, chunk=7)[0])(params)


def assert_trees_close(one, other, rtol, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def alone(rows):
    """Each segment of the rows in a row of its own."""
    parts = [
        (row, segment) for row in range(len(rows["tokens"])) for segment in (1, 2, 3) if (rows["segment_ids"][row] == segment).any()
    ]
    out = {name: np.zeros((len(parts), array.shape[1]), array.dtype) for name, array in rows.items()}
    for index, (row, segment) in enumerate(parts):
        inside = rows["segment_ids"][row] == segment
        for name in rows:
            out[name][index, : inside.sum()] = rows[name][row][inside]
        out["segment_ids"][index, : inside.sum()] = 1
    return out


def test_packed_equals_unpacked(model, params, rows):
    packed, unpacked = loss_and_grads(model, params, rows), loss_and_grads(model, params, alone(rows))
    np.testing.assert_allclose(packed[0], unpacked[0], rtol=1e-5)
    assert_trees_close(packed[1], unpacked[1], rtol=1e-3, atol=1e-4)


def test_no_information_crosses_documents(model, params, rows):
    before = hidden(model, params, rows["tokens"], rows["segment_ids"])
    changed = np.where(rows["segment_ids"] == 2, (rows["tokens"] + 1) % 96, rows["tokens"])
    after = hidden(model, params, changed, rows["segment_ids"])
    others = rows["segment_ids"] != 2
    np.testing.assert_array_equal(before[others], after[others])
    assert (before[~others] != after[~others]).any()


def test_causality(model, params, rows):
    at = 9
    before = hidden(model, params, rows["tokens"], np.ones_like(rows["segment_ids"]))
    changed = rows["tokens"].copy()
    changed[:, at] = (changed[:, at] + 1) % 96
    after = hidden(model, params, changed, np.ones_like(rows["segment_ids"]))
    np.testing.assert_array_equal(before[:, :at], after[:, :at])
    assert (before[:, at:] != after[:, at:]).any(axis=(0, 2)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"scan_layers": False},
        {"remat": "full"},
        {"remat": "attention"},
        {"scan_layers": False, "remat": "full"},
    ],
)
def test_same_function_however_computed(model, params, rows, change):
    usual, other = loss_and_grads(model, params, rows), loss_and_grads(dataclasses.replace(model, **change), params, rows)
    np.testing.assert_allclose(usual[0], other[0], rtol=1e-6)
    assert_trees_close(usual[1], other[1], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_float32(model, params, rows):
    exact = hidden(model, params, rows["tokens"], rows["segment_ids"])
    rounded = hidden(dataclasses.replace(model, compute_dtype="bfloat16"), params, rows["tokens"], rows["segment_ids"])
    assert rounded.dtype == jnp.bfloat16
    error = np.abs(exact - rounded.astype(np.float32)).mean() / np.abs(exact).mean()
    assert 0 < error < 0.03  # bfloat16 keeps 8 bits: 2^-8 a rounding, a few dozen roundings deep


def test_rope_turns_by_relative_position(model):
    """q·k depends on the distance of the two positions alone."""
    vectors = jax.random.normal(jax.random.key(2), (2, 1, 1, 1, model.head_dim))
    angles = transformer.rope_angles(model, 20)
    q_T1H, k_T1H = (transformer.rotate(jnp.broadcast_to(x, (1, 20, 1, model.head_dim)), *angles)[0] for x in vectors)
    products = jnp.einsum("TNH,SNH->TS", q_T1H, k_T1H)
    np.testing.assert_allclose(products[3, 1], products[12, 10], rtol=1e-4)
    assert abs(products[3, 1] - products[3, 2]) > 1e-3


SCALING = (8.0, 1.0, 4.0, 64.0)


def test_rope_scaling_keeps_high_frequencies_and_stretches_low_ones(model):
    """Against the formula of transformers, in wavelengths, one frequency at a time."""
    model = dataclasses.replace(model, head_dim=32)
    factor, low, high, original = SCALING
    frequencies = 10_000.0 ** -(np.arange(16) / 16)
    expected, kinds = [], []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        smooth = (original / wavelength - low) / (high - low)
        kinds.append("kept" if wavelength < original / high else "stretched" if wavelength > original / low else "between")
        between = (1 - smooth) * frequency / factor + smooth * frequency
        expected.append({"kept": frequency, "stretched": frequency / factor, "between": between}[kinds[-1]])
    assert [kinds.count(kind) for kind in ("kept", "between", "stretched")] == [2, 3, 11]
    plain = transformer.rope_angles(model, 40)
    scaled = transformer.rope_angles(dataclasses.replace(model, rope_scaling=SCALING), 40)
    for table, kept, wave in zip(scaled, plain, (np.cos, np.sin), strict=True):
        np.testing.assert_array_equal(table[:, :2], kept[:, :2])
        np.testing.assert_allclose(table, wave(np.arange(40)[:, None] * np.array(expected)), atol=1e-5)


def test_rope_scaling_changes_the_function_at_long_positions(model, params, rows):
    """A token that sees itself alone is as before; the further what it sees, the more is changed."""
    segment_ids = np.ones_like(rows["segment_ids"])
    plain = hidden(model, params, rows["tokens"], segment_ids)
    scaled = hidden(dataclasses.replace(model, rope_scaling=SCALING), params, rows["tokens"], segment_ids)
    np.testing.assert_array_equal(plain[:, 0], scaled[:, 0])
    change = np.abs(plain - scaled).mean(axis=(0, 2))
    assert change[12:].min() > 1e-3
    assert change[1:4].mean() < change[12:].mean()


def test_angles_of_single_positions_are_those_of_the_table(model):
    model = dataclasses.replace(model, rope_scaling=SCALING)
    positions = jnp.array([17, 0, 4])
    for table, single in zip(transformer.rope_angles(model, 20), transformer.angles_at(model, positions), strict=True):
        np.testing.assert_array_equal(table[positions], single)
    x = jax.random.normal(jax.random.key(2), (3, 1, 2, model.head_dim))
    angles = transformer.angles_at(model, positions)
    together = transformer.rotate(x, *(angle[:, None] for angle in angles))
    for row in range(3):
        np.testing.assert_array_equal(together[row], transformer.rotate(x[row : row + 1], *(a[row : row + 1] for a in angles))[0])


def test_new_lora_pairs_leave_the_bare_model(model, params, lora, adapter, rows):
    """The product of a new pair is zero, bit for bit, and its gradient reaches the second of the pair alone."""
    bare = hidden(model, params, rows["tokens"], rows["segment_ids"])
    both = transformer.with_adapter(params, adapter)
    np.testing.assert_array_equal(bare, hidden(lora, both, rows["tokens"], rows["segment_ids"]))
    gradients = loss_and_grads(lora, both, rows)[1]["blocks"]
    for name, value in adapter["blocks"].items():
        assert (np.abs(value).max() > 0) == ("_a_" in name)
        assert (np.abs(gradients[name]).max() > 0) == ("_b_" in name), name


@pytest.mark.parametrize("scan", [True, False])
def test_lora_equals_merged_weights(model, params, lora, adapter, rows, scan):
    """W + alpha / rank * A B, for each matrix of a block."""
    lora, rng = dataclasses.replace(lora, scan_layers=scan), np.random.default_rng(3)
    adapter = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), adapter)
    merged = dict(params["blocks"])
    for name, (summed, out) in transformer.PROJECTIONS.items():
        pair = adapter["blocks"][f"{name}_a_L{summed}R"], adapter["blocks"][f"{name}_b_LR{out}"]
        merged[f"{name}_L{summed}{out}"] += 9.0 / 6 * np.einsum(f"L{summed}R,LR{out}->L{summed}{out}", *pair)
    ours = hidden(lora, transformer.with_adapter(params, adapter), rows["tokens"], rows["segment_ids"])
    theirs = hidden(model, {**params, "blocks": merged}, rows["tokens"], rows["segment_ids"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert np.abs(theirs - hidden(model, params, rows["tokens"], rows["segment_ids"])).mean() > 0.1


def test_lora_is_the_same_function_however_computed(params, lora, adapter, rows):
    both = transformer.with_adapter(params, jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), adapter))
    usual = loss_and_grads(lora, both, rows)
    other = loss_and_grads(dataclasses.replace(lora, scan_layers=False, remat="attention"), both, rows)
    np.testing.assert_allclose(usual[0], other[0], rtol=1e-6)
    assert_trees_close(usual[1], other[1], rtol=1e-4, atol=1e-5)


def test_names_do_not_lie(lora, params, adapter):
    """Every leaf's shape is the sizes of the letters it is named by; the sizes are all different."""
    assert len(set(lora.sizes.values())) == len(lora.sizes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(transformer.with_adapter(params, adapter)):
        letters = path[-1].key.rpartition("_")[2]
        assert leaf.shape == tuple(lora.sizes[letter] for letter in letters), path
    assert transformer.count_adapter(lora) == sum(leaf.size for leaf in jax.tree.leaves(adapter))


def test_features_have_their_parameters(model, params):
    plain = dataclasses.replace(model, qkv_bias=False, qk_norm=False, tied_embeddings=True)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    plain_names = {
        path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(transformer.init_params(plain, jax.random.key(0)))
    }
    assert names - plain_names == {"bq_LNH", "bk_LKH", "bv_LKH", "q_norm_LH", "k_norm_LH", "unembedding_DV"}
    assert not plain_names - names
    sizes = model.sizes
    assert transformer.count_params(plain) == sizes["V"] * 32 + 32 + 3 * (2 * 32 + 32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 48)


@pytest.mark.parametrize("name", ["qkv_bias", "qk_norm"])
def test_features_change_the_function(model, params, rows, name):
    """Each optional parameter is used: a changed one changes the output."""
    changed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.5 if path[-1].key in {"qkv_bias": ("bv_LKH",), "qk_norm": ("q_norm_LH",)}[name] else leaf,
        params,
    )
    before = hidden(model, params, rows["tokens"], rows["segment_ids"])
    assert not np.allclose(before, hidden(model, changed, rows["tokens"], rows["segment_ids"]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kv_heads": 3}, "model.heads=4"),
        ({"head_dim": 7}, "model.head_dim=7"),
        ({"remat": "fulll"}, "model.remat='fulll'"),
        ({"attention": "flash"}, "model.attention='flash': unknown; one of auto, xla, splash, cudnn"),
        ({"compute_dtype": "float8"}, "model.compute_dtype='float8'"),
    ],
)
def test_bad_shapes_are_named(model, change, named):
    with pytest.raises(BadInput, match=named):
        dataclasses.replace(model, **change)
