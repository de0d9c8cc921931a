"""Batches that threads compute ahead."""

import pytest

from jointdreamer.classifier.prefetch import prefetch
from jointdreamer.errors import UserError


def test_prefetching_keeps_the_order_reads_no_further_and_hands_errors_on():
    asked = []

    def make(key):
        asked.append(key)
        if key == 7:
            raise UserError("seven")
        return key * key

    stream = prefetch(make, range(100), workers=3, ahead=4)
    assert [next(stream) for _ in range(3)] == [0, 1, 4]
    assert len(asked) <= 8
    with pytest.raises(UserError, match="seven"):
        list(stream)
    assert list(prefetch(make, [], workers=2)) == []
