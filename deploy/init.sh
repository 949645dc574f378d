#!/usr/bin/env bash
# What a deployment needs before its services start: Airflow's database, the login, the S3 bucket, the repositories, the pools.
# Once per start; what is there stays. docker-compose's service `init` and `make production-local` run this same file.
set -euo pipefail
airflow db migrate
python -m tasks deploy
airflow pools import "$POOLS_FILE"
