#!/usr/bin/env bash
# The image's entry point. docker-compose.yaml gives commands of Airflow ("scheduler"); Airflow's chart and its Kubernetes
# executor give whole programs ("bash -c ...", "python -m ...", "airflow db migrate"), and its probes call this file by name.
case "${1:-}" in
    airflow | bash | sh | python | python3) exec "$@" ;;
    *) exec airflow "$@" ;;
esac
