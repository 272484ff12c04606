"""One update: the loss's normalization, accumulation, sharding and the optimizer, against peers and golden numbers."""

import dataclasses
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from msmjax.artifact import BadInput
from msmjax.model import transformer
from msmjax.model.shapes import SHAPES
from msmjax.training import sharding
from msmjax.training import step as steps
from msmjax.training.sharding import MeshConfig
from tests.jaxprs import equations

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "step.json"


def mesh_of(data, fsdp, tensor):
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh(
        (data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices
    )


def updates(model, config, mesh, rows, count=1, rate=1e-2):
    """State and metrics after `count` updates on the same rows."""
    state = steps.compile_init(model, config, mesh)(jax.random.key(0))
    metrics = []
    for _ in range(count):
        batch = sharding.place_batch(mesh, len(rows["tokens"]), lambda start, stop: {n: a[start:stop] for n, a in rows.items()})
        state, said = steps.compile_step(model, config, mesh)(state, {}, batch, np.float32(rate))
        metrics.append({name: np.asarray(value).tolist() for name, value in said.items()})
    return jax.device_get(state), metrics


def gradients(state):
    """Adam's first moment after one update is the (clipped) gradient times 1 - b1."""
    return state["optimizer"][1].mu


def assert_close(one, other, rtol, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


@pytest.mark.parametrize("tied", [False, True])
def test_loss_is_the_mean_over_supervised_tokens(model, rows, tied):
    """Against optax on whole logits: position t predicts t + 1 where that is supervised and of the same document."""
    model = dataclasses.replace(model, tied_embeddings=tied)
    params = transformer.init_params(model, jax.random.key(0))
    x_BTD = transformer.forward(model, params, jnp.asarray(rows["tokens"]), jnp.asarray(rows["segment_ids"]))
    logits = transformer.unembed(model, params, x_BTD)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], rows["tokens"][:, 1:])
    counted = rows["loss_mask"][:, 1:] & (rows["segment_ids"][:, 1:] == rows["segment_ids"][:, :-1])
    for chunk in (1, 5, 24, 100):
        ours, counts = steps.row_nats(model, params, rows, chunk)
        np.testing.assert_allclose(ours, (nats * counted).sum(axis=1), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(counts, counted.sum(axis=1))


def test_whole_logits_never_exist(model, step_config, rows):
    """No array of B * T * V elements in the step, forward or backward."""
    mesh = mesh_of(1, 1, 1)
    abstract = steps.abstract_state(model, step_config, mesh)
    jaxpr = str(jax.make_jaxpr(steps.compile_step(model, step_config, mesh))(abstract, {}, rows, np.float32(0)))
    assert "[8,24,32]" in jaxpr  # hidden states do
    assert "[40,96]" in jaxpr  # a chunk's logits do
    for whole in ("8,24,96", "192,96", "5,40,96", "8,25,96", "200,96"):
        assert f"[{whole}]" not in jaxpr


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 24, 100])
def test_gradients_are_those_of_the_nats(model, rows, tied, chunk):
    """`loss_sum` forms its gradient itself: against JAX's of `row_nats`, scaled, so that what comes from outside counts too."""
    model = dataclasses.replace(model, tied_embeddings=tied)
    params = transformer.init_params(model, jax.random.key(0))
    ours, grads = jax.value_and_grad(lambda params: 0.3 * steps.loss_sum(model, params, rows, chunk)[0])(params)
    theirs, expected = jax.value_and_grad(lambda params: 0.3 * jnp.sum(steps.row_nats(model, params, rows, 24)[0]))(params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert_close(grads, expected, rtol=1e-4, atol=1e-5)


def test_gradients_in_bfloat16(model, rows):
    """Near those of float32, and of the same dtype as the parameters, whatever scale comes from outside."""
    params = transformer.init_params(model, jax.random.key(0))

    def gradients_in(dtype):
        there = dataclasses.replace(model, compute_dtype=dtype)
        return jax.grad(lambda params: steps.loss_sum(there, params, rows, 5)[0] / 77)(params)

    def check(exact, rounded):
        assert rounded.dtype == jnp.float32
        # bfloat16 keeps 8 bits: 2^-8 a rounding, some dozens of them forward and back.
        assert np.linalg.norm(exact - rounded) < 0.06 * np.linalg.norm(exact)

    jax.tree.map(check, gradients_in("float32"), gradients_in("bfloat16"))


def test_a_frozen_unembedding_has_no_gradient(model, rows):
    """Products with a side of V: logits and the gradient of hidden states; that of the matrix only where it is trained."""
    lora = with_lora(model)
    adapter, base = (init(lora, jax.random.key(0)) for init in (transformer.init_adapter, transformer.init_params))

    def count(loss, trained):
        products = [each for each in equations(jax.grad(loss), trained) if each.primitive.name == "dot_general"]
        return sum(any(96 in array.aval.shape for array in (*each.invars, *each.outvars)) for each in products)

    assert count(lambda adapter: steps.loss_sum(lora, transformer.with_adapter(base, adapter), rows, 5)[0], adapter) == 2
    assert count(lambda base: steps.loss_sum(model, base, rows, 5)[0], base) == 3


@pytest.mark.parametrize(("answers", "chunks"), [((), 0), ((3, 1), 1), ((5, 5), 1), ((0, 6), 2), ((10, 2), 2), ((11, 11), 3)])
def test_only_what_counts_has_logits(model, rows, monkeypatch, answers, chunks):
    """Rows with so many supervised tokens, wherever they are: chunks of five have logits until the longest row is through."""
    computed, nats, params = [], steps._nats, transformer.init_params(model, jax.random.key(0))

    def counted(*arrays):
        jax.debug.callback(lambda: computed.append(1))
        return nats(*arrays)

    rows = {name: array.copy() for name, array in rows.items()}
    rows["segment_ids"][:] = 1
    rows["loss_mask"][:] = False
    for row, answer in enumerate(answers):
        rows["loss_mask"][row, np.random.default_rng(row).permutation(np.arange(1, 24))[:answer]] = True
    expected = jax.grad(lambda params: jnp.sum(steps.row_nats(model, params, rows, 24)[0]))(params)
    monkeypatch.setattr(steps, "_nats", counted)
    found = jax.grad(lambda params: steps.loss_sum(model, params, rows, 5)[0])(params)
    jax.effects_barrier()
    assert len(computed) == chunks
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulation_equals_one_batch(model, step_config, rows, micro_batches):
    counts = rows["loss_mask"].sum(axis=1)
    assert len(set(counts.tolist())) > 4  # unequal masks, or a mean of means would pass
    mesh = mesh_of(1, 2, 1)
    whole, said = updates(model, step_config, mesh, rows)
    parts, said_parts = updates(model, dataclasses.replace(step_config, micro_batches=micro_batches), mesh, rows)
    assert_close(gradients(whole), gradients(parts), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(said[0]["loss"], said_parts[0]["loss"], rtol=1e-6)
    np.testing.assert_allclose(said[0]["gradient_norm"], said_parts[0]["gradient_norm"], rtol=1e-5)
    assert said[0]["supervised_tokens"] == said_parts[0]["supervised_tokens"]
    assert said[0]["batch"] == said_parts[0]["batch"]


@pytest.mark.parametrize(("shape", "tied"), [((8, 1, 1), False), ((1, 8, 1), False), ((2, 2, 2), True), ((1, 4, 2), False)])
def test_one_device_equals_eight(model, step_config, rows, shape, tied):
    model = dataclasses.replace(model, tied_embeddings=tied)
    one, said_one = updates(model, step_config, mesh_of(1, 1, 1), rows)
    eight, said_eight = updates(model, step_config, mesh_of(*shape), rows)
    np.testing.assert_allclose(said_one[0]["loss"], said_eight[0]["loss"], rtol=1e-6)
    assert said_one[0]["batch"] == said_eight[0]["batch"]
    assert_close(gradients(one), gradients(eight), rtol=1e-4, atol=1e-6)


def test_batch_hash_is_of_everything_in_its_place(rows):
    """A token, a border, a mark or an order that differs anywhere gives another hash."""
    whole = steps.batch_hash(rows).tolist()
    assert steps.batch_hash({name: array.copy() for name, array in rows.items()}).tolist() == whole
    others = [{name: array[::-1] for name, array in rows.items()}, {**rows, "tokens": rows["tokens"][:, ::-1]}]
    for name in rows:
        for place in ((0, 0), (7, 23), (3, 11)):
            changed = rows[name].copy()
            changed[place] = not changed[place] if name == "loss_mask" else changed[place] + 1
            others.append({**rows, name: changed})
    hashes = [steps.batch_hash(other).tolist() for other in others]
    assert whole not in hashes
    assert len(set(map(tuple, hashes))) == len(hashes)
    assert all(one[half] != whole[half] for one in hashes for half in (0, 1))


# Written by hand, not from sharding.RULES.
SPECS = {
    "embedding_VD": P("tensor", "fsdp"),
    "unembedding_DV": P("fsdp", "tensor"),
    "final_norm_D": P("fsdp"),
    "attention_norm_LD": P(None, "fsdp"),
    "mlp_norm_LD": P(None, "fsdp"),
    "wq_LDNH": P(None, "fsdp", "tensor", None),
    "wk_LDKH": P(None, "fsdp", "tensor", None),
    "wv_LDKH": P(None, "fsdp", "tensor", None),
    "wo_LNHD": P(None, "tensor", None, "fsdp"),
    "bq_LNH": P(None, "tensor", None),
    "bk_LKH": P(None, "tensor", None),
    "bv_LKH": P(None, "tensor", None),
    "q_norm_LH": P(None, None),
    "k_norm_LH": P(None, None),
    "w_gate_LDF": P(None, "fsdp", "tensor"),
    "w_up_LDF": P(None, "fsdp", "tensor"),
    "w_down_LFD": P(None, "tensor", "fsdp"),
}
ADAPTER_SPECS = {
    **{f"{name}_a_LDR": P(None, "fsdp", "tensor") for name in ("wq", "wk", "wv", "w_gate", "w_up")},
    "wo_a_LNHR": P(None, "tensor", None, "fsdp"),
    "w_down_a_LFR": P(None, "tensor", "fsdp"),
    "wq_b_LRNH": P(None, "fsdp", "tensor", None),
    "wk_b_LRKH": P(None, "fsdp", "tensor", None),
    "wv_b_LRKH": P(None, "fsdp", "tensor", None),
    "w_gate_b_LRF": P(None, "fsdp", "tensor"),
    "w_up_b_LRF": P(None, "fsdp", "tensor"),
    "wo_b_LRD": P(None, "tensor", "fsdp"),
    "w_down_b_LRD": P(None, "tensor", "fsdp"),
}


@pytest.mark.parametrize(("change", "specs"), [({}, SPECS), ({"lora_rank": 4, "lora_alpha": 8.0}, ADAPTER_SPECS)])
def test_every_leaf_lives_where_its_letters_say(model, step_config, change, specs):
    mesh = mesh_of(2, 2, 2)
    model = dataclasses.replace(model, **change)
    state = steps.compile_init(model, step_config, mesh)(jax.random.key(0))
    seen = {"params": set(), "mu": set(), "nu": set()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = getattr(path[-1], "key", None)
        if name in specs:
            assert leaf.sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, specs[name]), leaf.ndim), path
            seen[next(part for part in seen if part in jax.tree_util.keystr(path))].add(name)
        else:
            assert leaf.ndim == 0, path  # counters
    assert all(names == set(specs) for names in seen.values())


def test_replication_without_need_is_refused(model, step_config, monkeypatch):
    """A large leaf that no letter cuts is refused; copies along `data`, and what is small, are not. By shape alone."""
    large = dataclasses.replace(model, vocab=32_000, width=1024, mlp=2048)
    steps.abstract_state(large, step_config, mesh_of(2, 2, 2))
    monkeypatch.delitem(sharding.RULES, "V")
    steps.abstract_state(model, step_config, mesh_of(2, 2, 2))
    steps.abstract_state(large, step_config, mesh_of(2, 4, 1))
    with pytest.raises(BadInput, match=r"each device would hold 7\d% more bytes of params than its share; at most 2%"):
        steps.abstract_state(large, step_config, mesh_of(2, 2, 2))
    # The optimizer's state is checked by itself: its moments may live elsewhere than what they belong to.
    placed = steps.abstract_state(large, step_config, mesh_of(8, 1, 1))["optimizer"]
    with pytest.raises(BadInput, match="bytes of moments"):
        sharding.check_replication(mesh_of(1, 2, 1), placed, "moments")


def with_lora(model, compute_dtype="float32"):
    return dataclasses.replace(model, lora_rank=4, lora_alpha=8.0, compute_dtype=compute_dtype)


def lora_updates(model, config, mesh, rows, count):
    """The base before and after `count` updates of an adapter on the same rows, the state, and the losses."""
    state = steps.compile_init(model, config, mesh)(jax.random.key(0))
    params = transformer.init_params(model, jax.random.key(1))
    if not model.scan_layers:
        params |= {"blocks": transformer.layers_of(params)}
    base = jax.tree.map(
        lambda leaf, place: jax.device_put(leaf.astype(place.dtype), place.sharding), params, steps.abstract_base(model, mesh)
    )
    before = jax.device_get(base)
    losses = []
    for _ in range(count):
        batch = sharding.place_batch(mesh, len(rows["tokens"]), lambda start, stop: {n: a[start:stop] for n, a in rows.items()})
        state, said = steps.compile_step(model, config, mesh)(state, base, batch, np.float32(1e-2))
        losses.append(float(said["loss"]))
    return before, jax.device_get(base), jax.device_get(state), losses


def test_lora_trains_the_adapter_alone(model, step_config, rows):
    """The base keeps its bits, in the compute dtype; adapter and optimizer are float32; the first loss is the bare model's."""
    lora = with_lora(model, "bfloat16")
    before, after, state, losses = lora_updates(lora, step_config, mesh_of(1, 1, 1), rows, 5)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    assert sum(leaf.size for leaf in jax.tree.leaves(state["params"])) == transformer.count_adapter(lora)
    nats, counts = steps.row_nats(dataclasses.replace(lora, lora_rank=0), before, rows, 5)
    assert losses[0] == pytest.approx(float(nats.sum() / counts.sum()), rel=1e-3)  # another fusion of bfloat16 operations
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_lora_on_one_device_equals_eight(model, step_config, rows, shape):
    lora = dataclasses.replace(with_lora(model), lora_rank=8)
    *_, one, losses = lora_updates(lora, step_config, mesh_of(1, 1, 1), rows, 2)
    *_, eight, losses_eight = lora_updates(lora, step_config, mesh_of(*shape), rows, 2)
    np.testing.assert_allclose(losses, losses_eight, rtol=1e-5)
    assert_close(gradients(one), gradients(eight), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_layers_of_their_own_equal_a_scan(model, step_config, rows, shape):
    """Without a scan the base is a list of layers, placed as the stacks are."""
    lora = dataclasses.replace(with_lora(model), lora_rank=8)
    *_, scanned, losses = lora_updates(lora, step_config, mesh_of(*shape), rows, 2)
    *_, apart, losses_apart = lora_updates(dataclasses.replace(lora, scan_layers=False), step_config, mesh_of(*shape), rows, 2)
    np.testing.assert_allclose(losses, losses_apart, rtol=1e-5)
    assert_close(gradients(scanned), gradients(apart), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 2, 4)])
