"""All cases, family by family."""

from __future__ import annotations

import cases_activations
import cases_convolution
import cases_einsum
import cases_elementwise
import cases_fourier
import cases_grid_sample
import cases_indexing
import cases_losses
import cases_normalization
import cases_pooling
import cases_products
import cases_quantization
import cases_recurrent
import cases_reductions
import cases_resize
import cases_roi_align
import cases_scattering
import cases_selection
import cases_shaping
import cases_trigonometry
import cases_windows

FAMILIES = (
    cases_activations,
    cases_convolution,
    cases_einsum,
    cases_elementwise,
    cases_fourier,
    cases_grid_sample,
    cases_indexing,
    cases_losses,
    cases_normalization,
    cases_pooling,
    cases_products,
    cases_quantization,
    cases_recurrent,
    cases_reductions,
    cases_resize,
    cases_roi_align,
    cases_scattering,
    cases_selection,
    cases_shaping,
    cases_trigonometry,
    cases_windows,
)
ALL = [case for family in FAMILIES for case in family.CASES]
SMOOTH = [case for case in ALL if not (case.exempt or case.float32)]
BATCHED = [case for case in ALL if case.batch or case.named]
