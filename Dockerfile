# One image for every Airflow service of docker-compose.yaml.
#
#   docker build --build-arg FLAVOUR=cpu -t megapairs:cpu .     default
#   docker build --build-arg FLAVOUR=gpu -t megapairs:gpu .     CUDA builds of torch and faiss, for the GPU worker
#
# vLLM pins torch itself and so runs from its own image (services vllm, vllm-writer).
FROM python:3.11-slim-bookworm

ARG FLAVOUR=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# git: runs are worktrees. tini: signals reach Airflow, and ended stages are collected.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git tini libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 50000 --gid 0 --create-home airflow

WORKDIR /opt/megapairs
COPY pyproject.toml requirements.lock requirements-gpu.lock ./

# torch first, from the index of its flavour; then the lock, which holds the Celery and PostgreSQL providers too; at last,
# on GPU, the CUDA build of faiss instead of the CPU one.
RUN pip install --no-cache-dir uv \
    && TORCH="torch==$(sed -n 's/.*"torch==\(.*\)".*/\1/p' pyproject.toml)" \
    && if [ "$FLAVOUR" = cpu ]; then pip install --no-cache-dir "$TORCH" --index-url "$TORCH_INDEX"; else pip install --no-cache-dir "$TORCH"; fi \
    && uv pip install --system --no-cache --no-deps -r requirements.lock \
    && if [ "$FLAVOUR" = gpu ]; then uv pip uninstall --system faiss-cpu && uv pip install --system --no-cache --no-deps -r requirements-gpu.lock; fi

COPY params.yaml dvc.yaml ./
COPY expectations expectations
COPY plugins plugins
COPY dags dags
COPY deploy deploy
COPY tasks tasks

# Workers of several users share the volume; every clone in it is ours.
RUN git config --system --add safe.directory '*' && mkdir -p /data/airflow/logs /data/runs /var/cache/megapairs && chown -R airflow:0 /data /var/cache/megapairs /opt/megapairs

ENV PYTHONPATH=/opt/megapairs \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/megapairs/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/megapairs/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    DVC_NO_ANALYTICS=true

RUN mkdir -p /opt/airflow && chown -R airflow:0 /opt/airflow && install -m 0755 deploy/entrypoint.sh /entrypoint
# docker compose build --build-arg COMMIT=$(git rev-parse HEAD): open_run warns when the stages are of other code.
ARG COMMIT=
ENV MEGAPAIRS_COMMIT=${COMMIT}
USER airflow
ENTRYPOINT ["tini", "--", "/entrypoint"]
CMD ["version"]