def test_no_adapter_is_whole_on_every_device(shape):
    """An 8B model's, by shape alone: nothing of it is refused as replicated, on any mesh."""
    fields = {
        "embedding_init": 0.02, "matrix_init": 1.0, "scan_layers": True, "remat": "full", "attention": "xla",
        "compute_dtype": "bfloat16",
    }  # fmt: skip
    llama = transformer.ModelConfig(**SHAPES["llama31_8b"], **fields, lora_rank=64, lora_alpha=128.0)
    config = steps.StepConfig(b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01, clip=1.0, micro_batches=1, loss_chunk=512)
    for placed in (steps.abstract_state(llama, config, mesh_of(*shape))["params"], steps.abstract_base(llama, mesh_of(*shape))):
        held = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(placed))
        assert held * shape[1] * shape[2] <= 1.02 * sum(leaf.size for leaf in jax.tree.leaves(placed))


def test_state_keeps_its_shardings_through_a_step(model, step_config, rows):
    mesh = mesh_of(2, 2, 2)
    state = steps.compile_init(model, step_config, mesh)(jax.random.key(0))
    before = [(leaf.sharding, leaf.ndim) for leaf in jax.tree.leaves(state)]  # the step takes the state's memory over
    batch = sharding.place_batch(mesh, 8, lambda start, stop: {n: a[start:stop] for n, a in rows.items()})
    after, _ = steps.compile_step(model, step_config, mesh)(state, {}, batch, np.float32(1e-3))
    for (old, ndim), leaf in zip(before, jax.tree.leaves(after), strict=True):
        assert leaf.sharding.is_equivalent_to(old, ndim)


