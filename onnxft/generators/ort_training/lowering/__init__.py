"""From the internal form to what onnxruntime-training 1.19.2 trains as torch would.

`lower.py` goes through the nodes that carry gradients. `trusted.py` says which of them the package differentiates
right; all others get the native rule, as a function of the model (`gradient_function.py`). `batch_norm.py`,
`outputs.py` and `forms.py` bring operators to what it runs, `limits.py` refuses what its files cannot hold.
"""

from onnxft.generators.ort_training.lowering.forms import adapt_forms as adapt_forms
from onnxft.generators.ort_training.lowering.lower import lower as lower
