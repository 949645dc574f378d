"""Tell MLflow's model registry of a promoted model, where MLFLOW_TRACKING_URI is set.

The model itself stays where it was published: a tag of the dataset repository, its weights in the DVC remote. The
registry gets a version of the model `megapairs` that names both, with the metrics of its evaluation in a run. MLflow is
no dependency of the factory: `mlflow-skinny` is installed beside it where it is wanted (docs/decisions/0094).

A registry that does not answer takes nothing back: the model is published, and the stage's report says what is missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)
URI = "MLFLOW_TRACKING_URI"
MODEL, EXPERIMENT = "megapairs", "megapairs"
TAG = "megapairs.tag"  # of a model version: the published tag


def register_model(tag: str, source: str, metrics: Mapping[str, float], facts: Mapping[str, str]) -> str | None:
    """Register a published model; one that is registered already is found again.

    Args:
        tag: `model/<name>`.
        source: where the model is published: its tag and commit in the dataset repository.
        metrics: name -> value, of its evaluation.
        facts: further tags of the version.
    Returns:
        A sentence for the report; None where MLflow is not switched on.
    """
    if not os.environ.get(URI):
        return None
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError:
        return _missed(tag, "mlflow is not installed; install mlflow-skinny beside the stages, or unset the variable")
    try:
        client = mlflow.MlflowClient()
        known = [v for v in client.search_model_versions(f"name = '{MODEL}'") if v.tags.get(TAG) == tag]
        if known:
            return f"MLflow: version {known[0].version} of {MODEL}, registered before"
        _require_model(client, MlflowException)
        run_id = _logged_run(client, tag, metrics)
        version = client.create_model_version(MODEL, source, run_id, tags={**facts, TAG: tag})
        return f"MLflow: version {version.version} of {MODEL}"
    except (MlflowException, OSError) as error:
        return _missed(tag, str(error).splitlines()[0] if str(error) else type(error).__name__)


def _require_model(client: Any, error_type: type[Exception]) -> None:
    """Make the registered model where there is none yet."""
    try:
        client.get_registered_model(MODEL)
    except error_type:
        client.create_registered_model(MODEL, description="Promoted models of the MegaPairs factory")


def _logged_run(client: Any, tag: str, metrics: Mapping[str, float]) -> str:
    """A finished run that holds the metrics; its id."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
    run_id = str(client.create_run(number, run_name=tag, tags={TAG: tag}).info.run_id)
    for name, value in sorted(metrics.items()):
        client.log_metric(run_id, name.replace("@", "_at_"), value)
    client.set_terminated(run_id)
    return run_id


def _missed(tag: str, why: str) -> str:
    """Say what the registry did not get."""
    sentence = f"MLflow: {tag} is published but not registered: {why}"
    log.warning("promote: %s", sentence)
    return sentence
