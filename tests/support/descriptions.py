"""A structured description of a desk, as the captioner of prompt set 'standard' is asked for it."""

PROSE = (
    "Both pictures show a wooden desk by a window with a closed laptop on it and a chair before it. However, the "
    "source is taken on a bright day, the chair is red and a mug stands beside the laptop, whereas the target is taken "
    "at night, the chair is green, the mug is gone and a lamp is lit at its left end."
)
DIFFERENCES = [
    {"kind": "attribute", "source": "a red chair", "target": "a green chair"},
    {"kind": "added", "source": "", "target": "a lit lamp"},
    {"kind": "removed", "source": "a mug", "target": ""},
    {"kind": "background", "source": "bright day", "target": "night"},
]
DESK = {"shared": "a wooden desk by a window", "differences": DIFFERENCES, "prose": PROSE}
