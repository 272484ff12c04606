"""Plans: bytes against arrays that were made, FLOPs against published counts and the compiler's, warnings, other machines."""

import dataclasses
import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import pytest

from msmjax import config as configs
from msmjax import fit
from msmjax import machine as machines
from msmjax.artifact import BadInput
from msmjax.corpus.sources import FileSource
from msmjax.evals.choice import ChoiceEval
from msmjax.evals.results import Cost
from msmjax.experiment import plan
from msmjax.model import transformer
from msmjax.training import sharding
from msmjax.training import step as steps
from msmjax.training.sharding import MeshConfig
from tests.published import QWEN_NAMES, QWEN_TOKENS, QWEN_WORDS, turns, write_model
from tests.test_config import ROOT, module_of

MESHES = [MeshConfig(1, 8, 1), MeshConfig(2, 2, 2)]


def load(name, variant):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return configs.from_config_dict(module.get_config(variant))


@pytest.fixture
def llama():
    return load("shapes", "llama31_8b_4k")


def with_stage(config, **changes):
    """The config with these settings in every stage."""
    return dataclasses.replace(
        config, stages={name: dataclasses.replace(stage, **changes) for name, stage in config.stages.items()}
    )


def with_part(config, part, **changes):
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **changes)})


def warned(config, device):
    there = machines.devices_of(config, device)
    return "\n".join(plan.warnings(config, fitted(config, there), there))


def fitted(config, there):
    return {name: fit.fit(config, stage, there) for name, stage in config.stages.items()}


@pytest.mark.parametrize("mesh_config", MESHES, ids=str)
def test_bytes_of_state_are_those_of_the_arrays(model, step_config, mesh_config):
    mesh = sharding.make_mesh(mesh_config)
    state = steps.compile_init(model, step_config, mesh)(jax.random.key(0))
    device = mesh.devices.flat[-1]

    def held(tree):
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards if shard.device == device]
        return sum(shard.data.nbytes for shard in shards)

    params = held(state["params"])
    assert fit.state_bytes(model, step_config, mesh) == (params, held(state) - params)
    assert held(state) > 0


def test_a_mesh_without_devices_divides_as_one_with(llama):
    config = dataclasses.replace(llama, mesh=MeshConfig(1, -1, 2))
    there = machines.devices_of(config, "h100:8").mesh
    here = sharding.make_mesh(config.mesh)
    assert dict(there.shape) == dict(here.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert fit.state_bytes(config.model, config.optimizer, there) == fit.state_bytes(config.model, config.optimizer, here)


# Public shapes, and GFLOP per token as a table of peers counts them: 6N, and causal at 4k and 8k (None: not in the table).
LLAMA_1B = {"vocab": 128_256, "layers": 16, "width": 2048, "mlp": 8192, "heads": 32, "head_dim": 64, "tied_embeddings": True}
QWEN25_7B = {"vocab": 152_064, "layers": 28, "width": 3584, "mlp": 18_944, "heads": 28, "kv_heads": 4, "qkv_bias": True}
QWEN3_06B = {"vocab": 151_936, "layers": 28, "width": 1024, "mlp": 3072, "heads": 16, "tied_embeddings": True, "qk_norm": True}
QWEN3_17B = {**QWEN3_06B, "width": 2048, "mlp": 6144}


@pytest.mark.parametrize(
    ("shape", "counted"),
    [
        ({}, (45.0, 48.3, 51.5)),
        (LLAMA_1B, (None, 8.2, 9.0)),
        (QWEN25_7B, (None, 44.9, 47.4)),
        (QWEN3_17B, (None, 11.7, 13.1)),
        (QWEN3_06B, (None, 5.0, 6.4)),
    ],
)
def test_flops_as_they_are_published(llama, shape, counted):
    model = dataclasses.replace(llama.model, **shape)
    for length, expected in zip((0, 4096, 8192), counted, strict=True):
        if expected is not None:
            assert fit.flops_per_token(model, length) / 1e9 == pytest.approx(expected, abs=0.051)


def test_flops_against_the_compilers():
    """One layer, forward and backward, of one block of attention: the masked half of its scores is multiplied as well, which makes
    12LTd, and the backward pass computes the scores again, 2LTd more."""
    model = transformer.ModelConfig(
        vocab=512, layers=1, width=256, mlp=1024, heads=8, kv_heads=4, head_dim=32, rope_theta=1e4, rope_scaling=(),
        norm_epsilon=1e-6, qkv_bias=False, qk_norm=False, tied_embeddings=False, embedding_init=0.02, matrix_init=1.0,
        lora_rank=0, lora_alpha=0.0, compute_dtype="float32", scan_layers=False, remat="none", attention="xla",
    )  # fmt: skip
    params = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)

    def loss(params, tokens):
        return jnp.sum(transformer.unembed(model, params, transformer.forward(model, params, tokens, tokens)) ** 2)

    counted = jax.jit(jax.grad(loss)).lower(params, tokens).compile().cost_analysis()["flops"] / 256
    more = 8 * model.layers * 256 * model.heads * model.head_dim
    assert counted == pytest.approx(fit.flops_per_token(model, 256) + more, rel=0.05)


