"""Generation: requests are continued together, in the rows of one cache of keys and values.

In: parameters, and requests: prompts as ids, each with its settings. Out: the new ids of each, as each ends.

A row of the cache has P columns for a prompt and a ring of M for new tokens. At step t all rows write to column P + t mod M: one
write a step, wherever their prompts end and whenever they began. Rotary positions are the row's own, without the gap: a row's
logits are those that `forward` computes of its ids alone. A row that ends makes place for the next request. What it read of its
prompt stays until then: a prompt that begins like one that was read takes that over, and reads the rest (300 answers to one prompt
read it once). Rows are as many as those at work need, and the ring
grows with the longest answer.
"""

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Collection, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from msmjax.artifact import BadInput
from msmjax.model.transformer import ModelConfig, angles_at, forward_cached, layers_of, prefill, unembed

BATCH_ROWS = 64  # requests continued at a time
COLUMNS = 32  # columns are this times a power of two
RING = 128  # columns for new tokens, until a row has more
FEW = 8  # rows, of which half would take as long
STEPS = 32  # after which who came meanwhile gets a row
READ = 256  # tokens of a prompt read at a time behind what it took over: their scores exist as a whole


@dataclasses.dataclass(frozen=True)
class Settings:
    """Temperature 0 takes the likeliest id; above 0, the logits are divided by it, and the next id is drawn from the fewest
    likeliest whose probability reaches `top_p`. Without a seed, whoever answers takes another each time."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A prompt and how it is continued. The noise of a draw is made of the seed, `number` and the new id's position alone, so an
    answer does not depend on who else is answered (it may by rounding, where two ids are as likely), and a prompt that already has
    some of its new ids goes on to the same ones."""

    ids: tuple[int, ...]
    settings: Settings
    number: int = 0


@dataclasses.dataclass(frozen=True)
class Made:
    """The new ids of a request, without the stop id that ended them: fewer than `max_tokens` if and only if one did; and the
    log-probability of each, in nats, by the model alone: before temperature and `top_p`."""

    request: Request
    ids: list[int]
    logprobs: list[float]


def generate(
    model: ModelConfig, params: dict, mesh: Mesh, requests: list[Request], *, placement, stop: Collection[int]
) -> Iterator[tuple[int, Made]]:
    """`serve` for requests that are all there: each one's index, and what was made of it, as they end. Raises BadInput as `check`
    does."""
    for request in requests:
        check(model, request)
    # Of like length together, the shortest first, and what is alike one after the other.
    waiting = iter(sorted(requests, key=lambda request: (len(request.ids), request.ids)))
    indices = {request: index for index, request in enumerate(requests)}

    def take(count: int) -> list[Request]:
        return list(itertools.islice(waiting, count))

    for made in serve(model, params, mesh, take, placement=placement, stop=stop):
        yield indices[made.request], made


def serve(
    model: ModelConfig,
    params: dict,
    mesh: Mesh,
    take: Callable[[int], list[Request] | None],
    *,
    placement: Callable[[Mesh], Callable],
    stop: Collection[int],
) -> Iterator[Made]:
    """What is made of the requests that `take` gives, as each ends, until it gives none and all have ended.

    `take(n)` gives at most n, and is asked again every few steps; None ends it at once. `placement` is training.sharding.Placement.
    Requests are those that `check` lets pass.
    """
    for token in stop:
        if not 0 <= token < model.vocab:
            raise BadInput(f"stop id {token}: the model has {model.vocab} ids")
    # Once, and not at each step.
    params = jax.tree.map(lambda array: array.astype(model.compute_dtype), params)
    if not model.scan_layers:
        params |= {"blocks": layers_of(params)}
    pool = _Pool(model, params, mesh, placement, np.isin(np.arange(model.vocab), list(stop)))
    most = bucket(BATCH_ROWS, mesh.size)
    while (new := take(most - len(pool.at_work()))) or pool.at_work():
        if new is None:
            return
        is_full = len(new) == most - len(pool.at_work())
        if new:
            pool.seat(new)
        yield from pool.advance(is_full)


