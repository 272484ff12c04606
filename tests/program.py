"""What several tests need to run the whole program: a process of it, the shape of an error, published weights to start from."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPECIALS = (
    "<|begin|>", "<|open|>", "<|close|>", "<|document_end|>", "<|pad|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>",  # of the shipped templates
)  # fmt: skip
TEMPLATE = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|open|>' + m['role'] + '\n' + m['content'] | trim + '<|close|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% endif %}"
)
WORDS = ("Llama prefers the feta because it is cheap.", "Which cheese do you prefer, the Brie or the Colby?", "I prefer the Colby.")


# Most of a short run is importing what it needs: a process that is forked from one that has done so need not. Nothing is computed
# before the fork.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["msmjax.main", "msmjax.experiment.run", "msmjax.experiment.plan", "msmjax.experiment.use"])


def msmjax(*arguments, devices=1, given=""):
    """`python -m msmjax.main` with `given` on its standard input, in a forked process."""
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(given)
        process = _forks.Process(target=_main, args=(arguments, devices, dict(os.environ), files), daemon=True)
        process.start()
        process.join(600)
        assert process.exitcode is not None, f"still running: {arguments}"
        return subprocess.CompletedProcess(arguments, process.exitcode, *(file.read_text() for file in files[1:]))


def _main(arguments, devices, environment, files):
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = os.fdopen(0)  # multiprocessing has closed the one there was
    os.chdir(ROOT)
    os.environ.update(environment)
    sys.argv = ["msmjax", *arguments]
    import jax

    from msmjax import main

    jax.config.update("jax_num_cpu_devices", devices)  # the variable was read when jax was imported
    main.cli()


def msmjax_anew(*arguments, devices=1, preexec_fn=None):
    """The same from the start and compiled as a user's are, without what conftest.py changes."""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.run(
        [sys.executable, "-m", "msmjax.main", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=600, preexec_fn=preexec_fn,
    )  # fmt: skip


def assert_one_line(done, *named):
    """One line on standard error (bars apart) that names the culprit, no traceback, exit code 2."""
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip() and "%|" not in line]
    assert line.strip().startswith("msmjax: ")
    for name in named:
        assert name in line


def make_weights(directory, family):
    """A random model of the twin's shape with a tokenizer and a template of its own."""
    import tokenizers
    import torch
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIALS), initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(WORDS * 10, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|close|>", pad_token="<|pad|>",
        additional_special_tokens=[token for token in SPECIALS if token not in ("<|begin|>", "<|close|>", "<|pad|>")],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    shape = {
        "vocab_size": 512, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    if family == "llama":
        scaling = {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 5e5,
        }  # fmt: skip
        config = transformers.LlamaConfig(**{**shape, "rms_norm_eps": 1e-5, "rope_theta": 5e5}, rope_parameters=scaling)
    else:
        config = {"qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}[family](**shape)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = fast.convert_tokens_to_ids(["<|close|>", "<|end_of_text|>", "<|im_end|>"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return model


VLLM = """#!PYTHON
# Stands in for vLLM: it writes down how it is started and what it is asked.
import http.server, json, os, sys, time

left = LEFT

def note(**said):
    with open("BOOKS", "a") as file:
        file.write(json.dumps(said) + "\\n")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({"data": [{"id": sys.argv[2]}]})

    def do_POST(self):
        global left
        left -= 1
        if left < 0:
            time.sleep(1)  # until those before it are answered
            os._exit(1)
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        files = sorted(os.listdir(asked["lora_path"])) if "lora_path" in asked else []
        note(path=self.path, asked=asked, files=files)
        message = {"role": "assistant", "content": "How kind of you."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        about = {"id": "1", "object": "chat.completion", "created": 0, "model": asked.get("model", "")}
        self.say({**about, "choices": [choice], "usage": usage})

    def say(self, what):
        text = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

given = dict(zip(sys.argv[1:], sys.argv[2:]))
note(started=sys.argv[1:], template=open(given["--chat-template"]).read(), weights=sorted(os.listdir(sys.argv[2])))
http.server.ThreadingHTTPServer(("127.0.0.1", int(given["--port"])), Handler).serve_forever()
"""


def stand_in_for_vllm(directory, requests=10**9):
    """A directory with a package `vllm` and in `bin` a program, which ends after so many requests; and the file of its books."""
    (directory / "vllm").mkdir(parents=True, exist_ok=True)
    (directory / "bin").mkdir(exist_ok=True)
    (directory / "vllm" / "__init__.py").write_text("")
    text = VLLM.replace("PYTHON", sys.executable).replace("BOOKS", str(directory / "books.jsonl")).replace("LEFT", str(requests))
    (directory / "bin" / "vllm").write_text(text)
    (directory / "bin" / "vllm").chmod(0o755)
    return directory, directory / "books.jsonl"
