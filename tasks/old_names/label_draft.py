"""`python -m tasks.label_draft`: the old spelling of `python -m tasks label_draft`, kept for one release."""

from tasks.__main__ import run_old_spelling

if __name__ == "__main__":
    run_old_spelling("label_draft")