def test_optimizer_is_adamw(model, step_config, rows):
    """Two updates against optax.adamw with clipping, on the same gradients."""
    mesh = mesh_of(1, 1, 1)
    state = steps.compile_init(model, step_config, mesh)(jax.random.key(0))
    params = jax.device_get(state["params"])
    decays = jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key.split("_")[0] in ("embedding", "unembedding", "wq", "wk", "wv", "wo", "w"), params
    )
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=decays))
    their_state = theirs.init(params)
    for _ in range(2):

        def loss(params):
            nats, counts = steps.row_nats(model, params, rows, 24)
            return nats.sum() / counts.sum()

        changes, their_state = theirs.update(jax.grad(loss)(params), their_state, params)
        params = optax.apply_updates(params, changes)
    ours, _ = updates(model, step_config, mesh, rows, count=2)
    # Adam divides by the root of the second moment, so a gradient that is rounding noise moves as far as any other.
    assert_close(ours["params"], params, rtol=1e-3, atol=2e-4)


def test_an_empty_mask_is_no_division_by_zero(model, step_config, rows):
    """The loss of no token is zero, and so is its gradient; the loop refuses such a batch."""
    empty = {**rows, "loss_mask": np.zeros_like(rows["loss_mask"])}
    _, said = updates(model, step_config, mesh_of(1, 1, 1), empty)
    assert [said[0][name] for name in ("loss", "supervised_tokens", "gradient_norm")] == [0.0, 0, 0.0]


