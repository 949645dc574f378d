"""Errors, named by what the caller must do next, and the exit codes that carry that meaning to Airflow.

An error says where, what, what was expected and the next step. A dropped row is no error: it is a counted reason.
"""

EXIT_DATA_ERROR = 65  # EX_DATAERR: the rows are wrong; running again gives the same
EXIT_UNREACHABLE = 69  # EX_UNAVAILABLE: a remote does not answer
EXIT_MISSING_PACKAGE = 72  # EX_OSFILE: a package of Python that this kind of remote needs is not installed
EXIT_NO_CREDENTIALS = 77  # EX_NOPERM: a remote wants a key, or refuses the one that it got
EXIT_CONFIG_ERROR = 78  # EX_CONFIG: a parameter is wrong; running again gives the same
EXIT_NOTHING_TO_DO = 99  # a green end: the operator turns it into a skip


class TasksError(Exception):
    """Base of the errors that a stage raises on purpose."""

    exit_code = 1


class ConfigError(TasksError):
    """A parameter is wrong. A person must change it; a retry cannot help."""

    exit_code = EXIT_CONFIG_ERROR


class DataError(TasksError):
    """The input is wrong, or a gate failed. A person must look at the rows; a retry cannot help."""

    exit_code = EXIT_DATA_ERROR


class TransientError(TasksError):
    """Something outside failed (a server, a disk, a lock). A retry may help."""

    exit_code = 75  # EX_TEMPFAIL


class UnreachableError(TransientError):
    """A DVC remote does not answer, or is not there. What it holds is not known."""

    exit_code = EXIT_UNREACHABLE


class MissingPackageError(TasksError):
    """A package that a kind of remote needs is not installed, such as dvc-s3. A person must install it."""

    exit_code = EXIT_MISSING_PACKAGE


class CredentialsError(TasksError):
    """A DVC remote wants credentials, or refuses those that it got. A person must give them."""

    exit_code = EXIT_NO_CREDENTIALS


class NothingToDo(TasksError):
    """Nothing new came in, or the run is a dry run: a green end without a version."""

    exit_code = EXIT_NOTHING_TO_DO