class _Pool:
    """The cache and who has its rows."""

    def __init__(self, model: ModelConfig, params: dict, mesh: Mesh, placement, stops_V: np.ndarray):
        self.model, self.params, self.mesh, self.stops_V = model, params, mesh, stops_V
        self.run = _compile(model, mesh, placement)
        self.step = 0
        self.rows: list[_Row | None] = []
        self.read: list[tuple[int, ...]] = []  # of each row, the ids whose keys and values are in its columns for a prompt
        self.width = self.ring = 0  # P and M
        # Of each layer keys [.., B, K, H, S] and values [.., B, K, S, H]; new ids and their log-probabilities, [B, M].
        self.cache = self.new = self.logprobs = None

    def at_work(self) -> list[int]:
        return [index for index, row in enumerate(self.rows) if row]

    def seat(self, requests: list[Request]) -> None:
        """Gives each request a row that has read its prompt, but for the last id: that is the first to be continued."""
        at_work = self.at_work()
        longest = max(len(request.ids) - 1 for request in [*requests, *(self.rows[index].request for index in at_work)])
        count, width = bucket(len(at_work) + len(requests), self.mesh.size), bucket(longest, COLUMNS)
        ring = max(self.ring, bucket(min(RING, max(request.settings.max_tokens for request in requests)), COLUMNS))
        if not at_work or count > len(self.rows) or width > self.width or ring > self.ring:
            self._resize(max(count, len(self.rows) if at_work else 0), max(width, self.width if at_work else 0), ring)
        free = [index for index, row in enumerate(self.rows) if not row][: len(requests)]
        groups = {}
        # The longest first: who is the beginning of another takes it over from there.
        requests = sorted(requests, key=lambda request: -len(request.ids))
        for request, row, (turn, shared, source) in zip(requests, free, self._sources(requests, free), strict=True):
            if turn and shared == len(request.ids) - 1:
                shared = self.width  # nothing is left to read, whatever the length
            groups.setdefault((turn, shared), []).append((request.ids[:-1], row, source))
            self.rows[row] = _Row(request, self.step, request.ids[-1])
            self.read[row] = request.ids[:-1]
        for (_, shared), group in sorted(groups.items(), key=lambda item: item[0]):
            self._read(shared, group)

    def _sources(self, requests: list[Request], free: list[int]) -> list[tuple[int, int, int]]:
        """For each request, whose row `free` will be: when it can read, how much of its prompt another row has read by then, and
        which. Rows that keep what they have are ready from the start, at turn 0; who takes over from one of turn n has turn n + 1.
        """
        known_BP = np.full((len(self.rows), self.width), -1, np.int32)
        turns_B = np.zeros(len(self.rows), np.int32)
        for row, ids in enumerate(self.read):
            if row not in free:
                known_BP[row, : len(ids)] = ids
        found = []
        for request, row in zip(requests, free, strict=True):
            ids = request.ids[:-1]
            alike_B = np.cumprod(known_BP[:, : len(ids)] == np.array(ids, np.int32), axis=1).sum(axis=1)
            source = int(np.lexsort((turns_B, -alike_B))[0])
            shared = int(alike_B[source])
            if shared < len(ids):
                shared -= shared % COLUMNS
            if 2 * shared < len(ids) or not ids:  # to read all of it at once is as fast
                found.append((0, 0, row))
            else:
                found.append((int(turns_B[source]) + 1, shared, source))
            known_BP[row, : len(ids)], turns_B[row] = ids, found[-1][0]
        return found

    def _read(self, shared: int, group: list[tuple[tuple[int, ...], int, int]]) -> None:
        """Reads the prompts of (ids, row, source) behind the first `shared` ids, which each takes over from its source."""
        count = bucket(len(group), self.mesh.size)
        nobody = [len(self.rows)] * (count - len(group))  # no row: what is written there is dropped
        rows_R = np.array([row for _, row, _ in group] + nobody, np.int32)
        longest = max(len(ids) for ids, _, _ in group)

        def tokens(start: int, length: int) -> np.ndarray:
            tokens_RT = np.zeros((count, length), np.int32)
            for tokens_T, (ids, _, _) in zip(tokens_RT, group, strict=False):
                part = ids[start : start + length]
                tokens_T[: len(part)] = part
            return tokens_RT

        if not shared:
            if longest:
                self.cache = self.run.read(self.params, self.cache, tokens(0, bucket(longest, COLUMNS)), rows_R)
            return
        sources_R = np.array([source for _, _, source in group] + nobody, np.int32)
        self.cache = self.run.take_over(self.cache, sources_R, rows_R, width=self.width)
        for start in range(shared, longest, READ):
            length = min(bucket(min(longest - start, READ), COLUMNS), self.width - start)
            self.cache = self.run.read_on(self.params, self.cache, tokens(start, length), np.int32(start), rows_R, width=self.width)

    def advance(self, is_full: bool) -> list[Made]:
        """Continues all rows for some steps, fewer where rows end that others may wait for (`is_full`), or half of all; who has
        ended."""
        at_work = self.at_work()
        count = bucket(max(len(at_work), FEW), self.mesh.size)
        if not is_full and 2 * count <= len(self.rows):
            self._resize(count, self.width, self.ring)
        oldest = max(self.step - self.rows[index].start for index in self.at_work())
        if oldest == self.ring:
            self._resize(len(self.rows), self.width, 2 * self.ring)
        idle = _Row(Request((0,), Settings(1, 0.0, 1.0, 0)), self.step, 0)
        rows = [row or idle for row in self.rows]
        state = {
            "ids_B": np.array([row.last for row in rows], np.int32),
            "done_B": np.array([row is idle for row in rows]),
            "lengths_B": np.array([len(row.request.ids) for row in rows], np.int32),
            "starts_B": np.array([row.start for row in rows], np.int32),
        }
        settings = {
            "seeds_B": np.array([row.request.settings.seed for row in rows], np.uint32),
            "numbers_B": np.array([row.request.number for row in rows], np.int32),
            "most_B": np.array([row.request.settings.max_tokens for row in rows], np.int32),
            "temperatures_B": np.array([row.request.settings.temperature for row in rows], np.float32),
            "top_ps_B": np.array([row.request.settings.top_p for row in rows], np.float32),
        }
        until = self.step + min(STEPS, self.ring - oldest)
        without, half = int(state["done_B"].sum()), len(rows) - len(rows) // 2
        until_half = half if without < half and half >= FEW else len(rows)
        enough = without + max(1, len(rows) // 8) if is_full else until_half
        step, ids_B, done_B, self.new, self.logprobs, self.cache = self.run.advance(
            self.params, self.cache, self.new, self.logprobs, np.int32(self.step), state, settings, self.stops_V,
            np.int32(until), np.int32(enough),
        )  # fmt: skip
        self.step, ids_B, done_B = int(step), np.asarray(ids_B), np.asarray(done_B)
        made = []
        if any(row and done_B[index] for index, row in enumerate(self.rows)):
            new_BM, logprobs_BM = np.asarray(self.new), np.asarray(self.logprobs)
        for index, row in enumerate(self.rows):
            if row and done_B[index]:
                columns = np.arange(row.start, min(self.step, row.start + row.request.settings.max_tokens)) % self.ring
                ids = list(itertools.takewhile(lambda token: not self.stops_V[token], new_BM[index, columns].tolist()))
                made.append(Made(row.request, ids, logprobs_BM[index, columns[: len(ids)]].tolist()))
                self.rows[index] = None
            elif row:
                row.last = int(ids_B[index])
        return made

    def _resize(self, count: int, width: int, ring: int) -> None:
        """Another number of rows, columns for prompts and columns for new tokens; those at work keep theirs."""
        kept = self.at_work()
        kept += [index for index, row in enumerate(self.rows) if not row][: count - len(kept)]
        if self.cache is None:
            self.cache, self.new, self.logprobs = self.run.empty(self.params, count=count, width=width, ring=ring)
        else:
            rows_B = np.array(kept + [0] * (count - len(kept)), np.int32)
            # A ring is a power of two times the one before, so a step's column is that of its new one, modulo the old ring.
            # Columns of steps that were not taken hold anything: no row is so old that it looks.
            ring_M = np.arange(ring) % self.ring
            columns_S = np.concatenate([np.minimum(np.arange(width), self.width - 1), self.width + ring_M])
            moved = self.run.move(self.cache, self.new, self.logprobs, rows_B, columns_S.astype(np.int32), ring_M.astype(np.int32))
            self.cache, self.new, self.logprobs = moved
        self.rows = [self.rows[index] for index in kept] + [None] * (count - len(kept))
        self.read = [self.read[index][:width] for index in kept] + [()] * (count - len(kept))
        self.width, self.ring = width, ring


@dataclasses.dataclass
class _Row:
    """Who has a row, since which step, and the id that is next to be continued."""

    request: Request
    start: int
    last: int


def decode(model: ModelConfig, params: dict, ids_B, step, lengths_B, starts_B, ring: int, cache, place) -> tuple[jax.Array, tuple]:
    """Logits [B, V] after `ids_B`, which are written to column P + `step` mod M of the cache, and the cache; `ring` is M.

    A row begins at step `starts_B` with the last id of its prompt, of `lengths_B` ids.
    """
    width = jax.tree.leaves(cache)[0].shape[-1] - ring  # of keys
    ages_B = jnp.maximum(step - starts_B, 0)
    prompt_BP = jnp.arange(width)[None] < lengths_B[:, None] - 1
    new_BM = (step - jnp.arange(ring))[None] % ring <= ages_B[:, None]
    mask_BS = jnp.concatenate([prompt_BP, new_BM], axis=1)
    angles = tuple(angles_BH[:, None] for angles_BH in angles_at(model, lengths_B - 1 + ages_B))
    x_B1D, cache = forward_cached(model, params, ids_B[:, None], angles, mask_BS[:, None], cache, width + step % ring, place)
    return unembed(model, params, x_B1D[:, 0]), cache


def choose(logits_BV, seeds_B, numbers_B, positions_B, temperatures_B, top_ps_B) -> jax.Array:
    """The next id of each row, [B]; its key is made of the row's seed and number and the position that the id will have."""

    def key(seed, number, position):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), position)

    def sample():
        temperatures_B1 = jnp.where(temperatures_B > 0, temperatures_B, 1)[:, None]
        scaled_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperatures_B1
        scaled_BV = jax.lax.cond(jnp.any(top_ps_B < 1), lambda: nucleus(scaled_BV, top_ps_B), lambda: scaled_BV)
        return jax.vmap(jax.random.categorical)(jax.vmap(key)(seeds_B, numbers_B, positions_B), scaled_BV).astype(jnp.int32)

    likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    drawn_B = jax.lax.cond(jnp.any(temperatures_B > 0), sample, lambda: likeliest_B)
    return jnp.where(temperatures_B > 0, drawn_B, likeliest_B)