def test_learning_rate():
    def rate(step):
        return steps.learning_rate(step, 100, 2.0, 10, 0.1)

    assert [rate(0), rate(4), rate(9), rate(10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert rate(55) == pytest.approx(1.1)  # the middle of the cosine
    assert rate(99) > rate(100) == pytest.approx(0.2)
    assert steps.learning_rate(99, 100, 2.0, 10, 0.0) > 0  # the last step learns too


def test_golden_metrics(model, step_config, rows):
    """Three updates give the numbers they gave when they were last looked at (regenerate by hand, with a reason)."""
    _, said = updates(model, step_config, mesh_of(1, 1, 1), rows, count=3)
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 3
    for ours, theirs in zip(said, golden, strict=True):
        assert ours.pop("batch") == theirs.pop("batch")  # exact
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    "config", [MeshConfig(3, 1, 1), MeshConfig(-1, -1, 1), MeshConfig(1, 3, -1), MeshConfig(0, 1, -1), MeshConfig(4, 4, 1)]
)
def test_mesh_that_does_not_fit_the_devices(config):
    with pytest.raises(BadInput, match="mesh"):
        sharding.make_mesh(config)


def test_mesh_takes_all_devices_that_are_left():
    assert dict(sharding.make_mesh(MeshConfig(2, -1, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_mesh_that_does_not_fit_the_shapes(model, step_config):
    with pytest.raises(BadInput, match=r"b[kv]_LKH has K=2, which does not divide by 4"):
        steps.abstract_state(model, step_config, mesh_of(1, 2, 4))


@pytest.mark.parametrize(("platform", "repeats", "asked"), [("gpu", True, True), ("gpu", False, False), ("cpu", True, False)])
def test_only_what_can_repeat_is_asked_to(platform, repeats, asked):
    """One order for the embedding's gradient costs a tenth of a step, and a CPU has it anyway."""
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    options = sharding.Placement(mesh).compiler_options(repeats)
    assert options.get("xla_gpu_enable_scatter_determinism_expander", False) == asked
    assert bool(options) == (platform == "gpu")
