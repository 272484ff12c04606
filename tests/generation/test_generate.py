"""Generation: the cache changes nothing, draws follow the model's probabilities, and a row is alone in its batch."""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msmjax.artifact import BadInput
from msmjax.generation import generate as generation
from msmjax.model import transformer
from msmjax.training import sharding

GREEDY = {"placement": sharding.Placement, "stop": (), "max_tokens": 16, "temperature": 0.0, "top_p": 1.0, "seed": 0}
DRAWN = {**GREEDY, "temperature": 1.3, "top_p": 0.9}
CHANGES = {
    "bias, norm, grouped": {},
    "tied, rope scaling": {
        "qkv_bias": False, "qk_norm": False, "tied_embeddings": True, "kv_heads": 4, "rope_scaling": (8.0, 1.0, 4.0, 16.0),
    },
    "lora": {"lora_rank": 6, "lora_alpha": 9.0, "remat": "attention"},
    "lora, loop, one kv head": {"lora_rank": 6, "lora_alpha": 9.0, "scan_layers": False, "kv_heads": 1, "remat": "full"},
}  # fmt: skip
ON_MESH = ("bias, norm, grouped", "lora")


def mesh_of(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)


@functools.cache
def params_of(model, mesh):
    """Random everywhere, biases and norms and both halves of LoRA pairs too, and placed as in training."""
    params = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    if model.lora_rank:
        adapter = jax.eval_shape(lambda: transformer.init_adapter(model, jax.random.key(0)))
        params = transformer.with_adapter(params, adapter)
    rng = np.random.default_rng(5)
    random = jax.tree_util.tree_map_with_path(
        lambda path, leaf: rng.normal("norm" in path[-1].key, 0.2, leaf.shape).astype(np.float32), params
    )
    return jax.device_put(random, sharding.tree_shardings(mesh, params))


@functools.partial(jax.jit, static_argnums=0)
def full_logits(model, params, tokens):
    return transformer.unembed(model, params, transformer.forward(model, params, tokens, jnp.ones_like(tokens)))


def generated(model, params, mesh, prompts, placement, stop, **settings):
    """The new ids of each prompt, whose number is its index."""
    made = [None] * len(prompts)
    requests = [generation.Request(tuple(ids), generation.Settings(**settings), index) for index, ids in enumerate(prompts)]
    for index, one in generation.generate(model, params, mesh, requests, placement=placement, stop=stop):
        assert made[index] is None
        assert one.request is requests[index]
        made[index] = one.ids
    return made


