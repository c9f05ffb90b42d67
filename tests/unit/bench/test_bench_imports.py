from __future__ import annotations

import pytest

from labkit.bench import imports
from labkit.bench.engine import Measured


@pytest.mark.parametrize("arm", imports.ARMS)
def test_no_arm_of_the_bench_loads_torch_matplotlib_or_ipython(arm):
    assert not set(imports.modules_loaded(imports.ARMS[arm])) & set(imports.FORBIDDEN)


def test_a_heavy_module_is_seen_when_it_is_loaded():
    assert imports.modules_loaded("import asyncio") == ["asyncio"]


def test_the_difference_is_taken_within_blocks_and_failed_ones_are_left_out():
    labkit = [Measured(0.030), Measured(0.050), Measured(float("nan"), failed="loads torch")]
    bare = [Measured(0.020), Measured(0.030), Measured(0.020)]
    assert (
        imports.added_ms(labkit, bare) == pytest.approx([10.0, 20.0])
        and imports.added_ms("missing", bare) == []
    )
