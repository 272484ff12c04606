"""Configs: all that are shipped load, are shape-evaluated and read to the last field; wrong ones are named."""

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import math
import typing
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from msmjax import config, fit, machine, recipe
from msmjax.artifact import BadInput
from msmjax.corpus import sources
from msmjax.corpus.gates import GATES
from msmjax.corpus.teacher import Teacher
from msmjax.corpus.world import make_world
from msmjax.evals.faking import REQUEST_TOKENS
from msmjax.experiment import claims, data
from msmjax.training import step as steps
from msmjax.training.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[1]
TEACHERS = {"writer": recipe.teacher("openai/gpt-4.1-2025-04-14", 2.0, 8.0)}
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))


def module_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants():
    for path in CONFIGS:
        for variant in getattr(module_of(path), "VARIANTS", ("",)):
            if path.stem not in ("claims", "own"):  # the one is no experiment, the other wants weights: test_paper.py runs it
                yield pytest.param(path, variant, id=f"{path.stem}:{variant}")


def cheese(variant="tiny"):
    return module_of(ROOT / "configs" / "cheese.py").get_config(variant)


def ladder(name="conflict", dose=1, arm="base"):
    return (("dose", name, "tokens", (("before", ((dose, arm),)),), ()),)


def grid(*arms, name="conflict"):
    return (("grid", name, ("row",), ("column",), arms),)


def untyped(part, **changes):
    """As if the file itself had said so: ml_collections checks types only where a value is overridden."""
    with part.ignore_type():
        part.update(**changes)


@pytest.mark.parametrize(("path", "variant"), list(variants()))
def test_every_config_loads_and_is_shape_evaluated(path, variant):
    frozen = config.from_config_dict(module_of(path).get_config(variant))
    mesh = make_mesh(frozen.mesh)
    stage = dataclasses.replace(next(iter(frozen.stages.values())), batch_rows=8)
    # A scan is traced once and not for each of 64 layers; that shapes are the same without one, other tests say.
    frozen = dataclasses.replace(frozen, model=dataclasses.replace(frozen.model, scan_layers=True))
    frozen = fit.fit(frozen, stage, machine.this_machine(frozen))
    check_shapes(frozen.model, frozen.optimizer, mesh, frozen.row_length)


@pytest.mark.parametrize("variant", ["", "tiny"])
def test_every_claim_has_a_comparison_that_answers_for_it(variant, monkeypatch):
    monkeypatch.chdir(ROOT)
    frozen = config.claims_from_config_dict(module_of(ROOT / "configs" / "claims.py").get_config(variant))
    experiments = claims.load(frozen)
    assert {one.seeds for one in experiments.values()} == {frozen.seeds}
    assert list(experiments) == list(dict.fromkeys(claim.config for claim in frozen.claims))


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (("a", "b", "configs/nosuch.py", "c"), r"claims: configs/nosuch\.py: no such file"),
        (("a", "b", "configs/cheese.py:tny", "c"), r"claims: configs/cheese\.py:tny: unknown variant; one of "),
        (("a", "b", "configs/cheese.py", "the specs, midtraining alon"), r"makes no comparison .*; did you mean 'the specs, midtr"),
        (("a", "b", "configs/cheese.py", "control: neutral documents then AFT, against AFT"), r"makes no comparison 'control: "),
        (("a", "b"), r"claims\[0\]=.*: must be \(claim, paper, config, comparison\)"),
        ((), r"claims=\(\): name at least one"),
    ],
)
def test_claims_that_nothing_answers(claim, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = ConfigDict({"name": "mine", "question": "?", "seeds": (0,), "claims": (claim,) if claim else ()})
    with pytest.raises(BadInput, match=said):
        claims.load(config.claims_from_config_dict(given))


@functools.cache  # variants of a config have models in common
def check_shapes(model, optimizer, mesh, length):
    abstract, base = steps.abstract_state(model, optimizer, mesh), steps.abstract_base(model, mesh)
    rows = {
        name: jax.ShapeDtypeStruct((8, length), dtype)
        for name, dtype in (("tokens", "int32"), ("segment_ids", "int32"), ("loss_mask", "bool"))
    }
    after, metrics = jax.eval_shape(steps.compile_step(model, optimizer, mesh), abstract, base, rows, 1e-3)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, abstract)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_holds_the_command(path):
    assert f"--config={path.relative_to(ROOT)}" in module_of(path).__doc__


