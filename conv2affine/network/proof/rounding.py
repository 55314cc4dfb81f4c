"""How far a computed affine map may be from the exact one: bounds for any order of summation, with or without FMA.

An expression in which each term passes through at most n roundings has the exact value for terms that are off by
factors 1 + e, |e| <= gamma(n) = n u / (1 - n u); u is half the distance from 1 to the next number. Higham, Accuracy
and Stability of Numerical Algorithms, chapter 3. It does not hold for Winograd, FFT or TF32 kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

DOUBLE = torch.float64
# More than all underflows of an expression in float64 of numbers of ordinary size.
UNDERFLOW = 2.0**-960


def gamma(n: Any, dtype: torch.dtype) -> Any:
    """The largest relative error of n roundings; infinite where there are too many of them for a bound."""
    nu = np.asarray(n, np.float64) * (torch.finfo(dtype).eps / 2)
    return np.where(nu < 0.5, nu / np.maximum(1 - nu, 0.5), np.inf)


def rounding(counts: Any, rise: Any, fall: Any, largest: float, dtype: torch.dtype) -> Any:
    """How far each row of A x + b is from its exact value, if A and b are rounded to a dtype and it is computed there.

        gamma(n) max(rise, fall) + gamma(5) (rise + fall) + underflow

    Each addition rounds a sum of some terms, which is between -fall and rise, but for what was rounded before it.

    Args:
        counts: Entries of each row.
        rise: The most that the terms > 0 of a row come to, in A x + b, computed in float64.
        fall: The same of those < 0, without their sign.
        largest: The largest |x|.
        dtype: Of the entries and of the computation.
    """
    # Of each term: rounding of the entry, its product, and one where an entry is rounded twice, by way of float32. Of
    # the sums: one addition for each entry, and three as their terms are rounded. More, as `rise` and `fall` are too.
    n = np.asarray(counts) + 5
    sums = gamma(n, dtype) * np.maximum(rise, fall) + gamma(5, dtype) * (rise + fall)
    return sums + torch.finfo(dtype).tiny * n * (2 + largest)
