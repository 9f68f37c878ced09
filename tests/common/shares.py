"""What each device of a mesh has computed."""


def check_divided(y, mesh, groups):
    """Every device has computed its own rows and heads, where they can be divided."""
    data, fsdp, _, model = mesh
    rows, length, heads, dim = y.shape
    heads_divide = heads % model == 0 and (groups == 1 or groups % model == 0)
    share = (rows // (data * fsdp), length, heads // model if heads_divide else heads, dim)
    assert y.sharding.shard_shape(y.shape) == share, (mesh, groups, y.sharding)
