"""Every back end of attention: the same function, and no information where none may go."""

import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from msmjax.artifact import BadInput
from msmjax.model import attention
from msmjax.training import sharding
from tests.jaxprs import equations

B, T, N, K, H = 3, 384, 4, 2, 24
HOPPER = "cudnn needs an NVIDIA GPU of compute capability 9.0 (Hopper) or above, and this is a THIS"


def mesh_of(*sizes):
    devices = jax.devices()[: math.prod(sizes)]
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


@pytest.fixture
def segment_ids():
    """Long and short segments, one of a single token, one whole row, padding at an end; and an id that comes again."""
    ids = np.ones((B, T), np.int32)
    ids[0, 130:], ids[0, 200:], ids[0, 201:], ids[0, 300:] = 2, 3, 4, 0
    ids[1, 5:], ids[1, 17:] = 2, 1
    return ids


@pytest.fixture
def arrays():
    """Queries, keys, values, and a gradient of the output."""
    return tuple(jax.random.normal(jax.random.key(i), (B, T, heads, H)) for i, heads in enumerate((N, K, K, N)))


def offsets_as_documented(q_BTNH, k_BTNH, v_BTNH, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
    """What JAX's cuDNN function says it does with offsets and lengths."""
    assert mask_type == fused.MaskType.PADDING_CAUSAL
    assert k_BTNH.shape == v_BTNH.shape == (B, T, K if attention.grouped_offsets_are_right() else N, H)
    np.testing.assert_array_equal(q_seqlen, kv_seqlen)
    np.testing.assert_array_equal(q_offsets, kv_offsets)
    mask = np.zeros((B, T, T), bool)
    for row, (starts, lengths) in enumerate(zip(np.asarray(q_offsets), np.asarray(q_seqlen), strict=True)):
        assert len(starts) == len(lengths) + 1
        assert starts[-1] == -1
        for start, length in zip(starts, lengths, strict=False):
            mask[row, start : start + length, start : start + length] = np.tril(np.ones((length, length))) if length > 0 else False
    return jax.nn.dot_product_attention(q_BTNH, k_BTNH, v_BTNH, mask=jnp.asarray(mask)[:, None], scale=scale, implementation="xla")


@pytest.fixture(params=["xla, blocks of 128", "xla, blocks of 100", "xla, one block", "splash", "cudnn"])
def back_end(request, monkeypatch):
    """Splash is interpreted; of cuDNN's it is our part, what it is given, with JAX's documentation in place of the kernel."""
    if request.param == "splash":
        return functools.partial(attention.splash, interpret=True)
    if request.param == "cudnn":
        monkeypatch.setattr(fused, "dot_product_attention", offsets_as_documented)
        return functools.partial(attention.cudnn, segments=attention.most_segments(T))
    sizes = {"xla, blocks of 128": 128, "xla, blocks of 100": 100, "xla, one block": 512}
    monkeypatch.setattr(attention, "BLOCK", sizes[request.param])
    return attention.xla


def value_and_gradients(function, arrays, segment_ids):
    """The output, and the gradients of queries, keys and values."""
    *inputs, d_out = arrays
    out, transpose = jax.vjp(lambda *inputs: function(*inputs, attention.segment_starts(jnp.asarray(segment_ids))), *inputs)
    return [np.asarray(array) for array in (out, *transpose(d_out.astype(out.dtype)))]


def test_against_jax_nn(back_end, arrays, segment_ids):
    runs = np.cumsum(np.diff(segment_ids, axis=1, prepend=0) != 0, axis=1)  # an id that comes again is another segment
    mask = jnp.asarray((runs[:, :, None] == runs[:, None]) & np.tril(np.ones((T, T), bool)))

    def theirs(q, k, v, starts):
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")

    ours, expected = (value_and_gradients(function, arrays, segment_ids) for function in (back_end, theirs))
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_masked_against_jax_nn(arrays):
    q, k, v, _ = arrays
    mask = jax.random.bernoulli(jax.random.key(9), 0.5, (B, 2, T))
    theirs = jax.nn.dot_product_attention(q[:, :2], k, v, mask=mask[:, None], implementation="xla")
    np.testing.assert_allclose(
        attention.masked(q[:, :2], k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), mask), theirs, rtol=1e-4, atol=1e-6
    )


