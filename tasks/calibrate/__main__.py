"""`python -m tasks.calibrate`: the old spelling of `python -m tasks calibrate`, kept for one release."""

from tasks.__main__ import run_old_spelling

if __name__ == "__main__":
    run_old_spelling("calibrate")
