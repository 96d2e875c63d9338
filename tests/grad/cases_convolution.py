"""Cases of convolutions in one, two and three dimensions."""

from __future__ import annotations

from checking import Case
from torch.nn import functional

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def padded(x, pads):
    rank = len(pads) // 2
    return functional.pad(x, [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])])


def conv(x, w, bias=True, pads=None, strides=None, dilations=None, group=1, same=None, auto_pad=None, note=""):
    """`same` are the pads that `auto_pad` stands for."""
    rank = len(x) - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    pads = pads or [0] * 2 * rank

    def torch_conv(x, w, b=None):
        return CONV[rank](padded(x, same or pads), w, b, strides, 0, dilations, group)

    attrs = {"strides": strides, "dilations": dilations, "group": group}
    attrs |= {"auto_pad": auto_pad} if auto_pad else {"pads": pads}
    return Case("Conv", (x, w, (w[0],)) if bias else (x, w), torch_conv, attrs, note=note, batch=(0,))


def transposed(x, w, pads, strides, dilations, group=1, output_padding=None, bias=True, note="", **instead):
    """`instead` are the attributes that say the same as `pads`."""
    rank = len(x) - 2
    extra = output_padding or [0] * rank

    def torch_conv(x, w, b=None):
        y = CONV_TRANSPOSE[rank](x, w, None, strides, 0, 0, group, dilations)
        frame = [n for i in reversed(range(rank)) for n in (-pads[i], extra[i] - pads[i + rank])]
        y = functional.pad(y, frame)  # negative pads crop
        return y if b is None else y + b.reshape(-1, *[1] * rank)

    attrs = {"strides": strides, "dilations": dilations, "group": group, "output_padding": extra}
    attrs |= instead or {"pads": pads}
    inputs = (x, w, (w[1] * group,)) if bias else (x, w)
    return Case("ConvTranspose", inputs, torch_conv, attrs, note=note, batch=(0,))


