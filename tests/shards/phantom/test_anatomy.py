"""Outlines of the synthetic chest: sides, closed shapes, and equal draws for equal seeds."""

import numpy as np
import pytest

from shards.phantom import anatomy


def lung(side: int, seed: int = 0) -> anatomy.Lung:
    return anatomy.draw_lung(np.random.default_rng(seed), side, 1.0, 1.0)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_lung_is_on_its_side_and_its_wall_runs_from_apex_to_base(side: int) -> None:
    for seed in range(20):
        drawn = lung(side, seed)
        assert (np.sign(drawn.wall[:, 0]) == side).all()
        assert np.sign(drawn.hilum[0]) == side
        assert drawn.wall[-1, 1] > drawn.hilum[1] > drawn.wall[:, 1].min()
        np.testing.assert_array_equal(drawn.outline[: len(drawn.wall)], drawn.wall)


def test_equal_seeds_draw_equal_lungs() -> None:
    assert np.array_equal(lung(1, 3).outline, lung(1, 3).outline)
    assert not np.array_equal(lung(1, 3).outline, lung(1, 4).outline)


def test_a_larger_heart_pushes_the_left_lung_alone() -> None:
    for side in (-1, 1):
        small, large = (anatomy.draw_lung(np.random.default_rng(0), side, 1.0, heart).outline for heart in (0.8, 1.2))
        assert np.array_equal(small, large) == (side < 0)


def test_vessels_start_at_the_hilum_and_taper() -> None:
    rng, drawn = np.random.default_rng(0), lung(1)
    strokes = anatomy.vessels(rng, drawn)
    trunks = [stroke for stroke in strokes if stroke.width == max(anatomy.VESSEL_WIDTHS)]
    assert len(trunks) == 11
    assert all(np.hypot(*(stroke.points[0] - drawn.hilum)) < 0.06 for stroke in trunks)
    assert {stroke.width for stroke in strokes} == set(anatomy.VESSEL_WIDTHS)
    widths = [stroke.width for stroke in strokes]
    assert widths == sorted(widths), "trunks cover their branches"


def test_ribs_are_arcs_of_both_sides_with_edges() -> None:
    posterior, anterior, edges = anatomy.ribs(np.random.default_rng(0), lung(-1))
    assert (len(posterior), len(anterior), len(edges)) == (anatomy.RIBS, anatomy.RIBS, 4 * anatomy.RIBS)
    for back, front in zip(posterior, anterior, strict=True):
        np.testing.assert_allclose(back.points[-1], front.points[0])


@pytest.mark.parametrize("draw", [anatomy.clavicle, anatomy.scapula])
def test_bones_of_both_sides_are_mirrored(draw: object) -> None:
    left, right = (draw(np.random.default_rng(2), side) for side in (1, -1))  # type: ignore[operator]
    np.testing.assert_allclose(left * [-1, 1], right)


def test_the_trunk_is_symmetric() -> None:
    trunk, arm, other_arm = anatomy.body(np.random.default_rng(0))
    np.testing.assert_allclose(trunk[::-1] * [-1, 1], trunk)
    np.testing.assert_allclose(arm * [-1, 1], other_arm)


def test_a_skin_fold_stays_between_wall_and_hilum() -> None:
    for seed in range(20):
        drawn = lung(1, seed)
        fold = anatomy.skin_fold(np.random.default_rng(seed), drawn)
        assert len(fold) > 1
        assert (np.abs(fold[:, 0]) <= np.abs(drawn.wall[:, 0]).max()).all()