def test_nothing_leaks(back_end, arrays, segment_ids):
    """Other tokens in one segment, or in what comes after a position: all else has the same output and gradients, bit for bit."""
    before = value_and_gradients(back_end, arrays, segment_ids)
    inside = np.zeros((B, T), bool)
    inside[0, 130:200] = inside[1, 5:17] = True  # whole segments
    changed = tuple(jnp.where(inside[:, :, None, None], array * 3 + 1, array) for array in arrays)
    after = value_and_gradients(back_end, changed, segment_ids)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one[~inside], other[~inside])
        assert (one[inside] != other[inside]).any(axis=(1, 2)).mean() > 0.9
    later = np.zeros((B, T), bool)
    later[2, 150:] = True
    changed = tuple(jnp.where(later[:, :, None, None], array * 3 + 1, array) for array in arrays)
    np.testing.assert_array_equal(before[0][~later], value_and_gradients(back_end, changed, segment_ids)[0][~later])


def test_bfloat16_is_near_float32(arrays, segment_ids):
    narrow = tuple(array.astype(jnp.bfloat16) for array in arrays)
    exact = value_and_gradients(attention.xla, tuple(array.astype(jnp.float32) for array in narrow), segment_ids)
    rounded = value_and_gradients(attention.xla, narrow, segment_ids)
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == jnp.bfloat16
        assert 0 < np.abs(one.astype(np.float32) - other).mean() / np.abs(other).mean() < 0.01


def test_blocks_that_no_query_sees_are_not_computed(monkeypatch):
    """What is in their values, not even a number, reaches nothing; a block with a key that is seen would spread it."""
    monkeypatch.setattr(attention, "BLOCK", 8)
    ids = np.array([[1] * 16 + [2] * 16])
    arrays = [jax.random.normal(jax.random.key(i), (1, 32, 1, 4)) for i in range(4)]
    arrays[2] = arrays[2].at[:, 8:16].set(jnp.nan)
    found = value_and_gradients(attention.xla, tuple(arrays), ids)
    for array in found:
        assert np.isfinite(array[:, 16:]).all()
    assert np.isfinite(found[0][:, :8]).all()
    assert np.isnan(found[0][:, 8:16]).all()


@pytest.mark.parametrize("name", attention.BACK_ENDS)
def test_remat_keeps_outputs(name, arrays, segment_ids, monkeypatch):
    """The forward pass of attention is in a step once where its outputs are kept, and twice where all is computed again."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    function, mark = {
        "xla": (attention.xla, lambda each: each.primitive.name == "reduce_max"),
        "splash": (attention.splash, lambda each: "splash_mha_fwd" in str(each.params.get("name"))),
        "cudnn": (
            functools.partial(attention.cudnn, segments=4),
            lambda each: each.primitive.name == "dot_product_attention_fwd_wrapper",
        ),
    }[name]
    starts = attention.segment_starts(jnp.asarray(segment_ids))
    function = sharding.Placement(mesh_of(1, 1, 1)).per_device(function, ("BTNH", "BTKH", "BTKH", "BT"), "BTNH")
    inputs = tuple(array.astype(jnp.bfloat16) for array in arrays[:3])

    def count(policy):
        def block(q, k, v):
            return jnp.sum(jnp.sin(function(jnp.cos(q), k, v, starts)).astype(jnp.float32))

        step = jax.value_and_grad(jax.checkpoint(block, policy=policy), argnums=(0, 1, 2))
        return sum(mark(each) for each in equations(step, *inputs, needed=True))

    assert count(attention.keep_outputs) == 1
    assert count(None) == 2


def lowered_for_cudnn(monkeypatch, arrays, segment_ids, segments: int) -> dict[str, str]:
    """For a GPU that is not here: the line of each kernel, with its operands and settings."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    starts, d_out = attention.segment_starts(jnp.asarray(segment_ids)), arrays[3].astype(jnp.bfloat16)

    def both(q, k, v):
        out, transpose = jax.vjp(lambda *inputs: attention.cudnn(*inputs, starts, segments), q, k, v)
        return out, transpose(d_out)

    inputs = tuple(array.astype(jnp.bfloat16) for array in arrays[:3])
    lines = jax.jit(both).trace(*inputs).lower(lowering_platforms=("cuda",)).as_text().splitlines()
    kernels = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
    return {kernel: next(line for line in lines if f"custom_call @{kernel}(" in line) for kernel in kernels}