def logits_of(model, params, rows):
    """[16, 80, V]: of each row of ids alone, without a cache; causality hides the padding on the right."""
    tokens = np.zeros((16, 80), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return np.asarray(full_logits(model, params, tokens))


def greedy(model, params, prompts, count):
    rows = [list(prompt) for prompt in prompts]
    for _ in range(count):
        logits = logits_of(model, params, rows)
        for index, row in enumerate(rows):
            row.append(int(logits[index, len(row) - 1].argmax()))
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def nucleus(logits, top_p):
    """The ids of the smallest set whose probability reaches top_p, in the plainest way."""
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    ids, total = set(), 0.0
    for token in sorted(range(len(logits)), key=lambda token: (-logits[token], token)):
        if ids and total >= top_p:
            break
        ids.add(token)
        total += probabilities[token]
    return ids


@pytest.fixture(scope="module")
def one():
    return mesh_of(1, 1, 1)


@pytest.fixture(scope="module")
def counting():
    """`sharding.Placement` that counts how often values of the cache were placed: `traced`, and when it ran, `run`."""
    count = collections.Counter()

    class Counted(sharding.Placement):
        def __call__(self, array, letters):
            if letters == "BKSH":
                count["traced"] += 1
                jax.debug.callback(lambda: count.update(run=1))
            return super().__call__(array, letters)

    return Counted, count


@pytest.fixture(scope="module")
def params(model, one):
    return params_of(model, one)


@pytest.fixture(scope="module")
def prompts():
    """Eleven, of 1 to 40 ids, the long ones among the short."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 96, length).tolist() for length in (7, 40, 1, 32, 3, 33, 2, 18, 31, 5, 24)]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_cached_logits_are_those_of_the_whole_forward_pass(model, one, prompts, change):
    """At each step, with the same ids given to both."""
    model = dataclasses.replace(model, **change)
    params, place = params_of(model, one), sharding.Placement(one)
    rows = [prompt + np.random.default_rng(1).integers(0, 96, 12).tolist() for prompt in prompts]
    lengths = np.array([len(prompt) for prompt in prompts])
    tokens = np.zeros((len(prompts), 48), np.int32)
    for index, prompt in enumerate(prompts):
        tokens[index] = (prompt + [95] * 48)[:48]  # what pads is no matter
    expected = logits_of(model, params, rows)
    cache = jax.jit(lambda *a: generation.prefill(model, *a, 16, place))(params, tokens)
    starts = np.full(len(prompts), 13)  # so that the ring begins anew on the way
    decode = jax.jit(lambda *a: generation.decode(model, *a[:4], starts, 16, a[4], place))
    for step in range(12):
        ids = np.array([row[length - 1 + step] for row, length in zip(rows, lengths, strict=True)])
        logits, cache = decode(params, ids, 13 + step, lengths, cache)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(logits[row], expected[row, length - 1 + step], rtol=1e-5, atol=1e-5)


def test_cache_in_bfloat16(model, one, params, prompts):
    model = dataclasses.replace(model, compute_dtype="bfloat16")
    place, tokens = sharding.Placement(one), np.array([prompts[1][:20]])

    @jax.jit
    def last(params):
        cache = generation.prefill(model, params, tokens, 1, place)
        return generation.decode(model, params, tokens[:, 19], 0, np.array([20]), np.array([0]), 1, cache, place)

    logits, cache = last(params)
    assert [(array.shape, array.dtype) for array in cache] == [((3, 1, 2, 8, 21), jnp.bfloat16), ((3, 1, 2, 21, 8), jnp.bfloat16)]
    assert logits.dtype == jnp.float32
    expected = logits_of(model, params, tokens)[0, 19]
    assert np.abs(logits[0] - expected).mean() < 0.02 * np.abs(expected).mean()


@pytest.mark.parametrize(("name", "sizes"), [*((name, (1, 1, 1)) for name in CHANGES), *((name, (2, 2, 2)) for name in ON_MESH)])
def test_greedy_is_the_uncached_continuation(model, prompts, name, sizes):
    model = dataclasses.replace(model, **CHANGES[name])
    mesh = mesh_of(*sizes)
    params = params_of(model, mesh)
    new = generated(model, params, mesh, prompts, **GREEDY)
    assert new == greedy(model, params_of(model, mesh_of(1, 1, 1)), prompts, 16)
    assert len({tuple(ids) for ids in new}) > 8  # not the same everywhere
    assert len({token for ids in new for token in ids}) > 8


def test_max_tokens(model, one, params, prompts):
    longest = generated(model, params, one, prompts, **GREEDY | {"max_tokens": 40})
    assert longest == greedy(model, params, prompts, 40)
    for count in (1, 5):
        new = generated(model, params, one, prompts, **GREEDY | {"max_tokens": count})
        assert new == [ids[:count] for ids in longest]
    assert generated(model, params, one, [], **GREEDY) == []


def test_stop_ids_end_a_row_and_the_others_go_on(model, one, params, prompts):
    whole = generated(model, params, one, prompts, **GREEDY)
    stop = {whole[0][3], whole[1][0], whole[4][9]}
    stopped = generated(model, params, one, prompts, **GREEDY | {"stop": stop})
    assert stopped == [list(itertools.takewhile(lambda token: token not in stop, ids)) for ids in whole]
    lengths = [len(ids) for ids in stopped]
    assert min(lengths) == 0
    assert max(lengths) == 16
    assert len(set(lengths)) > 3


def test_the_loop_ends_when_all_rows_have(model, one, params, prompts, counting):
    placement, count = counting
    short = generated(model, params, one, prompts, **GREEDY)[2][:5]
    jax.effects_barrier()
    before = count["run"]
    new = generated(model, params, one, [prompts[2]] * 3, **GREEDY | {"placement": placement, "stop": {short[4]}})
    jax.effects_barrier()
    assert new == [short[: short.index(short[4])]] * 3 != [[]] * 3
    # Values of each layer, for each id and the stop id; of a prompt of one id nothing is read.
    assert count["run"] - before == model.layers * (len(new[0]) + 1)


def test_draws_follow_the_probabilities(model, one):
    """Pairs of two new ids of 3: the second draw is of the right distribution given the first, and independent of it otherwise."""
    model = dataclasses.replace(model, vocab=3)
    params, prompt, temperature, count = params_of(model, one), [0, 2, 1, 1], 1.7, 3000
    new = generated(model, params, one, [prompt] * count, **GREEDY | {"max_tokens": 2, "temperature": temperature})
    logits = logits_of(model, params, [[*prompt, first] for first in range(3)]).astype(np.float64) / temperature
    softmax = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = count * softmax[0, 3][:, None] * softmax[:3, 4]
    assert expected.min() > 20
    observed = np.zeros((3, 3))
    np.add.at(observed, tuple(np.array(new).T), 1)
    assert ((observed - expected) ** 2 / expected).sum() < 26.1  # 8 degrees of freedom: exceeded with probability .001


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.5, 0.77, 0.95, 0.999])
def test_nucleus_is_the_smallest_set(top_p):
    rng = np.random.default_rng(3)
    logits = np.concatenate([rng.normal(0, 2, (40, 17)), rng.integers(-2, 3, (40, 17))]).astype(np.float32)  # with ties
    kept = np.isfinite(generation.nucleus(jnp.asarray(logits), jnp.full(len(logits), top_p)))
    assert [set(np.flatnonzero(row)) for row in kept] == [nucleus(row, top_p) for row in logits]


def test_nucleus_at_exact_sums():
    logits = jnp.log2(jnp.array([[0.125, 0.5, 0.25, 0.125]])) * jnp.log(2.0)
    for top_p, ids in ((0.5 - 1e-3, {1}), (0.5 + 1e-3, {1, 2}), (0.75 + 1e-3, {0, 1, 2}), (0.875 + 1e-3, {0, 1, 2, 3})):
        assert set(np.flatnonzero(np.isfinite(generation.nucleus(logits, jnp.array([top_p]))[0]))) == ids


@pytest.mark.parametrize("top_p", [1e-6, 0.6])
def test_nothing_is_drawn_outside_the_nucleus(model, one, params, prompts, top_p):
    settings = DRAWN | {"top_p": top_p, "max_tokens": 12}
    new = generated(model, params, one, prompts, **settings)
    logits = logits_of(model, params, [prompt + ids for prompt, ids in zip(prompts, new, strict=True)]) / DRAWN["temperature"]
    ranks = set()
    for prompt, ids, logits_TV in zip(prompts, new, logits, strict=False):
        for position, token in enumerate(ids, len(prompt)):
            assert token in nucleus(logits_TV[position - 1], top_p)
            ranks.add(int((logits_TV[position - 1] > logits_TV[position - 1][token]).sum()))
    assert ranks == {0} if top_p == 1e-6 else len(ranks) > 5


def test_a_row_is_alone(model, one, params, prompts, monkeypatch):
    """Its draws are those of its index, whoever else is in the batch, and wherever in it the row is."""
    new = generated(model, params, one, prompts, **DRAWN)
    assert generated(model, params, one, prompts[:1], **DRAWN) == new[:1]
    assert generated(model, params, one, prompts[:9], **DRAWN) == new[:9]
    others = [prompt if index == 4 else prompt[::-1][:9] for index, prompt in enumerate(prompts)]
    among_others = generated(model, params, one, others, **DRAWN)
    assert among_others[4] == new[4]
    assert among_others[1] != new[1]
    for rows in (1, 4):
        monkeypatch.setattr(generation, "BATCH_ROWS", rows)
        assert generated(model, params, one, prompts, **DRAWN) == new


def test_draws_are_of_seed_and_index(model, one, params, prompts):
    new = generated(model, params, one, prompts, **DRAWN)
    assert generated(model, params, one, prompts, **DRAWN) == new
    assert all(a != b for a, b in zip(generated(model, params, one, prompts, **DRAWN | {"seed": 1}), new, strict=True))
    same = generated(model, params, one, [prompts[0]] * 11, **DRAWN)
    assert same[0] == new[0]
    assert len({tuple(ids) for ids in same}) == 11


def test_a_prompt_with_its_first_new_ids_goes_on_to_the_same(model, one, params, prompts):
    new = generated(model, params, one, prompts, **DRAWN)
    longer = [prompt + ids[:4] for prompt, ids in zip(prompts, new, strict=True)]
    assert generated(model, params, one, longer, **DRAWN | {"max_tokens": 12}) == [ids[4:] for ids in new]


def test_draws_are_the_same_on_a_mesh(model, one, params, prompts):
    mesh = mesh_of(2, 2, 2)
    new = generated(model, params_of(model, mesh), mesh, prompts, **DRAWN)
    assert new == generated(model, params, one, prompts, **DRAWN)


def ragged(count, shared=0):
    """Requests of all kinds: prompts of 1 to 60 ids that begin with the same `shared` ones, other lengths, temperatures, seeds."""
    rng = np.random.default_rng(4)
    common, requests = rng.integers(0, 96, shared).tolist(), []
    for index in range(count):
        ids = (*common, *rng.integers(0, 96, rng.integers(1, 61 - shared)).tolist())
        settings = generation.Settings(int(rng.integers(1, 80)), (0.0, 0.7, 1.3)[index % 3], (1.0, 0.8)[index % 2], index // 2)
        requests.append(generation.Request(ids, settings, index % 5))
    return requests


def made_of(model, params, mesh, requests, stop=(7, 8)):
    settings = {"placement": sharding.Placement, "stop": stop}
    made = dict(generation.generate(model, params, mesh, requests, **settings))
    return [made[index].ids for index in range(len(requests))]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_rows_that_end_make_place(model, one, params, monkeypatch, sizes):
    """In a pool of four or eight rows, whose ring goes round and grows: each as where all have a row of their own at once."""
    requests, mesh = ragged(24), mesh_of(*sizes)
    at_once = made_of(model, params, one, requests)
    monkeypatch.setattr(generation, "RING", 32)
    monkeypatch.setattr(generation, "BATCH_ROWS", 4)
    together = made_of(model, params_of(model, mesh), mesh, requests)
    assert together == at_once
    ends = [len(ids) == request.settings.max_tokens for ids, request in zip(together, requests, strict=True)]
    assert 3 < sum(ends) < 21
    assert max(map(len, together)) > 64


@pytest.mark.parametrize("change", [{}, {"scan_layers": False}], ids=["scanned", "in a loop"])
def test_what_prompts_share_is_read_once(model, one, monkeypatch, change):
    model = dataclasses.replace(model, **change)
    params, requests, read = params_of(model, one), ragged(24, shared=40), []
    requests += [generation.Request(requests[3].ids, generation.Settings(40, 1.0, 1.0, seed)) for seed in range(40)]
    real = generation._Pool._read

    def watched(pool, shared, group):
        read.append(sum(max(len(ids) - shared, 0) for ids, _, _ in group))
        return real(pool, shared, group)

    monkeypatch.setattr(generation, "BATCH_ROWS", 16)
    monkeypatch.setattr(generation, "READ", 16)  # in parts
    monkeypatch.setattr(generation._Pool, "_read", watched)
    together = made_of(model, params, one, requests)
    # Each prompt's own part and at most 31 ids more, a few prompts whole; of those that are the same, nothing.
    assert sum(read) < sum(len(request.ids) for request in requests) / 3
    assert len(set(map(tuple, together[-40:]))) > 20
    monkeypatch.setattr(generation._Pool, "_sources", lambda pool, requests, free: [(0, 0, row) for row in free])
    assert made_of(model, params, one, requests) == together


def test_beginnings_of_one_prompt_are_read_with_it(model, one, monkeypatch):
    """Prompts that are beginnings of the longest take all from it, whatever their lengths, and in whatever order they come."""
    params, read, real = params_of(model, one), [], generation._Pool._read

    def watched(pool, shared, group):
        read.append((sum(max(len(ids) - shared, 0) for ids, _, _ in group), len(group)))
        return real(pool, shared, group)

    ids = tuple(np.random.default_rng(5).integers(0, 96, 60).tolist())
    requests = [generation.Request(ids[:length], generation.Settings(12, 0.0, 1.0, 0)) for length in (33, 60, 41, 52, 20, 7)]
    alone = [made_of(model, params, one, [request])[0] for request in requests]
    monkeypatch.setattr(generation._Pool, "_read", watched)
    assert made_of(model, params, one, requests) == alone
    assert read == [(59, 1), (0, 5)]


def test_who_comes_later_gets_a_row(model, one, params, monkeypatch):
    """A request at a time, while others are at work; rows become more, and each answer is as where all come at once."""
    monkeypatch.setattr(generation, "STEPS", 4)
    requests = ragged(6)
    waiting, given = iter(requests), []

    def take(count):
        given.append(count)
        return list(itertools.islice(waiting, 1))

    settings = {"placement": sharding.Placement, "stop": (7, 8)}
    made = {one.request: one.ids for one in generation.serve(model, params, one, take, **settings)}
    assert [made[request] for request in requests] == made_of(model, params, one, requests)
    assert min(given) < generation.BATCH_ROWS - 2

    rest = iter(ragged(3))
    taken = list(generation.serve(model, params, one, lambda count: next(([one] for one in rest), None), **settings))
    assert len(taken) < 3  # None ends it, whoever is at work


def test_log_probabilities_are_the_models_own(model, one, params):
    requests = ragged(6)
    for _, made in generation.generate(model, params, one, requests, placement=sharding.Placement, stop=(7, 8)):
        ids = np.array([[*made.request.ids, *made.ids]])
        logits = np.asarray(full_logits(model, params, ids))[0, len(made.request.ids) - 1 : -1].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        np.testing.assert_allclose(made.logprobs, expected[np.arange(len(made.ids)), made.ids], rtol=1e-4, atol=1e-4)


def test_few_compilations(model, one, params, prompts, counting):
    """Lengths and counts of one bucket, and all settings, share a compilation."""
    placement, count = counting
    settings = DRAWN | {"placement": placement}
    generated(model, params, one, [prompts[0], prompts[2], prompts[4]], **settings)
    traced = count["traced"]
    changed = settings | {"temperature": 0.0, "top_p": 0.5, "seed": 9, "stop": {5, 6}, "max_tokens": 20}
    generated(model, params, one, [prompts[3], prompts[8], prompts[0], prompts[7]], **changed)
    assert count["traced"] == traced > 0
    generated(model, params, one, [prompts[1]] * 4, **settings)
    assert count["traced"] > traced


@pytest.mark.parametrize(
    ("prompts", "change", "said"),
    [
        ([[1], []], {}, "a prompt has no ids"),
        ([[1], [2, 96]], {}, "a prompt has id 96"),
        ([[3, -1, 5]], {}, "a prompt has id -1"),
        ([[1]], {"stop": {96}}, "stop id 96"),
        ([[1]], {"max_tokens": 0}, "max_tokens=0"),
        ([[1]], {"temperature": -0.5}, "temperature=-0.5"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0"),
        ([[1]], {"top_p": 1.5}, "top_p=1.5"),
        ([[1]], {"seed": -1}, "seed=-1"),
    ],
)
def test_bad_input_is_named(model, one, params, prompts, change, said):
    with pytest.raises(BadInput, match=said):
        generated(model, params, one, prompts, **GREEDY | change)
