"""A stratified split that depends on names alone."""

import pytest

from attention_core.training.splits import stratified_split

TARGETS = [0] * 50 + [1] * 30 + [2] * 3


def test_it_covers_each_index_once_with_the_same_mix_of_classes() -> None:
    parts = stratified_split(TARGETS, (0.6, 0.2, 0.2), "x")
    assert sorted(index for part in parts for index in part) == list(range(83))
    assert [sum(TARGETS[i] == 0 for i in part) for part in parts] == [30, 10, 10]
    assert [sum(TARGETS[i] == 1 for i in part) for part in parts] == [18, 6, 6]
    assert parts == stratified_split(TARGETS, (0.6, 0.2, 0.2), "x")
    assert parts != stratified_split(TARGETS, (0.6, 0.2, 0.2), "y")


def test_it_is_the_same_for_ever() -> None:
    """Results that were measured on a split stay comparable."""
    assert stratified_split([0] * 10, (0.6, 0.4), "x") == [[2, 3, 4, 6, 7, 9], [0, 1, 5, 8]]


def test_by_keys_what_comes_moves_little() -> None:
    names = [f"{index}.png" for index in range(83)]
    before = stratified_split(TARGETS, (0.8, 0.2), "x", keys=names)[1]
    after = stratified_split([0, *TARGETS], (0.8, 0.2), "x", keys=["new.png", *names])[1]
    moved = {names[i] for i in before} ^ {(["new.png", *names])[i] for i in after}
    assert len(moved - {"new.png"}) <= 1
    assert len(before) == 17


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        stratified_split(TARGETS, (0.5, 0.2), "x")
    with pytest.raises(ValueError, match="83 targets need as many keys, got 2"):
        stratified_split(TARGETS, (0.5, 0.5), "x", keys=["a", "b"])
