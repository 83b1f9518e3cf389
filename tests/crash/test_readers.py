"""P2: readers draw batches while writers commit, and no batch mixes two states."""

import pytest

from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store

ALIASES = ["lite0", "vit"]


def draw_beside_writers(tmp_path, kit, nursery, segments):
    """Four writers of so many segments each, and four readers, two of which share a cache."""
    url = str(tmp_path / "store")
    open_store(url, create=True)
    shares = [list(range(w * segments, (w + 1) * segments)) for w in range(4)]
    everything = [number for share in shares for number in share]
    readers = [
        nursery.start("gather", url, everything, ALIASES, str(tmp_path / f"cache{r // 2 * r}"), r)
        for r in range(4)
    ]
    writers = [nursery.start("write_all", url, share, ALIASES) for share in shares]
    assert nursery.wait(*writers) == [0] * 4
    assert nursery.wait(*readers) == [0] * 4, "no batch was mixed"
    report = verify(open_store(url))
    assert not kit.damage_beside_models(report)
    assert report.objects == 4 * segments * (2 + len(ALIASES))
    return [[int(line) for line in reader.said()] for reader in readers]


def test_batches_drawn_beside_writers(tmp_path, kit, nursery):
    for seen in draw_beside_writers(tmp_path, kit, nursery, 3):
        assert seen[-1] == 12 and len(set(seen)) > 2, "batches were drawn while the store grew"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_batches_drawn_beside_writers_for_a_minute(tmp_path, kit, nursery):
    for seen in draw_beside_writers(tmp_path, kit, nursery, 400):
        assert seen[-1] == 1600 and len(set(seen)) > 20