@pytest.mark.parametrize("grouped", [True, False])
def test_cudnn_is_called_with_packed_segments(arrays, segment_ids, monkeypatch, grouped):
    """With the heads of keys that there are, where JAX finds them, and else with one for every head of queries."""
    monkeypatch.setattr(attention, "grouped_offsets_are_right", lambda: grouped)
    heads = K if grouped else N
    for call in lowered_for_cudnn(monkeypatch, arrays, segment_ids, 5).values():
        assert "max_seg_per_batch\\22: 5" in call
        assert "mask_type\\22: \\22PADDING_CAUSAL" in call
        assert f"(tensor<{B}x{T}x{N}x{H}xbf16>, tensor<{B}x{T}x{heads}x{H}xbf16>, tensor<{B}x{T}x{heads}x{H}xbf16>, " in call


def test_cudnn_is_called_with_whole_rows(arrays, segment_ids, monkeypatch):
    """Where no row has more than one segment, nothing is said of segments."""
    for call in lowered_for_cudnn(monkeypatch, arrays, np.zeros_like(segment_ids), 1).values():
        assert "mask_type\\22: \\22CAUSAL" in call
        assert f"(tensor<{B}x{T}x{N}x{H}xbf16>, tensor<{B}x{T}x{K}x{H}xbf16>, tensor<{B}x{T}x{K}x{H}xbf16>" in call
        assert "xi32>" not in call


@pytest.mark.parametrize("right", [True, False])
def test_offsets_of_grouped_keys_are_tried_out(monkeypatch, right):
    """JAX before its pull request 39521 multiplied the offsets of keys by the heads of queries."""

    def fix(q_seqlen, kv_seqlen, q_offsets, kv_offsets, query, key):
        stride = (key if right else query).shape[2] * 8
        return q_seqlen, kv_seqlen, q_offsets, kv_offsets * stride

    monkeypatch.setattr(fused, "_fix_seqlen_offsets", fix)
    assert attention.grouped_offsets_are_right.__wrapped__() == right


