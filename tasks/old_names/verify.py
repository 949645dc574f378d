"""`python -m tasks.verify`: the old spelling of `python -m tasks verify`, kept for one release."""

from tasks.__main__ import run_old_spelling

if __name__ == "__main__":
    run_old_spelling("verify")
