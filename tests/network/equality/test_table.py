"""The table of units, without networks."""

import numpy as np
from scipy.sparse import csr_array

from conv2affine.network.equality.forms import Form
from conv2affine.network.equality.table import Rows, Table, leading
from conv2affine.network.proof.forward import Interval


def form(matrix):
    """Elements without a bias, of three inputs, in a table of nine units."""
    matrix = np.pad(np.array(matrix, float), [(0, 0), (0, 6)])
    return Form(csr_array(matrix), np.zeros(len(matrix)), np.abs(matrix).sum(axis=1), np.zeros(len(matrix)))


def table(scaled):
    """One whose first network has two ReLUs."""
    result = Table(3, 9, 4, 2.0**-24, scaled=scaled, has_bounds=False)
    known, units = form([[1, 2, 0], [0, 1, 3]]), result.new(2)
    result.probes[units] = [[1, 2, 3, 4], [4, 0, 0, -1]]
    result.rows[0].add(units, known, Interval(-np.ones(2), np.ones(2)), *result.keys(known))
    result.index()
    return result


def test_units_are_found_by_their_entries_up_to_the_sign():
    others = form([[0, -1, -3], [2, 4, 0], [1, 0, 0]])
    for scaled, found in ((False, [4, -1, -1]), (True, [4, 3, -1])):
        units = table(scaled)
        keys, _ = units.keys(others)
        for unit, sign in (units.rows[0].twins(keys), units.nearest(keys, units.by_keys)):
            assert unit.tolist() == found
            assert sign[unit >= 0].tolist() == [-1, 1][: (unit >= 0).sum()]


def test_partners_are_found_by_their_values():
    units = table(False)
    unit, sign = units.nearest(np.array([[-1, -2, -3.01, -4], [4, 0, 0, 1]]), units.by_probes)
    assert unit.tolist() == [3, -1]
    assert sign[0] == -1


def test_the_first_of_equal_elements_leads():
    keys, _ = table(False).keys(form([[1, 1, 0], [0, 1, 0], [-1, -1, 0], [0, 1, 0]]))
    assert leading(keys, np.arange(4)).tolist() == [0, 1]
    assert leading(keys, np.array([2, 3])).tolist() == [2, 3]


def test_units_are_needed_through_others():
    rows = Rows(9)
    ends = Interval(-np.ones(1), np.ones(1))
    for unit, row in ((3, form([[0, 1, 0]])), (4, form([[0, 0, 1]]))):
        rows.add(np.array([unit]), row, ends, np.zeros((1, 8)), np.ones(1))
    reader = Form(csr_array(np.eye(1, 9, 3)), np.zeros(1), np.ones(1), np.zeros(1))
    assert np.flatnonzero(rows.needed([reader])).tolist() == [1, 3]