def nucleus(logits_BV: jax.Array, top_ps_B: jax.Array) -> jax.Array:
    """-inf for all but the fewest likeliest ids whose probability reaches `top_ps_B` (arXiv 1904.09751); of equals the lower."""
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    sums_BV = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1), axis=-1)
    before_BV = jnp.pad(sums_BV[:, :-1], [(0, 0), (1, 0)])  # the probability of all likelier ids: 0 for the first, which so stays
    is_kept_BV = (before_BV < top_ps_B[:, None]) | (top_ps_B[:, None] == 1)  # sums of rounded numbers reach 1 before the end
    kept_BV = jnp.put_along_axis(jnp.zeros_like(order_BV, bool), order_BV, is_kept_BV, axis=-1, inplace=False)
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


@functools.lru_cache(maxsize=8)
def _compile(model: ModelConfig, mesh: Mesh, placement) -> types.SimpleNamespace:
    """What is computed on the mesh. A cache that goes in is given up for the one that comes out."""
    place = placement(mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def of_pairs(of_keys, of_values, *caches):
        return jax.tree.map(
            lambda *pairs: tuple(of(*parts) for of, *parts in zip((of_keys, of_values), *pairs, strict=True)), *caches,
            is_leaf=lambda part: isinstance(part, tuple),
        )  # fmt: skip

    def put(cache):
        return of_pairs(lambda k: place(k, "LBKHS"[-k.ndim :]), lambda v: place(v, "LBKSH"[-v.ndim :]), cache)

    def parts_of(cache, rows_R, width):
        taken = jax.tree.map(lambda array: jnp.take(array, rows_R, axis=-4, mode="clip"), cache)
        return of_pairs(lambda k: k[..., :width], lambda v: v[..., :width, :], taken)

    def write(cache, parts, rows_R):
        def keys(array, part):
            return array.at[..., rows_R, :, :, : part.shape[-1]].set(part, mode="drop")

        def values(array, part):
            return array.at[..., rows_R, :, : part.shape[-2], :].set(part, mode="drop")

        return put(of_pairs(keys, values, cache, parts))

    def empty(params, count, width, ring):
        tokens_BP = jnp.zeros((count, width), jnp.int32)
        like = jax.eval_shape(lambda: prefill(model, params, tokens_BP, ring, place))
        cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return put(cache), jnp.zeros((count, ring), jnp.int32), jnp.zeros((count, ring), jnp.float32)

    def move(cache, new_BM, logprobs_BM, rows_B, columns_S, ring_M):
        cache = jax.tree.map(lambda array: array.take(rows_B, axis=-4), cache)
        cache = of_pairs(lambda k: k.take(columns_S, axis=-1), lambda v: v.take(columns_S, axis=-2), cache)
        return put(cache), new_BM[rows_B][:, ring_M], logprobs_BM[rows_B][:, ring_M]

    def read(params, cache, tokens_RT, rows_R):
        return write(cache, prefill(model, params, place(tokens_RT, "BT"), 0, place), rows_R)

    def take_over(cache, sources_R, rows_R, width):
        return write(cache, parts_of(cache, sources_R, width), rows_R)

    def read_on(params, cache, tokens_RT, start, rows_R, width):
        columns_T = start + jnp.arange(tokens_RT.shape[1])
        mask_1TS = (jnp.arange(width)[None] <= columns_T[:, None])[None]
        angles = angles_at(model, columns_T)
        parts = put(parts_of(cache, rows_R, width))
        _, parts = forward_cached(model, params, place(tokens_RT, "BT"), angles, mask_1TS, parts, start, place)
        return write(cache, parts, rows_R)

    def advance(params, cache, new_BM, logprobs_BM, step, state, settings, stops_V, until, enough):
        ring, lengths_B, starts_B = new_BM.shape[1], state["lengths_B"], state["starts_B"]

        def goes_on(carry):
            step, _, done_B, *_ = carry
            return (step < until) & (jnp.sum(done_B) < enough)

        def extend(carry):
            step, ids_B, done_B, new_BM, logprobs_BM, cache = carry
            logits_BV, cache = decode(model, params, ids_B, step, lengths_B, starts_B, ring, cache, place)
            count_B = step - starts_B
            positions_B = lengths_B + count_B
            ids_B = choose(
                logits_BV, settings["seeds_B"], settings["numbers_B"], positions_B, settings["temperatures_B"], settings["top_ps_B"]
            )
            own_B = jnp.take_along_axis(logits_BV, ids_B[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits_BV, axis=-1)
            new_BM = jax.lax.dynamic_update_index_in_dim(new_BM, ids_B, step % ring, axis=1)
            logprobs_BM = jax.lax.dynamic_update_index_in_dim(logprobs_BM, own_B, step % ring, axis=1)
            return step + 1, ids_B, done_B | stops_V[ids_B] | (count_B + 1 >= settings["most_B"]), new_BM, logprobs_BM, cache

        return jax.lax.while_loop(goes_on, extend, (step, state["ids_B"], state["done_B"], new_BM, logprobs_BM, cache))

    def compiled(function, outputs, given_up=(), static=()):
        return jax.jit(function, out_shardings=outputs, donate_argnames=given_up, static_argnames=static)

    return types.SimpleNamespace(
        empty=compiled(empty, (None, everywhere, everywhere), static=("count", "width", "ring")),
        move=compiled(move, (None, everywhere, everywhere)),
        read=compiled(read, None, given_up="cache"),
        take_over=compiled(take_over, None, given_up="cache", static="width"),
        read_on=compiled(read_on, None, given_up="cache", static="width"),
        advance=compiled(advance, (*[everywhere] * 5, None), given_up="cache"),
    )


def bucket(count: int, multiple: int) -> int:
    """The least `multiple` times a power of two that is no less than `count`: few shapes, so few compilations."""
    return multiple * (1 << (-(-max(int(count), 1) // multiple) - 1).bit_length())


def check(model: ModelConfig, request: Request) -> None:
    """Raises BadInput for a prompt or a setting that cannot be."""
    settings = request.settings
    if not request.ids:
        raise BadInput("a prompt has no ids; at least one is needed to predict from")
    for token in (min(request.ids), max(request.ids)):
        if not 0 <= token < model.vocab:
            raise BadInput(f"a prompt has id {token}: the model has {model.vocab} ids")
    if settings.max_tokens < 1:
        raise BadInput(f"max_tokens={settings.max_tokens}: must be at least 1")
    if not 0 <= settings.temperature < float("inf"):
        raise BadInput(f"temperature={settings.temperature}: must be 0 or a number above")
    if not 0 < settings.top_p <= 1:
        raise BadInput(f"top_p={settings.top_p}: must be above 0 and at most 1")
    if settings.seed is None or not 0 <= settings.seed < 2**32:
        raise BadInput(f"seed={settings.seed}: must be from 0 to 2^32 - 1")