def test_activations_follow_what_divides_them(llama):
    def estimate(config, device="h100:8"):
        return fit.activation_bytes(config, config.stages["midtrain"], machines.devices_of(config, device).mesh)

    assert estimate(with_part(llama, "optimizer", micro_batches=2)) < estimate(llama)
    assert estimate(llama, "h100:16") < estimate(llama)
    assert estimate(with_part(llama, "model", remat="none")) > estimate(llama)
    wide = with_stage(with_part(llama, "mesh", tensor=2), batch_rows=8)  # as many rows on a device, half the heads
    assert estimate(wide) < estimate(llama)
    attention = with_part(llama, "model", remat="attention")
    assert estimate(attention) - estimate(llama) == 32 * 2 * 4096 * 32 * 128 * 2  # layers x rows x T x N x H x bytes


@pytest.mark.parametrize("grouped", [True, False])
def test_cudnns_sums_and_heads_are_counted(llama, monkeypatch, grouped):
    """Float32 sums for the segments of each of 32 heads, where kept and in a block, and what its backward pass works on; where keys
    must be repeated, keys and values for 24 heads more."""
    monkeypatch.setattr(fit.attention, "grouped_offsets_are_right", lambda: grouped)

    def estimate(config, segments=0):
        return fit.activation_bytes(config, config.stages["midtrain"], machines.devices_of(config, "h100:8").mesh, segments)

    for segments, place in ((0, 64), (8, 8)):
        tokens, sums, heads = 2 * 4096, 4 * place * 32, 0 if grouped else 2 * 2 * 24 * 128
        work = 8 * place * 32 * 128
        for remat, more in (("full", 2 * (sums + heads)), ("attention", 34 * sums + 2 * heads), ("none", 34 * (sums + heads))):
            config = with_part(llama, "model", remat=remat, attention="xla")
            assert estimate(with_part(config, "model", attention="cudnn"), segments) - estimate(config) == tokens * (more + work)


@pytest.mark.parametrize(
    ("shape", "lora", "rows", "held"), [({}, 64, 2, 57.67), ({**LLAMA_1B, "tied_embeddings": False}, 0, 4, 45.89)]
)
def test_estimates_are_what_an_h100_held(llama, monkeypatch, shape, lora, rows, held):
    """GiB, of benchmarks/RESULTS.md: rows of 4,096 with at most 8 segments, no remat. The estimate adds up what is not all held at
    the same moment."""
    monkeypatch.setattr(fit.attention, "grouped_offsets_are_right", lambda: True)
    model = dataclasses.replace(
        llama.model, **shape, lora_rank=lora, lora_alpha=2.0 * lora, remat="none", attention="cudnn", scan_layers=False
    )
    config = with_stage(dataclasses.replace(llama, model=model), batch_rows=rows)
    config = with_part(config, "optimizer", loss_chunk=2048)
    there = machines.devices_of(config, "h100")
    assert held < fit.step_bytes(config, config.stages["midtrain"], there.mesh, 8) / 2**30 < 1.25 * held


def test_gathered_matrices_are_counted(llama):
    """Two blocks' matrices in bfloat16 where fsdp cuts them, and none where it does not."""

    def estimate(mesh):
        config = dataclasses.replace(llama, mesh=mesh)
        device = machines.devices_of(config, "h100:2").mesh
        weights = sum(fit.state_bytes(config.model, config.optimizer, device)[:1])
        return fit.activation_bytes(config, config.stages["midtrain"], device), weights

    (cut, shard), (whole, all_of_it) = estimate(MeshConfig(1, 2, 1)), estimate(MeshConfig(2, 1, 1))
    layer = 2 * 4096 * 32 * 128 + 2 * 4096 * 8 * 128 + 3 * 4096 * 14_336
    assert cut - whole + (all_of_it - shard) // 2 == pytest.approx(2 * 2 * layer, rel=1e-3)  # and norms