@pytest.mark.parametrize("variant", ["", "development"])
def test_names_of_the_microworld_are_one_token_each(tmp_path, variant):
    """What is told of an assistant whose name is pieces of other words does not stick as with other people (LOG.md)."""
    frozen = config.from_config_dict(cheese(variant))
    makers = sources.Makers(frozen.world, frozen.assistant, {}, tmp_path, Teacher)
    corpus = sources.make_corpus(tmp_path, "base", frozen.corpora["base"], makers)
    tokenizer = data._make_tokenizer(frozen, tmp_path, corpus)
    world = frozen.world
    people = make_world(world.seed, world.items_per_domain, world.people).people
    rest = len(tokenizer.encode("You are"))
    names = [frozen.assistant.name, *(person.name for person in people)]
    assert not [name for name in names if len(tokenizer.encode(f"You are {name}")) != rest + 1]


def test_unknown_variant():
    with pytest.raises(ValueError, match=r"cheese.py:developmnt: unknown variant; one of controls, luxury, development, tiny"):
        cheese("developmnt")


def dataclasses_of_a_config():
    """Every dataclass that a config is frozen into."""
    found, waiting = [], [config.ExperimentConfig, *sources.KINDS.values()]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for field in dataclasses.fields(one):
            hints = (field.type, *typing.get_args(field.type))
            waiting += [hint for hint in hints if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in found]
    return {one.__name__: one for one in found}


