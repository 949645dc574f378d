"""Do the DAGs and the stages run the same code? The form is Airflow's, the stages are those of MEGAPAIRS_DEPLOYED."""

from __future__ import annotations

from pathlib import Path

from tasks.publish.git import git, resolve_ref

# What the form and the wiring are made from; reports and documents may differ.
CODE = ("tasks", "plugins", "dags", "params.yaml", "expectations")
SHOWN = 5  # of the files that differ, in the warning


def code_difference(clone: Path, airflow_commit: str, deployed: str) -> str | None:
    """A warning when the code of Airflow's processes is not that of the run's worktree.

    Args:
        clone: the deployment's clone.
        airflow_commit: commit of the DAGs and plugins; empty when unknown.
        deployed: commit of the run's worktree.
    Returns:
        None when nothing differs that form, wiring or stages are made from, or when the commit is unknown.
    """
    if not airflow_commit or airflow_commit == deployed:
        return None
    what = (
        f"the DAGs and the form are of commit {airflow_commit[:12]}, the stages of {deployed[:12]} (MEGAPAIRS_DEPLOYED)"
    )
    then = "deploy both from one commit: push it to origin.git and build the image anew, or restart Airflow on it"
    if resolve_ref(clone, airflow_commit) is None:
        return f"{what}, and the deployment's repository does not know the first; {then}"
    files = git(clone, "diff", "--name-only", airflow_commit, deployed, "--", *CODE).splitlines()
    if not files:
        return None
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"{what}; {', '.join(files[:SHOWN])}{more} differ; {then}"
