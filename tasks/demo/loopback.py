"""The name of this machine for an Airflow that lives on the loopback alone."""


def hostname() -> str:
    """127.0.0.1; AIRFLOW__CORE__HOSTNAME_CALLABLE of the local twin, whose processes are all on this machine."""
    return "127.0.0.1"
