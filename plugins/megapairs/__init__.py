"""The bridge between Airflow and the work (floor 6): names, the stage operator, the trigger form, the alert mail.

DAG files import it as `megapairs` (the plugins folder is on Airflow's sys.path). It runs stages as commands and
imports from tasks/ only what is light: errors, records, config, slug, and the store for an alert's thumbnails.
"""