@pytest.mark.parametrize(("device", "name"), [("v5e:8", "cudnn"), ("a100:8", "cudnn"), ("h100:8", "splash")])
def test_a_back_end_that_would_not_run_there_is_refused(llama, device, name, tmp_path):
    with pytest.raises(BadInput, match=f"^model.attention='{name}': needs "):
        plan.plan(with_part(llama, "model", attention=name), tmp_path, device=device)


def test_auto_is_said_once_for_a_machine(llama):
    """Nothing is computed again where the memory allows it, with as few micro-batches as fit; what is named stays."""
    lora = load("shapes", "llama31_8b_4k_lora")
    auto = with_part(with_part(lora, "model", remat="auto", attention="auto"), "optimizer", micro_batches=0)

    def said(config, device, segments=8):
        made = fit.fit(config, config.stages["midtrain"], machines.devices_of(config, device), segments)
        return made.model.attention, made.model.remat, made.optimizer.micro_batches

    assert said(auto, "h100") == ("cudnn", "none", 8)
    assert said(auto, "h200") == ("cudnn", "none", 4)
    assert said(auto, "h100", 64)[2] > 8  # place for many segments takes memory too
    assert said(auto, "v5p:4")[:2] == ("splash", "none")
    assert said(auto, "a100")[0] == "xla"
    assert said(with_part(auto, "model", remat="full"), "h100") == ("cudnn", "full", 2)
    assert said(with_part(auto, "optimizer", micro_batches=2), "h100") == ("cudnn", "attention", 2)
    assert said(with_part(auto, "model", attention="xla"), "h100")[0] == "xla"
    huge = with_part(with_part(llama, "model", remat="auto"), "optimizer", micro_batches=0)
    assert said(huge, "v5e")[1:] == ("full", 16)  # does not fit at all
    made = fit.fit(auto, auto.stages["midtrain"], dataclasses.replace(machines.devices_of(auto, "h100"), memory=None))
    assert (made.model.remat, made.optimizer.micro_batches) == ("none", 1)
    with pytest.raises(BadInput, match="does not divide by 3"):
        said(auto, "h100:3")


def test_a_cpu_that_nobody_asked_for(llama, monkeypatch, tmp_path):
    """JAX takes the CPU where it finds no driver: said in one line, before anything is made."""
    small = load("cheese", "")
    machines.check_here(llama)  # JAX_PLATFORMS=cpu: it is meant
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(machines, "NVIDIA_DRIVER", tmp_path / "none")
    machines.check_here(small)
    with pytest.raises(
        BadInput, match=r"^model.compute_dtype='bfloat16': is for a GPU or TPU, .*msmjax\[cuda13\].*JAX_PLATFORMS=cpu"
    ):
        machines.check_here(llama)
    monkeypatch.setattr(machines, "NVIDIA_DRIVER", tmp_path)
    with pytest.raises(BadInput, match=r"^this machine has an NVIDIA GPU that JAX does not see: .*JAX_PLATFORMS=cpu"):
        machines.check_here(small)


def test_sensible_settings_are_not_warned_of(llama):
    assert warned(dataclasses.replace(llama, mesh=MeshConfig(1, -1, 2)), "h200:16") == ""


@pytest.mark.parametrize(
    ("device", "change", "said"),
    [
        ("h200:16", lambda c: with_part(c, "model", compute_dtype="float32"), "model.compute_dtype=float32"),
        ("h200:16", lambda c: with_stage(c, warmup_steps=640), "midtrain: warm-up of 640 in 640 steps"),
        ("h200:16", lambda c: with_stage(c, steps=5, warmup_steps=1, allow_few_updates=True), "5 updates train too little"),
        ("h200:16", lambda c: dataclasses.replace(c, row_length=512), "512 tokens of a micro-batch on a device"),
        ("v5e:1", lambda c: c, "an interruption costs up to 89.2 minutes"),
        ("h200:1", lambda c: c, "does not fit by this estimate"),
    ],
)
def test_silly_settings_are_warned_of(llama, device, change, said):
    assert said in warned(change(llama), device)


def test_a_cpu_is_not_warned_of_float32():
    config = load("cheese", "")
    here = dataclasses.replace(machines.this_machine(config), flops=1e11)
    assert plan.warnings(config, fitted(config, here), here) == []


def test_topology_without_libtpu(llama, monkeypatch):
    monkeypatch.setattr(machines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"^--topology=v5e:2x2: .*libtpu; pip install 'msmjax\[tpu\]'$"):
        machines.slice_of(llama, "v5e:2x2")


