"""Training steps of msmjax against Hugging Face transformers + PEFT: same machine, same weights, same packed rows, same
precision.

    python benchmarks/train_throughput.py                                   # a small model that a CPU can train, LoRA and full
    python benchmarks/train_throughput.py --model=llama32_1b --dtype=bfloat16 --length=4096 --rows=4 --modes full         # one GPU
    python benchmarks/train_throughput.py --model=llama31_8b --dtype=bfloat16 --length=4096 --rows=2 --modes lora --profile

Each side trains in a process of its own, in turns (ours, theirs, ours, theirs), from the same random weights on the same random
rows, never zeros (benchmarks/llama.py). Theirs is what users run: the model class of transformers with its `sdpa` attention, PEFT's
LoRA, torch's AdamW, and a mask that keeps documents of a row apart, since rows are packed. Where their step does not fit into a
GPU's memory, it checkpoints every block, as their trainers do. The first losses must agree, or nothing is printed.
MFU counts 6N + 6LTd, with LoRA 4N + 6p + 6LTd (fit.flops_per_token), over the peak of the device's data sheet, on a CPU over a
measured matrix product. Peak memory is the device's, on a CPU the process's. `--profile` says where the time of a step of ours goes
on a GPU (benchmarks/kernels.py). Results are kept in benchmarks/RESULTS.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from llama import MODELS, fill, rows_of, shape_of, transformers_model

ROOT = Path(__file__).resolve().parents[1]
RANK, ALPHA, RATE, DECAY = 64, 128, 1e-4, 0.01
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, of NVIDIA's data sheets


def ours(arguments) -> dict:
    import jax

    from msmjax import fit, machine
    from msmjax.model import attention
    from msmjax.model.transformer import ModelConfig
    from msmjax.training import sharding
    from msmjax.training import step as steps

    lora = arguments.mode == "lora"
    shape, device = shape_of(arguments.model), jax.devices()[0]
    back_end, _ = attention.resolve(
        arguments.attention, *attention.kind_of(device), arguments.length, shape["head_dim"], arguments.dtype
    )
    model = ModelConfig(
        **shape, lora_rank=RANK if lora else 0, lora_alpha=float(ALPHA) if lora else 0.0, compute_dtype=arguments.dtype,
        scan_layers=arguments.scan, remat=arguments.remat, attention=back_end,
    )  # fmt: skip
    config = steps.StepConfig(
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=DECAY, clip=1.0, micro_batches=arguments.micro_batches,
        loss_chunk=arguments.loss_chunk,
    )  # fmt: skip
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1, tensor=1))
    base = fill(steps.abstract_base(model, mesh))
    state = steps.compile_init(model, config, mesh)(jax.random.key(0))
    if not lora:
        jax.tree.map(lambda leaf: leaf.delete(), state["params"])
        state["params"] = fill(steps.abstract_state(model, config, mesh)["params"])
    # Loops know the most segments of a row from the ledger of the rows (training/loop.py).
    batches = [
        rows_of(index, arguments.rows, arguments.length, model.vocab, arguments.supervised) for index in range(2 + arguments.steps)
    ]
    segments = attention.place_for(max(int(rows["segment_ids"].max()) for rows in batches), arguments.length)
    update, compiled, options = steps.compile_step(model, config, mesh, segments), None, {}

    def step(index):
        nonlocal state, compiled
        rows = batches[index]
        batch = sharding.place_batch(mesh, arguments.rows, lambda a, b: {name: array[a:b] for name, array in rows.items()})
        if compiled is None:
            compiled = update.lower(state, base, batch, np.float32(RATE)).compile(compiler_options=options)
        state, metrics = compiled(state, base, batch, np.float32(RATE))
        return metrics["loss"]

    measured = measure(step, float, arguments.steps)
    memory = device.memory_stats()
    peak = next((flops for name, flops in PEAKS.items() if name in device.device_kind), None) or machine.flops_per_second(
        arguments.dtype
    )
    measured |= {
        "memory": memory["peak_bytes_in_use"] if memory else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "flops_per_token": fit.flops_per_token(model, arguments.length), "peak": peak, "device": device.device_kind,
        "versions": f"jax {jax.__version__}", "how": f"attention {back_end}, remat {arguments.remat}",
    }  # fmt: skip
    if arguments.profile:
        import kernels

        # Kernels that are launched as one graph do not say which instruction they are of.
        compiled, options["xla_gpu_enable_command_buffer"] = None, ""
        step(0)
        measured["profile"] = kernels.profile(lambda: step(0), compiled.as_text())
    return measured


def theirs(arguments) -> dict:
    import peft
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    lora = arguments.mode == "lora"
    dtype = getattr(torch, arguments.dtype)
    # As trainers do it: LoRA on a base in the compute dtype; all parameters in float32 with autocast.
    model = transformers_model(arguments.model, arguments.dtype if lora else "float32", device)
    model.config.use_cache = False
    if lora:
        modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=modules, task_type="CAUSAL_LM"))

    def checkpoint_blocks():
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()

    how = "sdpa"
    if arguments.remat != "none":
        checkpoint_blocks()
        how += ", checkpointed"
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY, fused=device == "cuda")

    def step(index):
        rows = rows_of(index, arguments.rows, arguments.length, model.config.vocab_size, arguments.supervised)
        same = rows["segment_ids"][:, 1:] == rows["segment_ids"][:, :-1]
        count = int((rows["loss_mask"][:, 1:] & same).sum())
        micro = arguments.rows // arguments.micro_batches
        parts = [{name: array[at : at + micro] for name, array in rows.items()} for at in range(0, arguments.rows, micro)]
        total = sum(add_gradients(part, count) for part in parts)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return total

    def add_gradients(rows, count):
        """Of the part of the loss that these rows are."""
        tokens, segments, mask = (torch.from_numpy(array).to(device) for array in rows.values())
        tokens = tokens.long()
        same = segments[:, :, None] == segments[:, None, :]
        allowed = (same & torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=device).tril())[:, None]
        first = torch.cat([torch.ones_like(segments[:, :1], dtype=torch.bool), segments[:, 1:] != segments[:, :-1]], 1)
        at = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        positions = at - torch.where(first, at, 0).cummax(1).values
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=tokens, attention_mask=allowed, position_ids=positions).logits
        wanted = mask[:, 1:] & (segments[:, 1:] == segments[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits[:, :-1][wanted].float(), tokens[:, 1:][wanted], reduction="sum") / count
        loss.backward()
        return loss.detach()

    def step_that_fits(index):
        nonlocal how
        try:
            return step(index)
        except torch.OutOfMemoryError:
            if "checkpointed" in how:
                raise
        adam.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        checkpoint_blocks()
        how += ", checkpointed for want of memory"
        return step(index)

    measured = measure(step_that_fits, float, arguments.steps)
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return measured | {
        "memory": torch.cuda.max_memory_allocated() if device == "cuda" else of_process,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}", "how": how,
    }  # fmt: skip


def measure(step, wait, count: int) -> dict:
    """Loss and seconds of the first step, and seconds of a step after it: `count` steps, of which the last is waited for."""
    started = time.perf_counter()
    losses = [wait(step(0))]
    first = time.perf_counter() - started
    wait(step(1))
    started = time.perf_counter()
    for index in range(2, 2 + count):
        loss = step(index)
    losses.append(wait(loss))
    return {"losses": losses, "first": first, "seconds": (time.perf_counter() - started) / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--modes", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=4, help="of a step")
    parser.add_argument("--micro_batches", type=int, default=1, help="that the rows of a step are cut into")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=5, help="measured in each turn")
    parser.add_argument("--turns", type=int, default=3, help="of each side; the median is taken")
    parser.add_argument("--remat", default="none", help="as model.remat; theirs checkpoints every block unless it is none")
    parser.add_argument("--attention", default="auto", help="as model.attention; theirs has torch's sdpa")
    parser.add_argument("--loss_chunk", type=int, default=256)
    parser.add_argument("--scan", action=argparse.BooleanOptionalAction, default=False, help="scan over layers")
    parser.add_argument("--supervised", type=float, default=2 / 3, help="share of the tokens")
    parser.add_argument("--alone", action="store_true", help="ours alone")
    parser.add_argument("--profile", action="store_true", help="of a step of ours, on a GPU: where its time goes")
    parser.add_argument("--json", type=Path, help="a file that all figures are written to")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"ours": ours, "theirs": theirs}[arguments.side](arguments)))
        return
    figures = []
    print("| mode | side | tokens/s | MFU | peak memory, GiB | first step, s | how |\n|---|---|---|---|---|---|---|")
    for mode in arguments.modes:
        turns: dict[str, list[dict]] = {side: [] for side in (("ours",) if arguments.alone else ("ours", "theirs"))}
        for _ in range(arguments.turns):
            for side, found in turns.items():
                command = [sys.executable, __file__, *sys.argv[1:], f"--side={side}", f"--mode={mode}"]
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
        figures += report(mode, turns, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def report(mode: str, turns: dict[str, list[dict]], arguments) -> list[dict]:
    """Prints a line for each side, and the ratio; returns the same as figures."""
    first = {side: found[0]["losses"][0] for side, found in turns.items()}
    tolerance = 1e-3 if arguments.dtype == "float32" else 1e-2
    if len(first) == 2 and abs(first["ours"] / first["theirs"] - 1) > tolerance:
        sys.exit(f"{mode}: the first losses are {first}: not the same function, so nothing to compare")
    machine = turns["ours"][0]
    figures = []
    for side, found in turns.items():
        seconds = float(np.median([one["seconds"] for one in found]))
        speed = arguments.rows * arguments.length / seconds
        mfu = speed * machine["flops_per_token"] / machine["peak"]
        memory, start = (float(np.median([one[name] for one in found])) for name in ("memory", "first"))
        print(
            f"| {mode} | {side} | {speed:,.0f} | {mfu:.1%} | {memory / 2**30:.2f} | {start:.1f} | {found[0]['how']} |", flush=True
        )
        figures.append(
            {"mode": mode, "side": side, "tokens_per_second": speed, "mfu": mfu, "memory": memory, "first": start, "turns": found}
        )
    ratio = f"ours / theirs {figures[0]['tokens_per_second'] / figures[1]['tokens_per_second']:.2f}; " if len(figures) == 2 else ""
    print(
        f"{mode}: {ratio}{arguments.model}, {arguments.rows} x {arguments.length} tokens in {arguments.micro_batches} parts, "
        f"{arguments.supervised:.2g} of them supervised, {arguments.dtype}; "
        f"{machine['device']}, peak {machine['peak'] / 1e12:.3g} TFLOP/s; "
        f"{'; '.join(found[0]['versions'] for found in turns.values())}",
        flush=True,
    )
    if arguments.profile and "profile" in machine:
        import kernels

        kernels.show(machine["profile"])
    return figures


if __name__ == "__main__":
    main()
