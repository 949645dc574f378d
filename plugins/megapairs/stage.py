"""The operators: a stage as a command in the run's worktree; opening and closing that worktree.

Exit codes: 0 = success, the report is the task's XCom; 65 and 78 (DataError, ConfigError) = failed without a retry;
99 (NothingToDo) = skipped, a green run without an asset event; anything else = retried.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from megapairs import lineage, telemetry
from megapairs.aws import aws_variables
from megapairs.code_folder import code_commit
from megapairs.command import Ending, StageProcess, stage_command
from megapairs.environment import stage_environment
from megapairs.facts import gather_facts
from megapairs.form import changes_from
from megapairs.links import WITH_PAGES, PageLink, page_link
from megapairs.model_keys import STAGES as ASKS_MODELS
from megapairs.model_keys import model_variables
from megapairs.results import result_lines
from megapairs.wiring import PROJECT, TRIPLETS, dataset_of, dataset_variables, run_folder, triplets_of
from tasks.browse import promotions
from tasks.config import overlay
from tasks.errors import EXIT_CONFIG_ERROR, EXIT_DATA_ERROR, EXIT_NOTHING_TO_DO, TasksError
from tasks.parts import WHOLE, part_names

READS_BUCKETS = ("ingest_list", "ingest_fetch", "ingest")  # the stages that get Airflow's AWS connection
LAST_STAGES = ("version", "promote")  # whose end decides what comes out of a run
OPENED, DECIDED = Path(".run", "opened.json"), Path(".run", "decided")  # in a run's worktree
# What Airflow's page calls one of a mapped stage's tasks: its encoder and part.
LABEL = "{{ [task.item or '', task.part or ''] | join(' ') | trim }}"


def report_or_raise(name: str, ending: Ending) -> dict[str, Any]:
    """The report of a stage that succeeded.

    Args:
        name: the stage as a person calls it, for the message.
        ending: how it ended.

    Raises:
        AirflowSkipException: nothing to do.
        AirflowFailException: a parameter or the rows are wrong; a retry cannot help.
        AirflowException: anything else; Airflow tries again.
    """
    last = "\n".join(ending.last_lines)
    if ending.code == EXIT_NOTHING_TO_DO:
        notes = (ending.report or {}).get("notes") or [last]
        raise AirflowSkipException(f"{name}: nothing to do. {notes[0]}")
    if ending.code in (EXIT_DATA_ERROR, EXIT_CONFIG_ERROR):
        kind = "DataError" if ending.code == EXIT_DATA_ERROR else "ConfigError"
        raise AirflowFailException(
            f"{name}: ended with {kind} (exit code {ending.code}), a retry cannot help. Its last lines:\n{last}"
        )
    if ending.code != 0:
        how = f"was ended by signal {-ending.code}" if ending.code < 0 else f"ended with exit code {ending.code}"
        raise AirflowException(f"{name}: {how}. Its last lines:\n{last}")
    if ending.report is None:
        raise AirflowException(
            f"{name}: ended with exit code 0 but its last line is no StageReport. Its last lines:\n{last}"
        )
    return ending.report


class Command(BaseOperator):
    """Base of the operators: a `python -m tasks ...` command as a task; a subclass chooses command and folder."""

    _running: StageProcess | None = None

    def run_command(self, command: list[str], cwd: Path, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run the command to its end, its output in the task's log; returns its report.

        Args:
            command: program and arguments.
            cwd: the folder that it runs in.
            variables: added to the stage's environment; never logged.
        Raises:
            AirflowFailException: no such folder; else as of `report_or_raise`.
        """
        if not cwd.is_dir():
            raise AirflowFailException(
                f"{cwd}: no such folder; expected a run's worktree, which open_run makes below MEGAPAIRS_RUNS; "
                "clear open_run to make it again"
            )
        name = " ".join(command[3:5]) if len(command) > 4 and not command[4].startswith("-") else command[3]
        self.log.info("in %s: %s", cwd, " ".join(command))
        self._running = StageProcess(command, cwd, stage_environment({**os.environ, **(variables or {})}, command[3]))
        return report_or_raise(name, self._running.wait(lambda line: self.log.info("%s", line)))

    def on_kill(self) -> None:
        """Marked failed, cleared or timed out: the stage and its children end too."""
        if self._running is not None:
            self._running.kill()


