"""The loss and one optimizer update, as pure functions that are compiled once for all stages of an experiment.

In: the train state (a dict of params, optimizer state, step), a batch, a learning rate. Out: the next state and metrics.
"""

import dataclasses
import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from msmjax.model.attention import ONE_DEVICE
from msmjax.model.transformer import ModelConfig, forward, init_adapter, init_params, unembed, unembedding, unstack, with_adapter
from msmjax.ranges import Count, Natural, NotNegative, Positive, Range
from msmjax.training import sharding


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the compiled step depends on beside the model: it is the same for all stages."""

    b1: Annotated[float, Range("[0, 1)")]
    b2: Annotated[float, Range("[0, 1)")]
    epsilon: Positive
    weight_decay: NotNegative  # decoupled, on matrices and embeddings only
    clip: Annotated[float, Range("(0, inf]")]  # global norm of the gradient
    micro_batches: Natural  # gradient accumulation: the batch is cut into this many; 0: as few as fit the machine (fit.py)
    loss_chunk: Count  # positions of a row whose logits exist at a time


def row_nats(
    config: ModelConfig, params: dict, batch: dict[str, jax.Array], chunk: int, place=ONE_DEVICE, segments: int = 0
) -> tuple[jax.Array, jax.Array]:
    """For each row, the sum of next-token cross-entropy over its supervised tokens in float32 nats, and their number: two [B].

    Logits exist for `chunk` positions of each row at a time, never [B, T, V]. To be differentiated, take `loss_sum`.
    """
    x_BTD = forward(config, params, batch["tokens"], batch["segment_ids"], place, segments)
    targets_BT, counts_BT = _predicted(batch)

    def add_chunk(total_B, part):
        logits_XV = unembed(config, params, part[0])
        nats_X, _ = _nats(logits_XV, *part[1:])
        return total_B + jnp.sum(nats_X.reshape(len(total_B), -1), axis=1), None

    total_B, _ = jax.lax.scan(add_chunk, jnp.zeros(len(x_BTD), jnp.float32), _in_chunks(chunk, x_BTD, targets_BT, counts_BT))
    return total_B, jnp.sum(counts_BT, axis=1)


def loss_sum(
    config: ModelConfig, params: dict, batch: dict[str, jax.Array], chunk: int, place=ONE_DEVICE, segments: int = 0
) -> tuple[jax.Array, jax.Array]:
    """What `row_nats` says, summed over rows; made to be differentiated.

    The gradient of the logits is formed with them, in the forward pass: no logits are kept, and none are computed again. Positions
    that predict nothing have none at all, but for those that fill up a chunk.
    """
    x_BTD = forward(config, params, batch["tokens"], batch["segment_ids"], place, segments)
    targets_BT, counts_BT = _predicted(batch)
    chunk = min(chunk, targets_BT.shape[1])
    weights, letters = unembedding(config, params)
    with jax.named_scope("loss"):
        return _cross_entropy(letters, chunk, x_BTD, weights, targets_BT, counts_BT), jnp.sum(counts_BT)


def _predicted(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Position t predicts token t + 1, if that is supervised and of the same segment: targets, and whether they count, [B, T]."""
    same_BT = jnp.roll(batch["segment_ids"], -1, axis=1) == batch["segment_ids"]
    counts_BT = (jnp.roll(batch["loss_mask"], -1, axis=1) & same_BT).at[:, -1].set(False)
    return jnp.roll(batch["tokens"], -1, axis=1), counts_BT