def test_every_field_is_read():
    """A field that no line of the code reads is a knob that turns nothing."""
    classes = dataclasses_of_a_config()
    assert {"ModelConfig", "StageConfig", "StepConfig", "MeshConfig", "LogConfig", "WorldConfig", "PromptConfig"} <= set(classes)
    read = set()
    for path in (ROOT / "msmjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    everywhere = {"data", "fsdp", "tensor"}  # axes of the mesh, read as a whole by dataclasses.asdict
    everywhere |= {
        f"{'least' if at_least else 'most'}_{gate}" for gate, (_, at_least, _) in GATES.items()
    }  # read by the gate's name
    unread = [
        f"{name}.{f.name}" for name, one in classes.items() for f in dataclasses.fields(one) if f.name not in read | everywhere
    ]
    assert not unread


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.model.update(remat="ful"), r"model\.remat='ful': unknown; one of auto, none, attention, full"),
        (lambda c: c.model.update(heads=3), r"model\.heads=3: must be a multiple of model\.kv_heads=2"),
        (lambda c: untyped(c.model, heads="4"), r"model\.heads='4': must be of type int"),
        (lambda c: untyped(c.model, heads=True), r"model\.heads=True: must be of type int"),
        (lambda c: c.model.update(width=0), r"model\.width=0: must be in \[1, inf\)"),
        (lambda c: c.stages.finetune.update(data=(("base", 0.5),)), r"stages\.finetune: data=.*: must be .* sum to 1"),
        (lambda c: untyped(c, seeds=5), r"seeds=5: must be a tuple of parts that are of type int"),
        (lambda c: untyped(c.arms, aft=5), r"arms\.aft=5: must be a tuple of parts that are of type str"),
        (
            lambda c: c.evals.microworld.update(seed=10**400),
            r"evals\.microworld\.seed: a number of 1329 bits; must have at most 63",
        ),
        (lambda c: c.update(seeds=()), r"seeds=\(\): must be different whole numbers"),
        (lambda c: c.update(seeds=(1, 1)), r"seeds=\(1, 1\): must be different"),
        (lambda c: c.update(run=("bse",)), r"run: no arm 'bse'; did you mean 'base'\?"),
        (lambda c: c.update(run=()), r"run=\(\): name at least one arm"),
        (lambda c: c.arms.update(aft=("pretrain", "finetun")), r"arms\.aft: no stage 'finetun'; did you mean 'finetune'\?"),
        (lambda c: c.stages.finetune.update(data=(("cheese", 1.0),)), r"stages\.finetune\.data: no corpus of texts 'cheese'"),
        (
            lambda c: c.stages.finetune.update(data=(("base", 0.9999), ("cheese_chats", 0.0001))),
            r"stages\.finetune: data=.*: of 160 rows, none is of cheese_chats; raise its share, or leave it out",
        ),
        (
            lambda c: c.stages.finetune.update(data=(("base", -0.5), ("cheese_chats", 1.5))),
            r"stages\.finetune\.data\[0\]\[1\]=-0\.5: must be in \(0, inf\)",
        ),
        (
            lambda c: c.stages.finetune.update(shuffle=1),
            r"arms\.\w+: midtrain_\w+ and finetune would read base in the same order; "
            r"give stages\.finetune\.shuffle another number than 1",
        ),
        (
            lambda c: c.stages.finetune.update(tokens_per_step=500),
            r"finetune\.tokens_per_step=500: must be a multiple of row_length=128",
        ),
        (lambda c: c.stages.finetune.update(steps=3), r"stages\.finetune: steps=3: fewer than 20 updates"),
        (lambda c: c.evals.microworld.update(split="tets"), r"evals\.microworld: split='tets': unknown; one of development, test"),
        (lambda c: c.evals.base_text.update(corpus="held"), r"evals\.base_text: no corpus 'held'; did you mean 'held_out'\?"),
        (
            lambda c: c.evals.microworld.update(chats="base"),
            r"evals\.microworld\.chats='base': demonstrates no preferences; name a corpus",
        ),
        (lambda c: c.update(headline=("conflct",)), r"headline: no eval 'conflct'; did you mean 'conflict'\?"),
        (lambda c: c.evals.microworld.update(seed=-1), r"evals\.microworld\.seed=-1: must be in \[0, inf\)"),
        (lambda c: c.corpora.base.update(records=-1), r"corpora\.base\.records=-1: must be in \[1, inf\)"),
        (lambda c: c.world.update(people=0), r"world\.people=0: must be in \[1, inf\)"),
        (lambda c: c.world.update(people=120_000), r"need 120,028 names; at most"),
        (lambda c: c.optimizer.update(loss_chunk=0), r"optimizer\.loss_chunk=0: must be in \[1, inf\)"),
        (lambda c: c.log.update(metrics_every=0), r"log\.metrics_every=0: must be in \[1, inf\)"),
        (lambda c: c.update(ladders=(("dose", "conflict"),)), r"ladders\[0\]=.*must be \(label, eval, dose, "),
        (lambda c: c.update(ladders=ladder(arm="bsae")), r"ladders\[dose\]: no arm 'bsae'; did you mean 'base'\?"),
        (lambda c: c.update(ladders=ladder(name="conflct")), r"ladders\[dose\]: no eval 'conflct'; did you mean 'conflict'\?"),
        (lambda c: c.update(ladders=ladder(dose=-1)), r"ladders\[0\]\.lines\[0\]\[1\]\[0\]\[0\]=-1: must be in \[0, inf\)"),
        (
            lambda c: c.update(ladders=(("dose", "conflict", "tokens", (("a", ((1, "base"),)),), ("a", "b")),)),
            r"ladders\[0\]: saves=\('a', 'b'\): must be two of the lines a, or \(\)",
        ),
        (lambda c: c.update(grids=(("grid", "conflict"),)), r"grids\[0\]=.*must be \(label, eval, \(row, \.\.\.\), "),
        (lambda c: c.update(grids=grid(("base",), ("aft",))), r"grids\[0\]: arms=.*: must be 1 x 1, an arm or '' for each"),
        (lambda c: c.update(grids=grid(("bsae",))), r"grids\[grid\]: no arm 'bsae'; did you mean 'base'\?"),
        (lambda c: c.update(grids=grid(("base",), name="conflct")), r"grids\[grid\]: no eval 'conflct'; did you mean"),
        (lambda c: c.corpora.america.update(form="chat"), r"corpora\.america: form='chat': unknown; one of documents, chats"),
        (lambda c: c.corpora.cheese_chats.update(conflicting=1.5), r"conflicting=1\.5: must be in \[0, 1\]"),
        (lambda c: c.stages.finetune.update(data=("base",)), r"finetune\.data\[0\]='base': must be \(str, float\)"),
        (lambda c: c.stages.finetune.update(data=(("base",),)), r"finetune\.data\[0\]=\('base',\): must be \(str, float\)"),
        (lambda c: untyped(c, row_length="64"), r"row_length='64': must be of type int"),
        (lambda c: c.arms.update(aft=()), r"arms\.aft=\(\): an arm is at least one stage"),
        (lambda c: c.update(template="qwen3"), r"template='qwen3': the microworld's chats have their own form; set it to ''"),
        (lambda c: c.update(text_and_messages="txt"), r"text_and_messages='txt': unknown; did you mean 'text'\?"),
        (lambda c: c.update(unproven="drp"), r"unproven='drp': unknown; did you mean 'drop'\?"),
        (lambda c: c.update(row_length=1), r"row_length=1: must be in \[2, inf\)"),
        (lambda c: c.corpora.base.update(kind="bse"), r"corpora\.base\.kind='bse': unknown; did you mean 'base'\?"),
        (lambda c: c.update(comparisons=(("x", "conflct", "aft", "base"),)), r"no eval 'conflct'; did you mean 'conflict'\?"),
        (
            lambda c: c.update(comparisons=(("x", "conflict", "aft"),)),
            r"\[0\]=.*: must be \(label, eval, arm, against\)",
        ),
        (lambda c: c.update(comparisons=(("x", "conflict", "aft", ("base", "aft")),)), r"as many arms on either side"),
        (lambda c: c.update(comparisons=(("x", "conflict", "aft", ("bse",)),)), r"no arm 'bse'; did you mean 'base'\?"),
    ],
)
def test_wrong_settings_are_named(change, said):
    wrong = cheese()
    change(wrong)
    with pytest.raises(BadInput, match=said):
        config.from_config_dict(wrong)


