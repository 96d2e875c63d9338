"""Cases of Fourier transforms: real and complex, padded and cut, onesided, inverse; frames that overlap."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case, Range


def dft(x, axis=1, n=None, inverse=0, onesided=0, **more):
    def in_torch(x, _=None):
        z = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]
        over = axis % x.ndim
        if onesided:
            return torch.view_as_real(torch.fft.rfft(z, n, over))
        return torch.view_as_real((torch.fft.ifft if inverse else torch.fft.fft)(z, n, over).resolve_conj())

    attrs = {"axis": axis, "inverse": inverse, "onesided": onesided}
    inputs = (x,) if n is None else (x, np.array(n))
    return Case("DFT", inputs, in_torch, attrs, note="" if n is None else f"n {n}", **more)


def stft(x, step, n, window=True, onesided=1, **more):
    def in_torch(x, _step, window=None, _n=None):
        z = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]
        frames = z.unfold(1, n, step)
        frames = frames if window is None else frames * window
        y = torch.fft.fft(frames)
        return torch.view_as_real(y[..., : n // 2 + 1] if onesided else y)

    inputs = (x, np.array(step), Range((n,)) if window else None, np.array(n))
    return Case("STFT", inputs, in_torch, {"onesided": onesided}, note=f"step {step}, n {n}", **more)


CASES = [
    dft((2, 5, 3, 1), batch=(0,)),
    dft((2, 5, 3, 2), batch=(0,)),
    dft((2, 5, 6, 2), axis=2, batch=(0,)),
    dft((2, 5, 6, 1), axis=-2, batch=(0,)),
    dft((2, 5, 2), n=8, batch=(0,)),
    dft((2, 6, 1), n=4, batch=(0,)),
    dft((2, 5, 2), inverse=1, batch=(0,)),
    dft((2, 6, 3, 1), inverse=1, batch=(0,)),
    dft((2, 5, 1), onesided=1, batch=(0,)),
    dft((2, 6, 3, 1), onesided=1, batch=(0,)),
    dft((2, 6, 1), n=8, onesided=1, batch=(0,)),
    dft((2, 6, 1), n=5, onesided=1, batch=(0,)),
    stft((2, 11, 1), 2, 4, batch=(0,)),
    stft((2, 12, 1), 3, 5, batch=(0,)),
    stft((2, 11, 1), 4, 4, window=False, batch=(0,)),
    stft((2, 11, 1), 2, 4, onesided=0, batch=(0,)),
    stft((2, 9, 2), 2, 5, onesided=0, batch=(0,)),
]
