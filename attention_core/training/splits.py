"""Splits of a data set that are the same on every machine, whatever the run's seed."""

import hashlib
from collections.abc import Sequence


def stratified_split(
    targets: Sequence[int],
    shares: Sequence[float],
    name: str,
    *,
    keys: Sequence[object] | None = None,
) -> list[list[int]]:
    """Split indices into parts with the same mix of classes, the same on every machine.

    The order inside a class is that of a hash of (name, key): no random number generator, whose
    draws another version of a library may change.

    Args:
        targets: the class of each index.
        shares: the share of each part; together 1.
        name: keys the hash.
        keys: what each index is known by, such as the name of a file, so that it keeps its place
            in the order when others come or go; by default the index itself.

    Raises:
        ValueError: the shares are no shares, or there are not as many keys as targets.
    """
    if any(share < 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares must be at least 0 and sum to 1, got {list(shares)}")
    keys = range(len(targets)) if keys is None else keys
    if len(keys) != len(targets):
        raise ValueError(f"{len(targets)} targets need as many keys, got {len(keys)}")
    members: dict[int, list[int]] = {}
    for index, target in enumerate(targets):
        members.setdefault(target, []).append(index)
    parts: list[list[int]] = [[] for _ in shares]
    for label in sorted(members):
        order = sorted(
            members[label], key=lambda i: hashlib.blake2b(f"{name}/{keys[i]}".encode()).digest()
        )
        ends = [round(len(order) * sum(shares[: k + 1])) for k in range(len(shares))]
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            part += order[start:end]
    return [sorted(part) for part in parts]


def stratified_folds(targets: Sequence[int], folds: int, name: str) -> list[list[int]]:
    """Split indices into folds for cross-validation, the same on every machine.

    The classes in turn, each in the order of a hash as in `stratified_split`, are dealt to the
    folds one by one: folds differ by at most one in size, and so in each class.

    Args:
        targets: the class of each index.
        folds: how many.
        name: keys the hash.

    Raises:
        ValueError: there are fewer than two folds, or more than there are targets.
    """
    if not 2 <= folds <= len(targets):
        raise ValueError(f"folds must be 2 to {len(targets)}, as many as targets, got {folds}")

    def place(index: int) -> tuple[int, bytes]:
        return targets[index], hashlib.blake2b(f"{name}/{index}".encode()).digest()

    order = sorted(range(len(targets)), key=place)
    return [sorted(order[fold::folds]) for fold in range(folds)]
