"""Pictures from text: the pipeline around the denoiser, its text states, and the training objective.

It needs diffusers, an extra of the package; importing any module from here says so where it is missing.
"""

from importlib.util import find_spec

from vlm.errors import ArgumentError

if find_spec("diffusers") is None:
    raise ArgumentError('drawing needs diffusers; pip install "vlm-foundation[diffusion]"')
