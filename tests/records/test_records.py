"""The package trains and scores as it did before it was taken apart and put together again."""

import json

import numpy as np
import pytest

from tests.records.cases import RECORD, cases, outcome, precisions, processor

KNOWN = json.loads(RECORD.read_text())
CASES = [(case, precision) for case in cases() for precision in precisions()]


@pytest.mark.parametrize(("case", "precision"), CASES)
def test_training_and_scores_are_as_recorded(case, precision):
    name, found = f"{case}, {precision}", outcome(case, precision)
    bits = KNOWN["bits"].get(processor(), {})
    if name in bits:
        assert {key: found[key] for key in ("weights", "scores")} == bits[name]
    if name not in KNOWN["values"]:
        pytest.skip(f"{precision} was not recorded")
    known = KNOWN["values"][name]
    # A few steps of Adam or RMSProp move a weight whose gradient is near zero either way: norms agree, bits do not.
    loose = 1e-3 if precision == "float32" else 3e-2
    assert found["norms"].keys() == known["norms"].keys()
    for key, norm in known["norms"].items():
        assert found["norms"][key] == pytest.approx(norm, rel=loose, abs=1e-3), key
    for key, values in known["values"].items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(found["values"][key], values, rtol=20 * loose, atol=20 * loose * scale, err_msg=key)
