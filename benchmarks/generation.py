"""Generation of msmjax against `transformers.generate`: same machine, same random weights, same prompts, greedy.

    python benchmarks/generation.py --ragged --shared=96                                     # a small model that a CPU can run
    python benchmarks/generation.py --model=llama32_1b --dtype=bfloat16 --prompts=64 --new=128          # one GPU

Prompts of unequal length, each continued by the same number of tokens, or by a number of its own (`--ragged`: 1 to `--new`); with
`--shared` they begin alike. transformers gets 64 at a time, of like length, and goes on until the last has its tokens. Tokens a
second counts those that were asked for, in the second of two runs (the first compiles). *Equal*: the share of the new ids that are
the same on both sides; a product that is rounded another way may choose another id, and all after it then differ. Results are kept
in benchmarks/RESULTS.md.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from llama import MODELS, fill, shape_of, transformers_model

ROOT = Path(__file__).resolve().parents[1]


def requests_of(arguments) -> list[tuple[list[int], int]]:
    """Prompts of half to the whole of `--length`, and how many tokens continue each."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(arguments.length // 2, arguments.length + 1, arguments.prompts)
    vocab = MODELS[arguments.model][0]
    prompts = [rng.integers(4, vocab, length).tolist() for length in lengths]
    common = rng.integers(4, vocab, arguments.shared).tolist()
    counts = rng.integers(1, arguments.new + 1, arguments.prompts) if arguments.ragged else [arguments.new] * arguments.prompts
    return [((common + prompt)[: len(prompt)], int(count)) for prompt, count in zip(prompts, counts, strict=True)]


def ours(arguments) -> dict:
    import jax

    from msmjax.generation import generate
    from msmjax.model import attention
    from msmjax.model.transformer import ModelConfig, init_params
    from msmjax.training import sharding

    shape = shape_of(arguments.model)
    back_end, _ = attention.resolve("auto", *attention.kind_of(jax.devices()[0]), 64, shape["head_dim"], arguments.dtype)
    model = ModelConfig(
        **shape, lora_rank=0, lora_alpha=0.0, compute_dtype=arguments.dtype, scan_layers=False, remat="none", attention=back_end
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1, tensor=1))
    abstract = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, arguments.dtype, sharding=sharding),
        abstract, sharding.tree_shardings(mesh, abstract),
    )  # fmt: skip
    params = fill(placed)

    def run(asked):
        requests = [generate.Request(tuple(ids), generate.Settings(count, 0.0, 1.0, 0)) for ids, count in asked]
        made = dict(generate.generate(model, params, mesh, requests, placement=sharding.Placement, stop=()))
        return [made[index].ids for index in range(len(asked))]

    return measure(run, arguments) | {"device": jax.devices()[0].device_kind, "versions": f"jax {jax.__version__}"}


def theirs(arguments) -> dict:
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers_model(arguments.model, arguments.dtype, device).eval()

    def batch(asked):
        width = max(len(ids) for ids, _ in asked)
        tokens, mask = np.zeros((2, len(asked), width), np.int64)
        for row, (ids, _) in enumerate(asked):  # padded on the left, as decoders are
            tokens[row, width - len(ids) :], mask[row, width - len(ids) :] = ids, 1
        tokens, mask = torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)
        ends = torch.tensor([width + count for _, count in asked], device=device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=tokens, attention_mask=mask, do_sample=False, max_new_tokens=max(count for _, count in asked),
                pad_token_id=0, eos_token_id=None, stopping_criteria=[lambda ids, scores, **_: ids.shape[1] >= ends],
            )  # fmt: skip
        return [ids[:count] for ids, (_, count) in zip(out[:, width:].cpu().tolist(), asked, strict=True)]

    def run(asked):
        order, made = sorted(range(len(asked)), key=lambda index: len(asked[index][0])), {}
        for start in range(0, len(order), 64):
            indices = order[start : start + 64]
            made |= dict(zip(indices, batch([asked[index] for index in indices]), strict=True))
        return [made[index] for index in range(len(asked))]

    return measure(run, arguments) | {"versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}


def measure(run, arguments) -> dict:
    asked = requests_of(arguments)
    started = time.perf_counter()
    run(asked)
    first = time.perf_counter() - started
    started = time.perf_counter()
    ids = run(asked)
    return {"seconds": time.perf_counter() - started, "first": first, "ids": ids}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="of the longest prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens that continue each")
    parser.add_argument("--ragged", action="store_true", help="each by a number of its own, from 1 to --new")
    parser.add_argument("--shared", type=int, default=0, help="tokens that all prompts begin with")
    parser.add_argument("--json", type=Path, help="a file that all figures are written to")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"ours": ours, "theirs": theirs}[arguments.side](arguments)))
        return
    found = {}
    for side in ("ours", "theirs"):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], f"--side={side}"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        found[side] = json.loads(done.stdout.splitlines()[-1])
    ids = {side: one.pop("ids") for side, one in found.items()}
    equal = float(np.mean([np.mean(np.equal(one, other)) for one, other in zip(ids["ours"], ids["theirs"], strict=True)]))
    print("| side | tokens/s | first run, s |\n|---|---|---|")
    for side, one in found.items():
        one["tokens_per_second"] = sum(map(len, ids[side])) / one["seconds"]
        print(f"| {side} | {one['tokens_per_second']:,.0f} | {one['first']:.1f} |")
    ratio = found["ours"]["tokens_per_second"] / found["theirs"]["tokens_per_second"]
    print(
        f"ours / theirs {ratio:.2f}, {equal:.0%} of the ids equal; "
        f"{arguments.model}, {arguments.prompts} prompts of up to {arguments.length} tokens, {arguments.shared} of them shared, "
        f"{'1 to ' * arguments.ragged}{arguments.new} new ones each, "
        f"{arguments.dtype}; {found['ours']['device']}; {found['ours']['versions']}; {found['theirs']['versions']}",
        flush=True,
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "equal": equal}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
