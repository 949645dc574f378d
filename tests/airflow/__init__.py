"""Tests of the bridge and the DAGs: no running Airflow."""
