"""The bridge between Airflow and the work: names, the stage operator, the trigger form, the alert mail.

DAG files import it as `megapairs`, because the plugins folder is on Airflow's sys.path. It runs stages as commands
(`python -m tasks <stage>`) and imports no stage: of tasks/ only errors, names, config and records, the templates of
the mail, and, when a mail shows images, the store.

| file | what it does | imports of this package |
|---|---|---|
| code_folder.py | where the code lies, and its commit | none |
| pods.py | Kubernetes: the pod of the GPU stages | none |
| wiring.py | names and settings that all share: DAG ids, pool, asset, a run's folder | code_folder, pods |
| command.py | runs a command, reads its report and its last lines; without Airflow | none |
| environment.py | which variables a stage may see; without Airflow | none |
| aws.py | Airflow's AWS connection as environment variables | none |
| facts.py | pools, workers on each queue, the mail server: for the check before a run | wiring |
| form.py | the trigger form, made from params.yaml, the profiles and tasks/config | wiring |
| mail_message.py | the form of a mail: text beside HTML, images by cid | none |
| alerts.py | the alert mail | wiring, mail_message |
| links.py | a button on a task's page that opens what it made | wiring |
| results.py | the last lines of a task's log: what came out; without Airflow | none |
| stage.py | the operators: Stage, OpenRun, CloseRun | wiring, command, environment, aws, form, links, results |
| airflow_state.py | what runs, what failed last, the next run: for the home page | wiring |
| news.py | mails of runs that did not fail; further notifiers | wiring, alerts, mail_message, results |
| review_pages.py | the review queue's routes | none |
| maintenance.py | the operators of the maintenance DAGs | wiring, command, facts, alerts, stage, mail_message |
| digest.py | the weekly digest | wiring, alerts, mail_message, stage |
| defaults.py | default arguments of every task | alerts, news |
"""

from megapairs.code_folder import make_importable

make_importable()  # before the files beside this one import tasks