def test_more_segments_than_cudnn_has_place_for(arrays, monkeypatch):
    """Not a number, so that training stops, and not a segment left out."""
    monkeypatch.setattr(fused, "dot_product_attention", offsets_as_documented)
    for count in (6, 7):
        ids = jnp.broadcast_to(jnp.minimum(jnp.arange(T) // 3, count - 1)[None], (B, T))
        out = attention.cudnn(*arrays[:3], attention.segment_starts(ids), 6)
        assert bool(jnp.isnan(out).any()) == (count > 6)


@pytest.mark.parametrize(
    ("name", "platform", "change", "said"),
    [
        ("splash", "cpu", {}, r"needs a TPU, and this is a cpu"),
        ("splash", "tpu", {"length": 192}, r"needs rows of a multiple of 128 tokens, and these have 192"),
        ("cudnn", "cpu", {}, r"needs an NVIDIA GPU of compute capability 9.0 \(Hopper\) or above, and this is a cpu"),
        ("cudnn", "gpu", {"capability": "8.6"}, r"9.0 \(Hopper\) or above, and this is a gpu 8.6"),
        ("cudnn", "gpu", {"capability": "gfx942"}, r"9.0 \(Hopper\) or above, and this is a gpu gfx942"),
        ("cudnn", "gpu", {}, r"needs model.compute_dtype='bfloat16', not 'float32'"),
        ("cudnn", "gpu", {"dtype": "bfloat16", "head_dim": 20}, r"a head_dim that is a multiple of 8 and at most 256, not 20"),
    ],
)
def test_what_a_back_end_cannot_do_is_refused(name, platform, change, said):
    asked = {"length": 256, "head_dim": 24, "dtype": "float32", "capability": "9.0" if platform == "gpu" else "", **change}
    with pytest.raises(BadInput, match=rf"^model\.attention='{name}': .*{said}; model\.attention='xla' runs anywhere$"):
        attention.check(name, platform, **asked)


def test_rows_with_too_many_segments_are_refused(segment_ids):
    many = np.concatenate([segment_ids, np.arange(T)[None] // 50])
    for segments, most in ((0, T // attention.CUDNN_SEGMENT), (5, 5)):
        attention.check_segments("cudnn", segment_ids, segments)
        attention.check_segments("xla", many, segments)
        with pytest.raises(BadInput, match=rf"a row has 8 documents and padding, and there is place for {most}; "):
            attention.check_segments("cudnn", many, segments)


@pytest.mark.parametrize(
    ("platform", "change", "name", "why"),
    [
        ("cpu", {}, "xla", ""),
        ("tpu", {}, "splash", ""),
        ("tpu", {"length": 192}, "xla", "splash needs rows of a multiple of 128 tokens, and these have 192"),
        ("gpu", {}, "cudnn", ""),
        ("gpu", {"dtype": "float32"}, "xla", "cudnn needs model.compute_dtype='bfloat16', not 'float32'"),
        ("gpu", {"capability": "8.0"}, "xla", HOPPER.replace("THIS", "gpu 8.0")),
    ],
)  # fmt: skip
def test_auto_is_the_fastest_that_can_be(platform, change, name, why):
    asked = {"length": 256, "head_dim": 24, "dtype": "bfloat16", "capability": "9.0" if platform == "gpu" else "", **change}
    assert attention.resolve("auto", platform, **asked) == (name, why)
    assert attention.resolve("xla", platform, **asked) == ("xla", "")
    if name == "xla" and platform != "cpu":
        with pytest.raises(BadInput):
            attention.resolve({"tpu": "splash", "gpu": "cudnn"}[platform], platform, **asked)


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_none_falls_back(name, arrays, segment_ids):
    with pytest.raises(BadInput, match="and this is a cpu"):
        attention.attention(name, *arrays[:3], attention.segment_starts(jnp.asarray(segment_ids)), attention.ONE_DEVICE)


def test_each_device_has_its_own_rows_and_heads(arrays, segment_ids):
    """On a mesh, no row or head is gathered: as on one device, from operands that stay where they are."""
    mesh = mesh_of(1, 3, 2)
    place, starts = sharding.Placement(mesh), attention.segment_starts(jnp.asarray(segment_ids))
    placed = [jax.device_put(a, jax.sharding.NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))) for a in arrays[:3]]
    step = jax.jit(lambda *inputs: attention.attention("xla", *inputs, starts, place))
    np.testing.assert_array_equal(step(*placed), attention.xla(*arrays[:3], starts))
    text = step.lower(*placed).compile().as_text()
    assert not re.search("all-(gather|reduce|to-all)|collective-permute", text)


def leaky(q_BTNH, k_BTKH, v_BTKH, starts_BT):
    return attention.xla(q_BTNH, k_BTKH, v_BTKH, jnp.zeros_like(starts_BT))


def backwards(q_BTNH, k_BTKH, v_BTKH, starts_BT):
    return attention.xla(q_BTNH, k_BTKH, v_BTKH[:, :, ::-1], starts_BT)


@pytest.mark.parametrize(
    ("kernel", "said"), [(None, ""), (leaky, "lets what is in one document change another"), (backwards, "is not the function")]
)
def test_a_kernel_is_proven_where_it_runs(monkeypatch, kernel, said):
    """A kernel that reads across documents, and one that mixes up its heads, are found before anything is trained with them."""
    own = attention.xla
    monkeypatch.setattr(attention, "check", lambda *_: None)
    monkeypatch.setattr(attention, "splash", kernel or own)
    prove = functools.partial(attention.prove, "splash", N, K, H, "bfloat16", jax.devices()[0])
    if not said:
        prove()
        return
    with pytest.raises(
        BadInput, match=rf"^model\.attention='splash': on this cpu, with jax .*, it {said}.* model\.attention='xla'$"
    ):
        prove()


def test_rows_are_bound_by_the_config_alone():
    """Whatever machine packs them; and the place in a step holds what they have, and never more than they may."""
    bounds = [attention.bound_of_rows(name, 4096, "bfloat16") for name in ("auto", "cudnn", "xla", "splash")]
    assert bounds == [64, 64, 0, 0]
    assert attention.bound_of_rows("auto", 4096, "float32") == 0
    assert [attention.place_for(found, 6000) for found in (1, 4, 5, 9, 64, 65, 93)] == [4, 4, 8, 16, 64, 93, 93]


def test_nothing_is_computed_by_itself_within_a_device_s_part(monkeypatch):
    """Where nobody compiles, jax 0.11 has no values there: what decides about keys is asked before."""
    asked = []

    class Place:
        device = types.SimpleNamespace(platform="gpu", compute_capability="9.0")

        def per_device(self, *_):
            assert asked
            return lambda *arrays: arrays[0]

    monkeypatch.setattr(attention, "grouped_offsets_are_right", lambda: asked.append(1) or True)
    q_BTNH = jnp.zeros((1, 8, 4, 8), jnp.bfloat16)
    attention.attention("cudnn", q_BTNH, q_BTNH, q_BTNH, jnp.zeros((1, 8), jnp.int32), Place())
