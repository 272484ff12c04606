"""Training steps of msmjax against Hugging Face transformers + PEFT: same machine, same weights, same packed rows, same
precision.

    python benchmarks/train_throughput.py                                   # a small model that a CPU can train, LoRA and full
    python benchmarks/train_throughput.py --model=llama32_1b --dtype=bfloat16 --length=4096 --rows=4 --attention=cudnn    # one GPU
    python benchmarks/train_throughput.py --model=llama31_8b --dtype=bfloat16 --length=4096 --rows=4 --attention=cudnn --modes lora

Each side trains in a process of its own, in turns (ours, theirs, ours, theirs), from the same random weights on the same random
rows, never zeros. Theirs is what users run: the model class of transformers with its `sdpa` attention, PEFT's LoRA, torch's
AdamW, and a mask that keeps documents of a row apart, since rows are packed. The first losses must agree, or nothing is printed.
MFU counts 6N + 6LTd, with LoRA 4N + 6p + 6LTd (plan.flops_per_token), over the peak of the device's data sheet, on a CPU over a
measured matrix product. Peak memory is the device's, on a CPU the process's. Results are kept in benchmarks/RESULTS.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# Fields of a LlamaConfig. The small one has the proportions of an 8B model; the others are published shapes.
MODELS = {
    "small": (8192, 4, 256, 896, 8, 2, 32),
    "llama32_1b": (128_256, 16, 2048, 8192, 32, 8, 64),
    "llama31_8b": (128_256, 32, 4096, 14_336, 32, 8, 128),
}
RANK, ALPHA, RATE, DECAY = 64, 128, 1e-4, 0.01
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, of NVIDIA's data sheets


def rows_of(seed: int, rows: int, length: int, vocab: int) -> dict[str, np.ndarray]:
    """Random packed rows: documents of an eighth to a half of a row, one after the other; two thirds of the tokens supervised."""
    rng = np.random.default_rng(seed)
    segment_ids = np.zeros((rows, length), np.int32)
    for row in segment_ids:
        start, segment = 0, 1
        while start < length:
            end = min(start + int(rng.integers(length // 8, length // 2)), length)
            row[start:end], start, segment = segment, end, segment + 1
    tokens = rng.integers(4, vocab, (rows, length)).astype(np.int32)
    return {"tokens": tokens, "segment_ids": segment_ids, "loss_mask": rng.random((rows, length)) < 2 / 3}


def make_weights(directory: Path, name: str) -> None:
    """A randomly initialised Llama of this shape, as transformers saves it."""
    import torch
    import transformers

    vocab, layers, width, mlp, heads, kv_heads, head_dim = MODELS[name]
    config = transformers.LlamaConfig(
        vocab_size=vocab, num_hidden_layers=layers, hidden_size=width, intermediate_size=mlp, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, rms_norm_eps=1e-5, rope_theta=5e5, tie_word_embeddings=False,
        max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def ours(directory: Path, arguments) -> dict:
    import jax

    from msmjax import plan
    from msmjax.model import huggingface
    from msmjax.model.transformer import ModelConfig
    from msmjax.training import sharding, weights
    from msmjax.training import step as steps

    lora = arguments.mode == "lora"
    model = ModelConfig(
        **huggingface.read_config(directory), embedding_init=0.02, matrix_init=1.0, lora_rank=RANK if lora else 0,
        lora_alpha=float(ALPHA) if lora else 0.0, compute_dtype=arguments.dtype, scan_layers=arguments.scan, remat=arguments.remat,
        attention=arguments.attention,
    )  # fmt: skip
    config = steps.StepConfig(
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=DECAY, clip=1.0, micro_batches=1, loss_chunk=arguments.loss_chunk
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1, tensor=1))
    source = weights.Source(directory, None)
    state, base = weights.initial_state(model, config, mesh, source, None, 0), weights.base(model, mesh, source)
    update = steps.compile_step(model, config, mesh)

    def step(index):
        nonlocal state
        rows = rows_of(index, arguments.rows, arguments.length, model.vocab)
        batch = sharding.place_batch(mesh, arguments.rows, lambda a, b: {name: array[a:b] for name, array in rows.items()})
        state, metrics = update(state, base, batch, np.float32(RATE))
        return metrics["loss"]

    measured = measure(step, float, arguments.steps)
    device = jax.devices()[0]
    memory = device.memory_stats()
    peak = next((flops for name, flops in PEAKS.items() if name in device.device_kind), None) or plan.flops_per_second()
    return measured | {
        "memory": memory["peak_bytes_in_use"] if memory else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "flops_per_token": plan.flops_per_token(model, arguments.length), "peak": peak, "device": device.device_kind,
        "versions": f"jax {jax.__version__}",
    }  # fmt: skip


def theirs(directory: Path, arguments) -> dict:
    import peft
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    lora = arguments.mode == "lora"
    dtype = getattr(torch, arguments.dtype)
    # As trainers do it: LoRA on a base in the compute dtype; all parameters in float32 with autocast.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype if lora else torch.float32, attn_implementation="sdpa"
    ).to(device)
    model.config.use_cache = False
    if lora:
        modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=modules, task_type="CAUSAL_LM"))
    if arguments.remat != "none":
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY, fused=device == "cuda")

    def step(index):
        rows = rows_of(index, arguments.rows, arguments.length, model.config.vocab_size)
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
        loss = torch.nn.functional.cross_entropy(logits[:, :-1][wanted].float(), tokens[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss.detach()

    measured = measure(step, float, arguments.steps)
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return measured | {
        "memory": torch.cuda.max_memory_allocated() if device == "cuda" else of_process,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}",
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
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=5, help="measured in each turn")
    parser.add_argument("--turns", type=int, default=3, help="of each side; the median is taken")
    parser.add_argument("--remat", default="none", help="as model.remat; theirs checkpoints every block unless it is none")
    parser.add_argument("--attention", default="xla", help="as model.attention; theirs has torch's sdpa")
    parser.add_argument("--loss_chunk", type=int, default=256)
    parser.add_argument("--scan", action=argparse.BooleanOptionalAction, default=False, help="scan over layers")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"ours": ours, "theirs": theirs}[arguments.side](arguments.weights, arguments)))
        return
    print("| mode | side | tokens/s | MFU | peak memory, GiB | first step, s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        make_weights(Path(directory), arguments.model)
        for mode in arguments.modes:
            turns: dict[str, list[dict]] = {"ours": [], "theirs": []}
            for _ in range(arguments.turns):
                for side, found in turns.items():
                    command = [
                        sys.executable,
                        __file__,
                        *sys.argv[1:],
                        f"--side={side}",
                        f"--mode={mode}",
                        f"--weights={directory}",
                    ]
                    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                    found.append(json.loads(done.stdout.splitlines()[-1]))
            report(mode, turns, arguments)


def report(mode: str, turns: dict[str, list[dict]], arguments) -> None:
    first = {side: found[0]["losses"][0] for side, found in turns.items()}
    tolerance = 1e-3 if arguments.dtype == "float32" else 1e-2
    if abs(first["ours"] / first["theirs"] - 1) > tolerance:
        sys.exit(f"{mode}: the first losses are {first}: not the same function, so nothing to compare")
    machine = turns["ours"][0]
    speed = {}
    for side, found in turns.items():
        seconds = float(np.median([one["seconds"] for one in found]))
        speed[side] = arguments.rows * arguments.length / seconds
        mfu = speed[side] * machine["flops_per_token"] / machine["peak"]
        memory, start = (np.median([one[name] for one in found]) for name in ("memory", "first"))
        print(f"| {mode} | {side} | {speed[side]:,.0f} | {mfu:.1%} | {memory / 2**30:.2f} | {start:.1f} |")
    print(
        f"{mode}: ours / theirs {speed['ours'] / speed['theirs']:.2f}; "
        f"{arguments.model}, {arguments.rows} x {arguments.length} tokens, "
        f"{arguments.dtype}, remat {arguments.remat}; {machine['device']}, peak {machine['peak'] / 1e12:.3g} TFLOP/s; "
        f"{machine['versions']}; {turns['theirs'][0]['versions']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