def _in_chunks(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[B, T, ...] as [chunks, X, ...], where X is B x `chunk`; the last is filled up with zeros."""
    B, T = arrays[0].shape[:2]
    chunks = -(-T // chunk)

    def cut(array):
        array = jnp.pad(array, [(0, 0), (0, chunks * chunk - T)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(array.reshape(B, chunks, chunk, *array.shape[2:]), 1, 0).reshape(chunks, B * chunk, *array.shape[2:])

    return tuple(map(cut, arrays))


def _nats(logits_XV, targets_X, counts_X) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats, 0 where it does not count, and the logarithms of the sums of exponentials, two [X]."""
    right_X = jnp.take_along_axis(logits_XV, targets_X[:, None], axis=-1)[:, 0]
    sums_X = jax.nn.logsumexp(logits_XV, axis=-1)
    # `where` and not a product: what a padding position computes can never reach the sum.
    return jnp.where(counts_X, sums_X - right_X, 0.0), sums_X


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(letters: str, chunk: int, x_BTD, weights, targets_BT, counts_BT) -> jax.Array:
    """The sum of nats; `weights` [D, V] or [V, D], as `letters` says."""
    return _cross_entropy_and_gradients(letters, chunk, x_BTD, weights, targets_BT, counts_BT, trained=False)[0]


def _cross_entropy_forward(letters, chunk, *primals):
    # `perturbed`: a frozen matrix, as with LoRA, has no gradient to compute.
    return _cross_entropy_and_gradients(letters, chunk, *(primal.value for primal in primals), trained=primals[1].perturbed)


def _cross_entropy_and_gradients(letters, chunk, x_BTD, weights, targets_BT, counts_BT, trained: bool):
    narrow, product = weights.astype(x_BTD.dtype), functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # What counts comes first in each row, and chunks that no row needs have no logits: of chats, only the answers have any.
    order_BT = jnp.argsort(~counts_BT, axis=1)
    ordered = (_take(x_BTD, order_BT), _take(targets_BT, order_BT), _take(counts_BT, order_BT))
    x, targets, counts = _in_chunks(chunk, *ordered)
    needed = -(-jnp.max(jnp.sum(counts_BT, axis=1)) // chunk)

    def add_chunk(index, carry):
        total, d_weights, d_x = carry
        x_XD, targets_X, counts_X = x[index], targets[index], counts[index]
        logits_XV = product(f"XD,{letters}->XV", x_XD, narrow)
        nats_X, sums_X = _nats(logits_XV, targets_X, counts_X)
        d_logits_XV = jnp.exp(logits_XV - sums_X[:, None]) - jax.nn.one_hot(targets_X, logits_XV.shape[1])
        d_logits_XV = jnp.where(counts_X[:, None], d_logits_XV, 0.0).astype(x_XD.dtype)
        if trained:
            d_weights += product(f"XD,XV->{letters}", x_XD, d_logits_XV)
        d_x = d_x.at[index].set(product(f"XV,{letters}->XD", d_logits_XV, narrow).astype(d_x.dtype))
        return total + jnp.sum(nats_X), d_weights, d_x

    start = (jnp.float32(0), jnp.zeros(weights.shape, jnp.float32) if trained else None, jnp.zeros_like(x))
    total, d_weights, d_x = jax.lax.fori_loop(0, needed, add_chunk, start)
    B, T, D = x_BTD.shape
    d_x_BTD = jnp.moveaxis(d_x.reshape(-1, B, chunk, D), 0, 1).reshape(B, -1, D)[:, :T]
    d_x_BTD = _take(d_x_BTD, jnp.argsort(order_BT, axis=1))
    return total, (d_x_BTD, None if d_weights is None else d_weights.astype(weights.dtype))


def _take(array_BT, places_BT):
    """[B, T, ...]: of each row, what is at its places."""
    return jax.vmap(lambda array_T, places_T: array_T[places_T])(array_BT, places_BT)


def _cross_entropy_backward(letters, chunk, gradients, d_total):
    d_x_BTD, d_weights = jax.tree.map(lambda gradient: (gradient * d_total).astype(gradient.dtype), gradients)
    return d_x_BTD, d_weights, None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward, symbolic_zeros=True)


def batch_hash(batch: dict[str, jax.Array]) -> jax.Array:
    """64 bits, as uint32 [2], of what is in which place of the global batch.

    A sum of hashed (place, token, segment, supervised): integers add up to the same in any order and on any devices, so that
    equal batches have equal hashes on every mesh and any number of hosts.
    """

    def mix(x):  # the finalizer of MurmurHash3: every bit of the input moves every bit of the output
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    places_BT = jnp.arange(batch["tokens"].size, dtype=jnp.uint32).reshape(batch["tokens"].shape)
    said_BT = batch["segment_ids"].astype(jnp.uint32) * 2 + batch["loss_mask"]
    words_BT = mix(batch["tokens"].astype(jnp.uint32) + mix(said_BT + mix(places_BT)))
    return jnp.stack([jnp.sum(mix(words_BT + jnp.uint32(salt)), dtype=jnp.uint32) for salt in (0, 1)])


def optimizer(config: StepConfig) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step multiplies in: so one compilation serves every stage."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=_decayed),
    )


