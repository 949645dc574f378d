"""The environment of a stage: an allow-list, because stages decode strangers' images and must hold no secrets.

Airflow's own variables (AIRFLOW__*, AIRFLOW_CONN_*, AIRFLOW_VAR_*: the database's URL, the Fernet key, the key that
signs tokens) and all that is not named here stay behind. Credentials go only to the stages that use them. A variable
that a site needs besides is named in MEGAPAIRS_STAGE_VARIABLES, separated by commas.
"""

from __future__ import annotations

from collections.abc import Mapping

# Whole names that every stage gets.
NAMES = frozenset(
    (
        *(
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "PATH",
            "LANG",
            "LANGUAGE",
            "TZ",
            "TERM",
            "TMPDIR",
            "TMP",
            "TEMP",
            "HOSTNAME",
            "VIRTUAL_ENV",
        ),
        *("CONDA_PREFIX", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONPYCACHEPREFIX", "PYTHONFAULTHANDLER"),
        *("TOKENIZERS_PARALLELISM", "TRACEPARENT", "TRACESTATE"),
    )
)
# Beginnings of names that every stage gets: threads and devices of numeric libraries, model hubs, DVC, the factory's.
PREFIXES = (
    *("LC_", "XDG_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "MALLOC_", "CUDA_", "CUBLAS_"),
    *("NVIDIA_", "NCCL_", "GLOO_", "HIP_", "ROCR_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "VLLM_"),
    *("HF_", "TRANSFORMERS_", "SENTENCE_TRANSFORMERS_", "DVC_", "MEGAPAIRS_"),
)
# Credentials: beginnings of names, and the commands that get them (Airflow's AWS connection only where sources are
# read, see stage.py). The rest of the stages gets none, whatever NAMES and PREFIXES say.
CREDENTIALS = {
    ("AWS_", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_"): (
        *("ingest_list", "ingest_fetch", "ingest", "open_run", "doctor", "version", "promote"),
    ),
    ("GIT_", "SSH_", "DVC_STUDIO_"): ("open_run", "doctor", "version", "promote"),
    ("MEGAPAIRS_MODEL_API_KEY",): ("recaption", "caption", "judge", "judge_check", "doctor"),
    ("MLFLOW_",): ("promote",),
    ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY", "OPENAI_API_KEY"): (
        *("recaption", "embed", "caption", "judge", "judge_check", "train", "evaluate"),
    ),
}
# A run's profile is resolved in its params.yaml, and its code is the worktree's. The rest is the DAGs' own.
NEVER = (
    *("PYTHONPATH", "MEGAPAIRS_PROFILE", "MEGAPAIRS_STAGE_VARIABLES"),
    *("MEGAPAIRS_AWS_CONNECTION", "MEGAPAIRS_MODELS_CONNECTION"),
)
NEVER_PREFIXES = ("AIRFLOW_", "_AIRFLOW_")
SECRET_SUFFIXES = ("_PASSWORD", "_SECRET", "_TOKEN", "_KEY")  # no prefix lets such a name through


def is_for_stage(name: str, stage: str, more: frozenset[str] = frozenset()) -> bool:
    """Whether a stage may see a variable.

    Args:
        name: of the variable.
        stage: the command, as in `python -m tasks <stage>`.
        more: names that the site allows besides.
    """
    if name in NEVER or name.startswith(NEVER_PREFIXES):
        return False
    for prefixes, stages in CREDENTIALS.items():
        if name.startswith(prefixes):
            return stage in stages or name in more
    if name in NAMES or name in more:
        return True
    return name.startswith(PREFIXES) and not name.upper().endswith(SECRET_SUFFIXES)


def stage_environment(base: Mapping[str, str], stage: str) -> dict[str, str]:
    """Environment of a stage: what it may see of `base`, unbuffered output, one thread per native library unless
    `base` says otherwise.

    Args:
        base: the worker's environment.
        stage: the command, as in `python -m tasks <stage>`.
    """
    more = frozenset(name.strip() for name in base.get("MEGAPAIRS_STAGE_VARIABLES", "").split(",") if name.strip())
    environment = {name: value for name, value in base.items() if is_for_stage(name, stage, more)}
    environment["PYTHONUNBUFFERED"] = "1"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        environment.setdefault(name, "false" if name.startswith("TOKENIZERS") else "1")
    return environment
