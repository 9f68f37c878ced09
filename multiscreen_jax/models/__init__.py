"""Architectures, one per file, and the registry that names their presets.

The lines with a star are the one list of them: a file that ends with its record, and a line here,
are a new architecture.
"""

from multiscreen_jax.models.architecture import Architecture
from multiscreen_jax.models.decoder import Decoder, DecoderConfig
from multiscreen_jax.models.delta_net import *
from multiscreen_jax.models.diff_v2 import *
from multiscreen_jax.models.gated_delta_net import *
from multiscreen_jax.models.hybrid import *
from multiscreen_jax.models.linear import AttentionLayers, LinearConfig, ScreeningLayers
from multiscreen_jax.models.log_linear_gated_delta_net import *
from multiscreen_jax.models.log_linear_mamba2 import *
from multiscreen_jax.models.mamba2 import *
from multiscreen_jax.models.multiscreen import *
from multiscreen_jax.models.output import ModelOutput
from multiscreen_jax.models.resformer import *
from multiscreen_jax.models.retnet import *
from multiscreen_jax.models.ssmax import *
from multiscreen_jax.models.transformer import *
from multiscreen_jax.models.trunk import Layer, Stage

# isort: split
# Last, since it takes the records of all files above.
from multiscreen_jax.models.registry import build, config_for, create, preset_names
