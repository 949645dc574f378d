"""`python -m tasks.deploy`: the old spelling of `python -m tasks deploy`, kept for one release."""

from tasks.__main__ import run_old_spelling

if __name__ == "__main__":
    run_old_spelling("deploy")
