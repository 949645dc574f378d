"""The held-out split: no image on both sides, independent of the order of pairs, stable when a batch is added."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.store.id_groups import connected_ids
from tasks.train.splits import held_out_images

pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda p: (f"i{p[0]}", f"i{p[1]}")), max_size=40)


@given(pairs, st.floats(0, 0.99), st.randoms(use_true_random=False))
def test_whole_components_within_the_share(made: list, share: float, rng):
    held_out = held_out_images(made, share)
    assert all((q in held_out) == (t in held_out) for q, t in made)
    assert sum(q in held_out for q, _ in made) <= share * len(made)
    shuffled = list(made)
    rng.shuffle(shuffled)
    assert held_out_images(shuffled, share) == held_out
    of = connected_ids(made)
    assert all(of[q] == of[t] for q, t in made) and all(name <= image for image, name in of.items())


def test_many_small_families_give_about_the_share():
    made = [(f"{n:04d}a", f"{n:04d}{m}") for n in range(500) for m in "bc"]
    held_out = held_out_images(made, 0.1)
    assert 0.08 <= sum(q in held_out for q, _ in made) / len(made) <= 0.1
    more = made + [(f"{n:04d}a", f"{n:04d}b") for n in range(500, 600)]
    assert len(held_out - held_out_images(more, 0.1)) <= 0.35 * len(held_out)
