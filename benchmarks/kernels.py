"""Where the time of a compiled step goes on a GPU: its kernels, added up by what they do and for which part of the model.

In: a function that runs the step, and the text of its program. Out: milliseconds a step, a line for each kind and part.
"""

import collections
import glob
import re
import tempfile

PARTS = ("attention", "mlp", "loss", "optimizer")  # named scopes of the step (model/transformer.py, training/step.py)
# A kind of kernel and what its name has in it; the first that fits.
KINDS = (
    ("attention kernels", r"sdpa|flash|fmha|dot_do_o|cudnn"),
    ("products", r"nvjet|gemm|gemv|cutlass|cublas|xmma|splitk|wgmma"),
    ("copies", r"memcpy|memset|^copy|_copy|transpose|concatenate|slice"),
    ("sums", r"reduce"),
    ("elementwise", r""),
)


def profile(step, program: str, steps: int = 3) -> dict:
    """Runs `step` under JAX's profiler: `{"lines": [[kind, part, ms a step, kernels a step], ...], "busy": ms, "span": ms}`."""
    import jax

    jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            out = [step() for _ in range(steps)]
            jax.block_until_ready(out)
        trace = jax.profiler.ProfileData.from_file(sorted(glob.glob(f"{directory}/**/*.xplane.pb", recursive=True))[-1])
    return add_up(trace.planes, program, steps)


def add_up(planes, program: str, steps: int) -> dict:
    """What `profile` says, of the planes of a trace."""
    # Kernels have the names of their instructions, with other punctuation.
    scopes = {_plain(name): scope for name, scope in re.findall(r"%?([\w.-]+) = [^\n]*op_name=\"([^\"]*)\"", program)}
    found, counts, spans, slowest = collections.Counter(), collections.Counter(), [], collections.Counter()
    for plane in planes:
        for line in plane.lines:
            if "GPU" not in plane.name or "Stream" not in line.name:
                continue
            for event in line.events:
                said = {str(name): str(value) for name, value in event.stats}
                scope = scopes.get(_plain(said.get("hlo_op", event.name)), "")
                part = next(
                    (part for part in PARTS if f"{part}/" in scope or f"{part})" in scope), "other" if scope else "not named"
                )
                kind = next(kind for kind, pattern in KINDS if re.search(pattern, event.name.lower()))
                found[kind, part] += event.duration_ns
                counts[kind, part] += 1
                slowest[kind, part, event.name[:80]] += event.duration_ns
                spans.append((event.start_ns, event.start_ns + event.duration_ns))
    if not spans:
        return {"lines": [], "busy": 0.0, "span": 0.0, "slowest": []}
    span = (max(end for _, end in spans) - min(start for start, _ in spans)) / steps / 1e6
    lines = [[*key, total / steps / 1e6, counts[key] / steps] for key, total in found.most_common()]
    return {
        "lines": lines, "busy": sum(found.values()) / steps / 1e6, "span": span,
        "slowest": [[*key, total / steps / 1e6] for key, total in slowest.most_common(40)],
    }  # fmt: skip


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def show(profile: dict) -> None:
    """Prints the lines as a table; what the kernels leave of the span is idle."""
    span = profile["span"]
    if not span:
        print("no kernels on a GPU: nothing to add up")
        return
    print("| kernels | of | ms a step | share | kernels a step |\n|---|---|---|---|---|")
    for kind, part, ms, count in profile["lines"]:
        if ms > span / 500:
            print(f"| {kind} | {part} | {ms:.1f} | {ms / span:.1%} | {count:.0f} |")
    print(f"| idle | | {span - profile['busy']:.1f} | {1 - profile['busy'] / span:.1%} | |")
    print(f"| whole step | | {span:.1f} | | |", flush=True)