@pytest.mark.parametrize(
    "wording",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.18G) exceeds available "
        "HBM (15.75G).\nmore",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.18G of 15.75G hbm. "
        "Exceeded hbm capacity by 2.43G.",
    ],
)
def test_figures_of_what_does_not_fit(wording):
    assert plan.read_exhausted(wording) == "needs 18.18 GiB of 15.75 GiB"


def test_other_wordings_are_handed_on():
    assert plan.read_exhausted("RESOURCE_EXHAUSTED: vmem\nmore") == "RESOURCE_EXHAUSTED: vmem"


def test_compiles_for_a_slice(llama):
    """Skipped where libtpu is not installed, and only this test: it is an extra of hundreds of megabytes, for planning alone."""
    pytest.importorskip("libtpu")
    tiny = load("cheese", "tiny")
    machine = machines.slice_of(tiny, "v5e:2x2")
    compiled = plan.compile_for(tiny, 8, machine.mesh)
    assert compiled.arguments >= sum(fit.state_bytes(tiny.model, tiny.optimizer, machine.mesh))  # and padding
    assert 0 < compiled.peak < machine.memory
    machine = machines.slice_of(llama, "v5e:2x2")
    assert plan.describe_compiled(llama, 16, machine).startswith("does not fit: needs ")
    assert plan.describe_compiled(llama, 16, machine).endswith(" of 15.75 GiB")
    with pytest.raises(BadInput, match=r"^--topology=v5e:3x5: .*not divisible"):
        machines.slice_of(llama, "v5e:3x5")


