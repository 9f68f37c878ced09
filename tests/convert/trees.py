"""Random parameter trees and configs for every conversion source."""

import operator

import jax
import numpy as np
from flax import traverse_util

from multiscreen_jax.models import (
    DeltaNetConfig,
    GatedDeltaNetConfig,
    LogLinearGatedDeltaNetConfig,
    LogLinearMamba2Config,
    Mamba2Config,
    MultiscreenConfig,
    RetNetConfig,
    TransformerConfig,
    build,
)
from multiscreen_jax.models.registry import ARCHITECTURES
from multiscreen_jax.sharding import path_name
from multiscreen_jax.train.state import abstract_params

# Every dim length is different, so that no wrong layout can have the right shape.
MULTISCREEN = MultiscreenConfig(
    vocab_size=13, model_dim=10, num_layers=3, num_heads=2, key_dim=4, value_dim=7
)
TRANSFORMER = TransformerConfig(
    vocab_size=13,
    model_dim=12,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    feed_forward_dim=17,
    final_norm_gain=True,
    tie_embeddings=False,
)

_SHAPE = {"vocab_size": 13, "model_dim": 12, "num_layers": 3, "key_dim": 5, "value_dim": 7}
_DELTA = {**_SHAPE, "num_heads": 2, "feed_forward_dim": 17, "conv_width": 4}
_MAMBA2 = {**_SHAPE, "num_heads": 6, "num_groups": 2, "conv_width": 4}
LINEAR_FAMILY = {
    "retnet/fla": RetNetConfig(
        **{**_SHAPE, "key_dim": 4}, num_heads=2, feed_forward_dim=17, tie_embeddings=True
    ),
    "deltanet/fla": DeltaNetConfig(**_DELTA),
    "mamba2/fla": Mamba2Config(**_MAMBA2),
    "gated_deltanet/fla": GatedDeltaNetConfig(**_DELTA, final_norm_gain=False),
    "log_linear_mamba2/hattention": LogLinearMamba2Config(
        **_MAMBA2, feed_forward_dim=17, num_levels=9
    ),
    "log_linear_mamba2/fla": LogLinearMamba2Config(**_MAMBA2, feed_forward_dim=17, num_levels=9),
    "log_linear_gdn/hattention": LogLinearGatedDeltaNetConfig(**_DELTA, num_levels=9),
}


def config_for(source: str):
    """A small config of the source's class."""
    if source in LINEAR_FAMILY:
        return LINEAR_FAMILY[source]
    if source.startswith("multiscreen/"):
        return MULTISCREEN
    architecture = next(each for each in ARCHITECTURES if source in map(name_of, each.sources))
    return architecture.config(**vars(TRANSFORMER))


name_of = operator.attrgetter("name")


def shapes(config) -> dict[str, tuple[int, ...]]:
    if type(config) not in (MultiscreenConfig, TransformerConfig):
        leaves = jax.tree_util.tree_flatten_with_path(abstract_params(build(config)))[0]
        return {path_name(path): leaf.shape for path, leaf in leaves}
    n, d = config.num_layers, config.model_dim
    if isinstance(config, MultiscreenConfig):
        h, k, v = config.num_heads, config.key_dim, config.value_dim
        tiles = {
            "query": (n, d, h, k),
            "key": (n, d, h, k),
            "value": (n, d, h, v),
            "gate": (n, d, h, v),
            "output": (n, h, v, d),
            "log_window": (n, h),
            "logit_width": (n, h),
            "log_output_scale": (n, h),
        }
        return {
            "embedding/rows": (config.vocab_size, d),
            "embedding/log_input_scale": (),
            "embedding/log_output_scale": (),
            **{f"layers/tiles/{name}": shape for name, shape in tiles.items()},
        }
    h, g, k, f = config.num_heads, config.num_kv_heads, config.head_dim, config.feed_forward_dim
    out = {
        "embedding/rows": (config.vocab_size, d),
        "layers/attention_norm/scale": (n, d),
        "layers/attention/query": (n, d, h, k),
        "layers/attention/key": (n, d, g, k),
        "layers/attention/value": (n, d, g, k),
        "layers/attention/output": (n, h, k, d),
        "layers/feed_forward_norm/scale": (n, d),
        "layers/feed_forward/gate": (n, d, f),
        "layers/feed_forward/up": (n, d, f),
        "layers/feed_forward/down": (n, f, d),
    }
    if config.final_norm_gain:
        out["final_norm/scale"] = (d,)
    if not config.tie_embeddings:
        out["unembedding/rows"] = (config.vocab_size, d)
    return out


def random_tree(config, seed: int = 0, dtype="float32") -> dict:
    rng = np.random.default_rng(seed)
    leaves = {
        tuple(path.split("/")): np.asarray(rng.standard_normal(shape), dtype)
        for path, shape in shapes(config).items()
    }
    return traverse_util.unflatten_dict(leaves)


def assert_same(a: dict, b: dict) -> None:
    """Same keys, shapes, dtypes and bits."""
    a, b = (traverse_util.flatten_dict(x, sep="/") for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        x, y = np.asarray(a[name]), np.asarray(b[name])
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)
