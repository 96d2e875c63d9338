"""All cases, family by family."""

from __future__ import annotations

import cases_activations
import cases_convolution
import cases_elementwise
import cases_indexing
import cases_normalization
import cases_pooling
import cases_products
import cases_reductions
import cases_shaping

FAMILIES = (
    cases_activations,
    cases_convolution,
    cases_elementwise,
    cases_indexing,
    cases_normalization,
    cases_pooling,
    cases_products,
    cases_reductions,
    cases_shaping,
)
ALL = [case for family in FAMILIES for case in family.CASES]
SMOOTH = [case for case in ALL if not (case.exempt or case.float32)]
BATCHED = [case for case in ALL if case.batch]