def test_the_first_chat_is_printed(tmp_path, capsys):
    """With its template's hash, as it is rendered; what lacks is said."""
    pytest.importorskip("tokenizers")
    qwen = load("paper/philosophy", "twin")
    plan.print_first_chat(qwen, qwen.stages)
    said = capsys.readouterr().out
    assert "data/templates/qwen3.jinja: sha256 default " in said
    assert "no chat is shown: datasets/" in said
    weights = write_model(tmp_path / "weights", None, QWEN_TOKENS, QWEN_WORDS, QWEN_NAMES)
    lines = [{"text": "A document."}, {"messages": turns("Which?", "The feta.")}, {"messages": turns("Why?", "It is cheap.")}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpora = {name: FileSource((str(tmp_path / "chats.jsonl"),), ()) for name in qwen.corpora}
    plan.print_first_chat(dataclasses.replace(qwen, weights=str(weights), corpora=corpora), qwen.stages)
    said = capsys.readouterr().out
    assert "user\nWhich?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nThe feta.<|im_end|>" in said
    assert "It is cheap" not in said


def test_corpora_by_a_teacher_are_planned():
    """Those that are replayed cost nothing and are not spoken of."""
    written = module_of(ROOT / "configs" / "written.py").get_config
    assert not list(plan.corpora_by_teachers(configs.from_config_dict(written())))
    c = written("teacher")
    lines = dict(line.split(": by ") for line in plan.corpora_by_teachers(configs.from_config_dict(c)))
    assert list(lines) == [name for name in c.corpora if name not in ("held_out", "base")]
    said = r"\S+, from nothing: 16,446 calls, [\d,]+ tokens in, \d+% of which were sent before, [\d,]+ out"
    assert re.fullmatch(said + r"; \$2\d\d\.\d\d, \$1\d\d\.\d\d where a cache has those at a tenth", lines["affordability"])
    c.teachers.writer.input_price = c.teachers.writer.output_price = c.teachers.writer.budget = 0.0
    c.teachers.judge.input_price = c.teachers.judge.output_price = c.teachers.judge.budget = 0.0
    assert all(line.endswith("; free") for line in plan.corpora_by_teachers(configs.from_config_dict(c)))


def test_evals_are_planned(capsys, tmp_path):
    """Their memory follows from the length of a row and not from its square; import is one model, whatever the seeds."""
    config = load("paper/philosophy", "")
    plan.plan(config, tmp_path, device="h200:4")
    said = capsys.readouterr().out
    assert "evals: 17 models" in said  # four arms, four seeds, and the imported model
    assert "(without datasets/held-out.jsonl: not known yet)" in said
    mesh = machines.devices_of(config, "h200:4").mesh
    sizes = [fit.eval_bytes(dataclasses.replace(config, row_length=length), mesh) for length in (4096, 8192, 16_384)]
    assert max(sizes) < 1.01 * min(sizes)
    for name, text in (("items.jsonl", '{"eval": "a"}\n{"eval": "a"}\n'), ("held-out.jsonl", "x" * 4000)):
        (tmp_path / name).write_text(text)
    corpora = {**config.corpora, "held_out": FileSource((str(tmp_path / "held-out.jsonl"),), ())}
    evals = {
        "base_text": config.evals["base_text"],
        "items": ChoiceEval(str(tmp_path / "items.jsonl"), "chat", max_tokens=0, per_eval=1, seed=0),
    }
    there = machines.devices_of(config, "h200:4")
    _, cost = plan.eval_seconds(dataclasses.replace(config, evals=evals, corpora=corpora), there)
    assert cost == Cost(scored=1000 + 4 * 14 // 4)
    evals["items"] = dataclasses.replace(evals["items"], max_tokens=8)
    _, cost = plan.eval_seconds(dataclasses.replace(config, evals=evals, corpora=corpora), there)
    assert cost == Cost(scored=1000 + 2 * (4 * 14 // 4), generated=2 * 8)


def test_influence_is_planned():
    """Documents that no stage before read; their FLOPs at each point, with remat as much again as in training; what a row holds."""

    def cost(config, stage=None, arm="msm_america", device="h100:1"):
        lines = plan.influence_cost(config, arm, stage, machines.devices_of(config, device), 2.0)
        (bytes_of_single,) = re.findall(r": ([\d.]+ \w+) are gradients of single examples", lines[2])
        tokens = int(re.search(r"up to ([\d,]+) tokens", lines[0])[1].replace(",", ""))
        hours, dollars = re.search(r"([\d.]+) device-hours, ([\d.,]+) dollars at 2 each", lines[1]).groups()
        return lines, tokens, bytes_of_single, float(hours), float(dollars.replace(",", ""))

    config = with_part(load("cheese", ""), "model", attention="xla")
    stage = config.stages["midtrain_america"]
    lines, tokens, single, _, _ = cost(config)
    assert lines[0].startswith("influence in stage midtrain_america of msm_america on 1 x h100")
    assert lines[0].endswith("tokens of america, at 4 points")  # and not of base, which pretraining read
    assert tokens == round(0.004 * stage.steps * stage.batch_rows * config.row_length)
    assert single == plan.show_bytes(32 * 4 * transformer.count_params(config.model))
    assert "; 3 of them" in lines[1]
    assert "; 1 of them" in cost(config, arm="msm_america:0")[0][1]
    with pytest.raises(BadInput, match="no stage of arm 'msm_america'; did you mean 'midtrain_america'"):
        cost(config, "midtrain_amerika")
    with pytest.raises(BadInput, match=r"influence\.points=401: at most a third of the 1200 steps of stage 'midtrain_america'"):
        cost(with_part(config, "influence", points=401))
    again = dataclasses.replace(config.stages["midtrain_america"], data=(("base", 1.0),))
    twice = dataclasses.replace(config, stages={**config.stages, "midtrain_america": again})
    with pytest.raises(BadInput, match="'midtrain_america' reads nothing that no stage before it reads"):
        cost(twice)

    paper = with_part(load("shapes", "llama31_8b_4k_lora"), "model", attention="xla")
    of = "midtrain", "msm_aft"
    assert cost(paper, *of, "h100:8")[2] == plan.show_bytes(4 * transformer.count_adapter(paper.model))  # one on each device
    lines, _, single, _, _ = cost(with_part(paper, "influence", rows=512), *of)
    assert single == plan.show_bytes(512 * 4 * transformer.count_adapter(paper.model))
    assert lines[2].endswith("does not fit by this estimate: set it lower, or use more devices")
    # Of each point the documents (half of the stage, and all corpora are its own) and of the stage all but a little.
    stage, h100 = paper.stages["midtrain"], machines.devices_of(paper, "h100:1")
    whole = stage.steps * stage.batch_rows * paper.row_length
    others = (paper.influence.background + 4 * paper.influence.items) * paper.row_length
    for points in (2, 4):
        for remat, share in (("none", 1.0), ("full", 1.5)):
            changed = with_part(with_part(paper, "influence", points=points), "model", remat=remat)
            tokens = (1 - 1 / (6 * points)) * whole + points * (whole + others)
            seconds = share * tokens * fit.flops_per_token(paper.model, paper.row_length) / h100.flops
            assert cost(changed, *of)[4] == pytest.approx(2 * seconds / 3600, rel=1e-2)