def _decayed(params: dict) -> dict:
    """Which parameters decay: embeddings and matrices, not norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.startswith(("w", "embedding", "unembedding")), params)


def init_state(model: ModelConfig, step: StepConfig, key: jax.Array) -> dict:
    """What is trained, its optimizer state and step 0: all parameters, or with LoRA the adapter alone."""
    params = init_adapter(model, key) if model.lora_rank else init_params(model, key)
    return {"params": params, "optimizer": optimizer(step).init(params), "step": jnp.int32(0)}


def abstract_state(model: ModelConfig, step: StepConfig, mesh: Mesh | AbstractMesh) -> dict:
    """The state's shapes, each leaf with its sharding: optimizer leaves are named as the parameters they belong to.

    Raises BadInput where the mesh does not divide the shapes, or leaves too much on every device.
    """
    return _place(mesh, jax.eval_shape(lambda: init_state(model, step, jax.random.key(0))), ("params", "optimizer"))


def abstract_base(model: ModelConfig, mesh: Mesh | AbstractMesh) -> dict:
    """The shapes and shardings of what is not trained: with LoRA all parameters, in the compute dtype; else nothing, {}.

    Where layers are not scanned, `blocks` is a list with the arrays of each: a product on a GPU reads a whole array, and would
    first copy its part of a stack.
    """
    if not model.lora_rank:
        return {}
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    if not model.scan_layers:
        params |= {"blocks": jax.eval_shape(lambda blocks: unstack(blocks, model.layers), params["blocks"])}
    dtype = jnp.dtype(model.compute_dtype)
    return _place(mesh, {"base": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), params)}, ("base",))["base"]


def _place(mesh: Mesh | AbstractMesh, abstract: dict, checked: tuple[str, ...]) -> dict:
    places = sharding.tree_shardings(mesh, abstract)
    abstract = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, places)
    for part in checked:
        sharding.check_replication(mesh, abstract[part], part)
    return abstract


def _shardings(abstract: dict) -> dict:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


@functools.lru_cache(maxsize=8)
def compile_init(model: ModelConfig, step: StepConfig, mesh: Mesh):
    """`init(key) -> state`, each leaf made where it lives."""
    shardings = _shardings(abstract_state(model, step, mesh))
    return jax.jit(lambda key: init_state(model, step, key), out_shardings=shardings)


@functools.lru_cache(maxsize=8)
def compile_step(model: ModelConfig, config: StepConfig, mesh: Mesh, segments: int = 0):
    """`step(state, base, batch, learning_rate) -> state, metrics`: jitted, sharded, the state donated.

    No row has more than `segments`, if that is not 0 (model/attention.py).

    `base` is what `abstract_base` says; no gradient of it is computed. Gradients of the loss sums of the micro-batches are added,
    then divided by the number of supervised tokens of the whole batch, so that accumulation changes nothing but memory.
    """
    transform = optimizer(config)
    place = sharding.Placement(mesh)
    shardings, base_shardings = _shardings(abstract_state(model, config, mesh)), _shardings(abstract_base(model, mesh))
    rows, scalar = NamedSharding(mesh, sharding.spec("BT")), NamedSharding(mesh, PartitionSpec())

    def step(state, base, batch, learning_rate):
        params = state["params"]

        def loss_fn(params, micro_batch):
            whole = with_adapter(base, params) if model.lora_rank else params
            return loss_sum(model, whole, micro_batch, config.loss_chunk, place, segments)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        if config.micro_batches == 1:
            (total, count), grads = grad_fn(params, batch)
        else:

            def accumulate(carry, micro_batch):
                micro_batch = {name: place(array, "BT") for name, array in micro_batch.items()}
                (total, count), grads = grad_fn(params, micro_batch)
                return jax.tree.map(jnp.add, carry, (total, count, grads)), None

            # Row b goes to micro-batch b % A: every device keeps its own rows.
            micro = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, config.micro_batches, a.shape[1]), 1, 0), batch)
            zero = (jnp.float32(0), jnp.int32(0), jax.tree.map(jnp.zeros_like, params))
            (total, count, grads), _ = jax.lax.scan(accumulate, zero, micro)
        tokens = jnp.maximum(count, 1).astype(jnp.float32)
        with jax.named_scope("optimizer"):
            grads = jax.tree.map(lambda grad: grad / tokens, grads)
            updates, optimizer_state = transform.update(grads, state["optimizer"], params)
            params = jax.tree.map(lambda param, update: param - learning_rate * update, params, updates)
        metrics = {
            "loss": total / tokens,
            "supervised_tokens": count,
            "gradient_norm": optax.tree.norm(grads),
            "batch": batch_hash(batch),
        }
        return {"params": params, "optimizer": optimizer_state, "step": state["step"] + 1}, metrics

    places = (shardings, base_shardings, rows, scalar)
    return jax.jit(
        step, in_shardings=places, out_shardings=(shardings, scalar), donate_argnums=0,
        compiler_options=place.compiler_options(repeats=model.attention == "xla"),  # cuDNN's own sums are in any order
    )  # fmt: skip


def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float) -> float:
    """Linear warm-up to `peak`, then a cosine that is at `final` times the peak one step after the last: no step trains at 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