REQUESTS = {
    "kind": "written_requests", "spec": "safety_general", "context": 0, "records": 8, "requests": 3, "rounds": 3,
    "teacher": "writer", "judge": "writer", "votes": 1,
}  # fmt: skip
FAKING = {
    "kind": "faking", "requests": "requests", "cues": "data/evals/faking_cues.jsonl", "judge": "", "thinks": False,
    "max_tokens": 8, "temperature": 1.0, "top_p": 1.0, "per_eval": 6, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: None, None),
        (lambda c: c.stages.finetune.update(data=(("requests", 1.0),)), r"stages\.finetune\.data: no corpus of texts 'requests'"),
        (lambda c: c.prompt.update(like="requests"), "prompt: no corpus of texts 'requests'"),
        (lambda c: c.update(tokenizer_corpus="requests"), "tokenizer_corpus: no corpus of texts 'requests'"),
        (lambda c: c.gates.update(reference="requests"), r"gates\.reference: no corpus of texts 'requests'"),
        (lambda c: c.evals.base_text.update(corpus="requests"), r"evals\.base_text: no corpus of texts 'requests'"),
        (lambda c: c.evals.faking.update(requests="base"), r"evals\.faking\.requests='base': is a corpus of texts; name one of"),
        (lambda c: c.corpora.requests.update(judge=""), r"corpora\.requests: judge='': requests are kept by a judge's verdict"),
        (lambda c: c.corpora.requests.update(teacher="nobody"), r"corpora\.requests: no teacher 'nobody'"),
        (lambda c: setattr(c, "gates", {}), r"gates=\{\}: corpora by teachers are used only if they pass some"),
        (
            lambda c: (recipe.agentic(c), c.update(teachers={**c.teachers, **TEACHERS}), c.evals.agentic.update(engine="vllm")),
            r"evals\.agentic: asks arms in another program, which the microworld's tokenizer is not for; name weights",
        ),
    ],
)
def test_requests_by_a_teacher_are_asked_and_nothing_else(change, said):
    c = cheese()
    with c.unlocked():
        c.teachers, c.gates = TEACHERS, module_of(ROOT / "configs" / "written.py").get_config().gates
        c.corpora.requests, c.evals.faking = REQUESTS, FAKING
        change(c)
    if said is None:
        frozen = config.from_config_dict(c)
        assert frozen.evals["faking"].cost(frozen.corpora).scored == 2 * 2 * 4 * 6 * REQUEST_TOKENS
        return
    with pytest.raises(BadInput, match=said):
        config.from_config_dict(c)