class Stage(Command):
    """One stage in the run's worktree.

    Args:
        stage: name of the stage, as in `python -m tasks <stage>`.
        item: the encoder of embed and mine, the table of validate; may be mapped over.
        part: 'i/n', the i-th of n parts (tasks/parts.py); '1/1' is the whole; may be mapped over.
        then: the stage that is mapped over this task's return value, the names of its parts; the report is then the
            XCom `report`. Without it the report is the return value.
    """

    template_fields: Sequence[str] = ("item", "part")

    def __init__(
        self, *, stage: str, item: str | None = None, part: str | None = None, then: str | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("map_index_template", LABEL)  # a mapped task takes it from `partial` alone
        super().__init__(**kwargs)
        if stage in WITH_PAGES:
            self.operator_extra_links = (PageLink(),)
        self.stage = stage
        self.item = item
        self.part = part
        self.then = then
        self.report: dict[str, Any] | None = None
        self.skip_reason = ""

    def execute(self, context: Context) -> dict[str, Any] | list[str]:
        """Run the stage; returns its StageReport, or the names of the parts of the stage that follows.

        A publishing stage puts the version's tag, its first note, into its asset event.
        """
        folder = run_folder(str(context["run_id"]), self.dag_id)
        variables = aws_variables(os.environ) if self.stage in READS_BUCKETS else {}
        if self.stage in ASKS_MODELS:
            variables = model_variables(os.environ)
        part = None if self.part == WHOLE else self.part
        attributes = {"item": self.item or "", "part": part or "", "run_id": str(context["run_id"])}
        with telemetry.stage_span(self.stage, attributes) as trace_variables:
            try:
                report = self.run_command(
                    stage_command(self.stage, self.item, part), folder, {**variables, **trace_variables}
                )
            except AirflowSkipException as skip:
                self.skip_reason = str(skip)
                note_decided(folder, self.stage)
                raise
            except AirflowFailException:
                self.log_result({}, folder, str(context["run_id"]))
                raise
            telemetry.record_stage(self.stage, report, folder)
        self.report = report
        if self.stage == "promote":
            self.keep_decision(report, folder, str(context["run_id"]))
        triplets = triplets_of(dataset_of(self.dag_id))
        if triplets in self.outlets:
            context["outlet_events"][triplets].extra = {
                "version": report["notes"][0],
                "changes": values_for_training(changes_from(run_values(context))),
            }
        self.log_result(report, folder, str(context["run_id"]))
        if self.then is None:
            return report
        context["ti"].xcom_push("report", report)
        return part_names(self.then, report["parts"][self.then])

    def log_result(self, report: Mapping[str, Any], folder: Path, run_id: str) -> None:
        """End the log with what came out, and where its page is; of a stage that failed, a gate's expectations."""
        if report or self.stage == "validate":
            lines = result_lines(self.stage, self.item, report, folder)
            for line in lines:
                self.log.info("%s", line)
            if lines and (link := page_link(self.stage, self.item, self.dag_id, run_id)).startswith("http"):
                self.log.info("its page: %s", link)

    def keep_decision(self, report: Mapping[str, Any], folder: Path, run_id: str) -> None:
        """Keep what a model run decided beside the clone, for the home page; without it the page says less."""
        try:
            promotions.keep(deployment(self.dag_id), folder, run_id, report)
        except (OSError, ValueError, TasksError, AirflowFailException) as error:
            self.log.warning("the decision is not kept for the pages: %s", error)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """What the stage read and wrote, for Airflow's openlineage provider; None without it."""
        return lineage.lineage_of(
            self.stage, self.item, run_folder(str(task_instance.run_id), self.dag_id), self.report
        )


class OpenRun(Command):
    """Make the run's worktree: deployed code, the last version's data, the form's values laid over params.yaml.

    Before, `python -m tasks doctor` looks within seconds whether all is there that the run will need; what it finds
    missing fails this task, whose mail says what to do. MEGAPAIRS_PREFLIGHT=off leaves it out.

    A model run that an event started takes the newest version that is published when it opens: while one run trains,
    several versions may be published, and Airflow starts one run for all of them.

    Args:
        kind: 'dataset' or 'model'.
        dataset: of MEGAPAIRS_DATASETS; '' for the one of MEGAPAIRS_DATASET.
    """

    def __init__(self, *, kind: str, dataset: str = "", **kwargs: Any) -> None:
        if kind == "model":
            kwargs.setdefault("inlets", [triplets_of(dataset)])  # so that all events of the asset can be read
        super().__init__(task_id="open_run", **kwargs)
        self.kind = kind

    def execute(self, context: Context) -> dict[str, Any]:
        """Open the run; returns open_run's report, whose first note is the worktree."""
        given = run_values(context)
        changes = changes_from(given)
        more = ["--run-id", str(context["run_id"]), "--kind", self.kind]
        if self.kind == "model":
            triplets = triplets_of(dataset_of(self.dag_id))
            event = newest_event(context.get("triggering_asset_events"), context.get("inlet_events"), triplets)
            # the form of a run that an event started holds only its presets
            changes = overlay(changes, event.get("changes") or {})
            tag = given.get("dataset_version") or event.get("version")
            more += ["--dataset-version", str(tag)] if tag else []
        if os.environ.get("MEGAPAIRS_PREFLIGHT", "on") != "off":
            facts = json.dumps(gather_facts())
            asked = ("--kind", self.kind, "--conf", json.dumps(changes), "--airflow", facts, "--json")
            keys = {**model_variables(os.environ), **dataset_variables(self.dag_id)}
            self.run_command(stage_command("doctor", more=asked), PROJECT, keys)  # the clone's code may be older
        commit = {"MEGAPAIRS_AIRFLOW_COMMIT": code_commit(PROJECT)}  # open_run warns where the stages are of another
        command = stage_command("open_run", more=(*more, "--conf", json.dumps(changes)))
        place = dataset_variables(self.dag_id)
        report = self.run_command(command, deployment(self.dag_id), {**commit, **place})
        self.log.info("the run's own values: %s", json.dumps(changes) if changes else "none")
        return report


class CloseRun(Command):
    """Remove the run's worktree: its tables are in the version that it published; without one they are given up."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("trigger_rule", "none_failed")  # also after a skip: nothing new, or a dry run
        super().__init__(task_id="close_run", **kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        """Close the run; returns the command's report.

        Raises:
            AirflowFailException: the run's last stage neither ran nor found that there is nothing to do, as where a
                person marked the run failed and cleared only its failed tasks; its worktree stays.
        """
        run_id = str(context["run_id"])
        folder = run_folder(run_id, self.dag_id)
        reports = [folder / ".run" / "reports" / f"{stage}.json" for stage in LAST_STAGES]
        is_decided = any(path.exists() for path in (folder / DECIDED, *reports))
        if (folder / OPENED).exists() and not is_decided:
            raise AirflowFailException(
                "close_run: no version and no decision came out of this run: tasks before this one are skipped, though "
                "none of them found nothing to do (a run that was marked failed, of which only the failed tasks were "
                "cleared). Nothing was removed. Clear the first skipped task with its downstream tasks, and the run "
                "continues in the same worktree"
            )
        more = ("--close", "--run-id", run_id)
        place = dataset_variables(self.dag_id)
        return self.run_command(stage_command("open_run", more=more), deployment(self.dag_id), place)


def note_decided(folder: Path, stage: str) -> None:
    """Keep in the run's worktree that a stage found nothing to do, so that what follows is skipped for a reason."""
    if (folder / OPENED).exists():
        (folder / DECIDED).write_text(f"{stage}\n")


def deployment(dag_id: str = "") -> Path:
    """The clone of the deployment that a DAG works on.

    Raises:
        AirflowFailException: MEGAPAIRS_DATASET is not set.
    """
    if place := dataset_variables(dag_id):
        return Path(place["MEGAPAIRS_DATASET"])
    if not os.environ.get("MEGAPAIRS_DATASET"):
        raise AirflowFailException(
            "MEGAPAIRS_DATASET is not set: it names the deployment's clone of the dataset repository (.env.example)"
        )
    return Path(os.environ["MEGAPAIRS_DATASET"])


def run_values(context: Context) -> dict[str, Any]:
    """The run's values by name: the form's presets, overlaid with the trigger's configuration, which may hold names
    that the form does not offer.
    """
    return {**context["params"], **(context["dag_run"].conf or {})}


def values_for_training(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a dataset run's own values that its fine-tuning takes over: profile, date, the model's sections.

    Args:
        changes: in the form of params.yaml.
    """
    values = {name: value for name, value in changes.items() if name in ("profile", "train", "evaluate", "promote")}
    date = changes.get("open_run", {}).get("date")
    return {**values, "open_run": {"date": date}} if date else values


def newest_event(started_by: Any, published: Any, triplets: Asset = TRIPLETS) -> Mapping[str, Any]:
    """The extra values of the newest asset event; empty when a person started the run.

    Args:
        started_by: the context's triggering_asset_events: what was published when Airflow made the run, which may have
            waited for another one since.
        published: the context's inlet_events, with every event of the asset; None: those of `started_by` alone.
        triplets: the asset of the dataset's versions.
    """
    events = list(started_by[triplets]) if started_by and triplets in started_by else []
    if events and published is not None:
        events += list(published[triplets].ascending(False).limit(1))
    newest = max(events, key=lambda e: e.timestamp, default=None)
    return {} if newest is None else newest.extra


def parts_from(report: Mapping[str, Any] | None, stage: str) -> list[str]:
    """The parts of a stage as the report of an earlier one counts them; for a stage that a second task maps over."""
    return part_names(stage, (report or {})["parts"][stage])