CASES = [
    conv((2, 3, 5), (4, 3, 3)),
    conv((2, 3, 8), (4, 3, 3), strides=[2], pads=[2, 0], note="last position unread"),
    conv((2, 3, 5, 6), (4, 3, 2, 3)),
    conv((2, 3, 5, 6), (4, 3, 1, 1), note="pointwise"),
    conv((2, 3, 5, 6), (4, 3, 1, 1), bias=False, strides=[2, 2], note="pointwise with strides"),
    conv((2, 3, 5, 6), (4, 3, 1, 1), pads=[1, 0, 0, 2], note="pointwise, padding wider than the kernel"),
    conv((2, 3, 5, 6), (4, 3, 3, 3), pads=[1, 1, 1, 1], bias=False),
    conv((2, 3, 5, 6), (4, 3, 3, 2), pads=[2, 0, 1, 1], note="asymmetric pads"),
    conv((2, 3, 6, 8), (4, 3, 3, 3), strides=[2, 3], note="strides that do not divide"),
    conv((2, 3, 7, 6), (4, 3, 3, 3), strides=[2, 2], pads=[0, 1, 1, 0]),
    conv((2, 3, 7, 8), (4, 3, 2, 3), dilations=[3, 2]),
    conv((2, 3, 8, 9), (4, 3, 2, 3), dilations=[3, 2], strides=[2, 3], pads=[1, 0, 2, 1]),
    conv((2, 4, 5, 6), (6, 2, 3, 2), group=2, pads=[1, 0, 1, 1]),
    conv((2, 4, 7, 6), (6, 2, 3, 2), group=2, strides=[2, 1]),
    conv((2, 4, 5, 6), (6, 2, 1, 1), group=2, note="pointwise in groups"),
    conv((2, 3, 5, 6), (3, 1, 3, 3), group=3, pads=[1, 1, 1, 1], note="depthwise"),
    conv((2, 3, 7, 6), (3, 1, 3, 2), group=3, strides=[2, 2], pads=[0, 1, 1, 0], note="depthwise"),
    conv((2, 3, 9), (3, 1, 3), group=3, dilations=[2], note="depthwise"),
    conv((2, 3, 5, 6), (6, 1, 3, 2), group=3, note="depthwise with a multiplier"),
    conv((2, 2, 3, 4, 5), (3, 2, 2, 3, 2), strides=[1, 2, 1], pads=[1, 0, 1, 0, 1, 0]),
    conv((2, 3, 6, 5), (4, 3, 3, 2), strides=[2, 1], auto_pad="SAME_UPPER", same=[0, 0, 1, 1], note="SAME_UPPER"),
    conv((2, 3, 6, 5), (4, 3, 3, 2), strides=[2, 1], auto_pad="SAME_LOWER", same=[1, 1, 0, 0], note="SAME_LOWER"),
    conv((2, 3, 6, 5), (4, 3, 3, 2), auto_pad="VALID", same=[0, 0, 0, 0], note="VALID"),
    conv((2, 4, 9), (6, 2, 3), group=2, dilations=[3], strides=[2], pads=[2, 1]),
    conv((2, 3, 11), (6, 1, 4), group=3, strides=[3], pads=[0, 2], note="depthwise with a multiplier"),
    conv((2, 3, 7), (4, 3, 2), strides=[4], pads=[1, 0], note="a stride wider than the kernel"),
    conv((2, 3, 4), (5, 3, 4), note="one position"),
    conv((2, 3, 9, 8), (3, 1, 3, 2), group=3, dilations=[2, 3], pads=[3, 1, 0, 2], note="depthwise"),
    conv((2, 3, 9, 8), (6, 1, 2, 3), group=3, strides=[2, 3], dilations=[2, 1], pads=[1, 0, 0, 2], note="multiplier"),
    conv((2, 4, 9, 8), (6, 2, 3, 2), group=2, strides=[2, 3], dilations=[2, 3], pads=[0, 2, 3, 1]),
    conv((2, 4, 4, 5, 3), (6, 2, 2, 3, 2), group=2, pads=[1, 0, 1, 0, 2, 0]),
    conv((2, 2, 5, 6, 4), (3, 2, 2, 3, 2), dilations=[2, 1, 3], strides=[1, 2, 1], bias=False),
    conv((2, 3, 4, 5, 3), (3, 1, 3, 2, 2), group=3, strides=[2, 1, 1], pads=[1, 1, 0, 0, 0, 1], note="depthwise"),
    conv((2, 3, 7), (4, 3, 3), strides=[3], auto_pad="SAME_UPPER", same=[1, 1], note="SAME_UPPER"),
    conv((2, 3, 9), (4, 3, 2), strides=[4], auto_pad="SAME_UPPER", same=[0, 1], note="SAME_UPPER"),
    conv((2, 3, 10), (4, 3, 1), strides=[4], auto_pad="SAME_LOWER", same=[0, 0], note="SAME_LOWER, positions unread"),
    conv((2, 2, 3, 4, 5), (3, 2, 2, 3, 2), strides=[1, 2, 1], auto_pad="SAME_UPPER", same=[0, 0, 0, 1, 1, 1]),
    transposed((2, 3, 5), (3, 4, 3), [0, 0], [1], [1]),
    transposed((2, 4, 5), (4, 3, 3), [2, 1], [2], [2], group=2, output_padding=[1], note="dilated in groups"),
    transposed((2, 3, 5), (3, 1, 4), [1, 1], [3], [1], group=3, output_padding=[2], note="depthwise"),
    transposed((2, 3, 5), (3, 2, 4), [1, 2], [2], [1], group=3, note="several filters a group"),
    transposed((2, 3, 4), (3, 4, 2), [0, 1], [4], [1], note="a stride wider than the kernel"),
    transposed((2, 3, 4, 5), (3, 4, 1, 1), [0, 0, 0, 0], [1, 1], [1, 1], note="pointwise"),
    transposed((2, 3, 4, 5), (3, 4, 3, 3), [1, 1, 1, 1], [2, 2], [1, 1], output_padding=[1, 1], note="doubles"),
    transposed((2, 4, 4, 5), (4, 1, 3, 2), [1, 0, 0, 1], [2, 3], [2, 1], group=4, note="dilated depthwise"),
    transposed((2, 3, 3, 2, 4), (3, 2, 2, 3, 2), [0, 1, 0, 1, 0, 1], [2, 1, 2], [1, 1, 1], output_padding=[1, 0, 1]),
    transposed((2, 4, 2, 3, 2), (4, 1, 2, 2, 3), [0] * 6, [2, 2, 1], [1, 2, 1], group=2),
    transposed((2, 3, 5), (3, 4, 3), [0, 1], [2], [1], auto_pad="SAME_UPPER"),
    transposed((2, 3, 5), (3, 4, 3), [1, 0], [2], [1], auto_pad="SAME_LOWER"),
    transposed((2, 3, 5), (3, 4, 2), [0, 0], [3], [1], output_padding=[1], auto_pad="SAME_UPPER"),
    transposed((2, 3, 5), (3, 4, 3), [0, 0], [2], [2], auto_pad="VALID"),
    transposed((2, 3, 5, 4), (3, 4, 4, 2), [1, 0, 1, 0], [2, 2], [1, 1], auto_pad="SAME_LOWER", output_shape=[10, 8]),
    transposed((2, 3, 5, 4), (3, 4, 3, 2), [0, 0, 0, 0], [2, 2], [1, 1], output_padding=[1, 0], output_shape=[12, 8]),
    transposed((2, 3, 4, 5), (3, 4, 3, 2), [1, 0, 0, 1], [2, 3], [1, 1]),
    transposed((2, 3, 4, 5), (3, 4, 3, 2), [1, 0, 1, 0], [2, 3], [1, 2], output_padding=[1, 2], bias=False),
    transposed((2, 4, 4, 5), (4, 3, 3, 2), [0, 1, 0, 1], [2, 1], [1, 1], group=2),
    transposed((2, 3, 4, 5), (3, 1, 2, 2), [0, 0, 0, 0], [2, 2], [1, 1], group=3),
]