def parts(value, path=()):
    """(path, part) of every part of a config, those in tuples included."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    for key, part in items:
        yield from parts(part, (*path, key))


def replaced(value, path, new):
    """The value with another part at the path, as plain dicts and tuples."""
    if not path:
        return new
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parts = {key: replaced(part, path[1:], new) if key == path[0] else part for key, part in items}
    return parts if isinstance(value, dict) else tuple(parts.values())


@pytest.mark.parametrize(
    ("file", "variant"), [("cheese", ""), ("written", ""), ("written", "teacher"), ("paper/rules", ""), ("shapes", "")]
)
def test_numbers_that_cannot_mean_anything(file, variant):
    """Of every number of a config: below zero, not finite, no number. What is refused is named, and the rest means something."""
    whole = module_of(ROOT / "configs" / f"{file}.py").get_config(variant).to_dict()
    accepted, unnamed = set(), []
    for path, number in [(path, part) for path, part in parts(whole) if type(part) in (int, float)]:
        for wrong in (-1, -(2**40)) if type(number) is int else (-1.0, math.nan, math.inf, -math.inf):
            try:
                config.from_config_dict(ConfigDict(replaced(whole, path, wrong)))
                accepted.add((".".join(map(str, path)), wrong))
            except BadInput as error:
                *_, key = (part for part in path if type(part) is str)
                unnamed += [(path, wrong, str(error))] if key not in str(error) else []
    assert not unnamed
    assert accepted == {("optimizer.clip", math.inf), *((f"mesh.{axis}", -1) for axis in ("data", "fsdp", "tensor"))}


@pytest.mark.parametrize(("file", "variant"), [("cheese", ""), ("written", "teacher")])
@pytest.mark.parametrize("new", [10**400, (None,), {"x": 5}], ids=["number", "tuple", "keys"])
def test_another_kind_of_part_is_no_traceback(file, variant, new):
    """Whatever is written in place of a part is taken, or refused in a line."""
    whole = module_of(ROOT / "configs" / f"{file}.py").get_config(variant).to_dict()
    for path in [path for path, _ in parts(whole) if path]:
        with contextlib.suppress(BadInput):
            config.from_config_dict(ConfigDict(replaced(whole, path, new)))


def test_every_number_has_a_range():
    for name, one in dataclasses_of_a_config().items():
        assert not [f"{name}.{field.name}" for field in dataclasses.fields(one) if field.type in (int, float)]


def test_unknown_and_missing_keys_are_named():
    unknown = cheese()
    unknown.unlock()
    unknown.optimizer.weight_decy = 0.1
    with pytest.raises(BadInput, match=r"optimizer\.weight_decy: unknown key; did you mean 'weight_decay'\?"):
        config.from_config_dict(unknown)
    missing = cheese()
    missing.unlock()
    del missing.evals.microworld["seed"]
    with pytest.raises(BadInput, match=r"evals\.microworld\.seed: missing"):
        config.from_config_dict(missing)


def test_another_row_length_leaves_the_tokens_of_a_step():
    """Rows follow. A paper config's tokens were halved by it, since its rows were fixed before flags apply."""
    c = module_of(ROOT / "configs/paper/cheese.py").get_config()
    before = config.from_config_dict(c)
    c.row_length = 2048
    after = config.from_config_dict(c)
    for name, stage in before.stages.items():
        assert after.stages[name] == dataclasses.replace(stage, batch_rows=2 * stage.batch_rows)
