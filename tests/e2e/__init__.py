"""End-to-end tests: a real Airflow on this machine, a browser, a mail server."""
